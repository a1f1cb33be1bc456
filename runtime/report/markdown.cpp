#include <fmt/core.h>

#include "runtime/report/pages.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

std::string markdown(const Table& table) {
    std::string text;
    if (!table.caption.empty()) text += fmt::format("**{}**\n\n", escape_markdown(table.caption));
    std::string rule = "|";
    text += "|";
    for (const Column& column : table.columns) {
        const std::string unit = column.unit.empty() ? "" : fmt::format(" ({})", column.unit);
        text += fmt::format(" {} |", escape_markdown(column.name + unit));
        rule += column.is_number ? "---:|" : "---|";
    }
    text += fmt::format("\n{}\n", rule);
    for (const auto& row : table.rows) {
        text += "|";
        for (const Cell& cell : row) text += fmt::format(" {} |", escape_markdown(cell.text));
        text += "\n";
    }
    return text + "\n";
}

std::string markdown(const Paragraph& paragraph) {
    return fmt::format("{}{}\n\n", paragraph.is_warning ? "> **Note:** " : "",
                       escape_markdown(paragraph.text));
}

std::string markdown(const KeyFigures& keys) {
    std::string text;
    for (const KeyFigure& key : keys.figures)
        text += fmt::format("- {}: **{}** ({})\n", escape_markdown(key.name),
                            escape_markdown(key.value), escape_markdown(key.note));
    return text + "\n";
}

std::string markdown(const Figure& figure) {
    std::string text = fmt::format("### {}\n\n{}\n\n", escape_markdown(figure.title),
                                   escape_markdown(figure.caption));
    return figure.data.rows.empty() ? text : text + markdown(figure.data);
}

}  // namespace

std::string to_markdown(const Document& document) {
    std::string text = fmt::format("# {}\n\n{}\n\n", escape_markdown(document.title),
                                   escape_markdown(document.subtitle));
    for (const Section& section : document.sections) {
        text += fmt::format("## {}\n\n", escape_markdown(section.title));
        if (section.blocks.empty())
            text += fmt::format("*{}*\n\n", escape_markdown(section.absent));
        for (const Block& block : section.blocks)
            text += std::visit([](const auto& known) { return markdown(known); }, block);
    }
    text.pop_back();
    return text;
}

}  // namespace ferry::report
