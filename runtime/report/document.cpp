#include "runtime/report/document.h"

#include "runtime/report/text.h"

namespace ferry::report {

Cell number_cell(double value, int digits) {
    return {.text = format_number(value, digits), .value = value};
}

Cell number_cell(const std::optional<double>& value, int digits) {
    return value ? number_cell(*value, digits) : Cell{.text = "\xE2\x80\x93"};
}

std::string slug(std::string_view text) {
    std::string result;
    for (const char c : text) {
        const bool is_letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (is_letter || (c >= 'A' && c <= 'Z'))
            result += is_letter ? c : static_cast<char>(c - 'A' + 'a');
        else if (!result.empty() && result.back() != '-')
            result += '-';
    }
    while (!result.empty() && result.back() == '-') result.pop_back();
    return result;
}

}  // namespace ferry::report
