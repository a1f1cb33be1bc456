#include "runtime/stop_strings.h"

#include <algorithm>

namespace ferry {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    std::erase(strings_, std::string());
}

bool StopStrings::push(std::string_view piece) {
    if (stopped_) return true;
    const size_t old_size = text_.size();
    text_ += piece;
    size_t first_end = std::string::npos;
    size_t cut = 0;
    for (const std::string& stop : strings_) {
        // A match that is new ends in the new piece.
        const size_t from = old_size >= stop.size() ? old_size - stop.size() + 1 : 0;
        const size_t begin = text_.find(stop, from);
        if (begin == std::string::npos) continue;
        const size_t end = begin + stop.size();
        if (end < first_end || (end == first_end && begin < cut)) {
            first_end = end;
            cut = begin;
        }
    }
    if (first_end == std::string::npos) return false;
    text_.resize(cut);
    stopped_ = true;
    return true;
}

size_t StopStrings::num_safe_bytes() const {
    size_t held_back = 0;
    if (stopped_) return text_.size();
    for (const std::string& stop : strings_)
        for (size_t n = std::min(stop.size() - 1, text_.size()); n > held_back; --n)
            if (text_.ends_with(std::string_view(stop).substr(0, n))) held_back = n;
    return text_.size() - held_back;
}

}  // namespace ferry
