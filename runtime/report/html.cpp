#include <fmt/core.h>

#include "runtime/report/pages.h"
#include "runtime/report/text.h"

namespace ferry::report {
namespace {

constexpr size_t kShortBytes = 32;  // of a cell that stays on one line
constexpr double kHalfPx = 500, kFullPx = 1030, kNarrowPx = 330;

// Diagonal lines in each series' colour, for what is told apart from a plain fill of the same.
std::string patterns() {
    std::string text = "<svg class=\"patterns\" aria-hidden=\"true\"><defs>";
    for (int i = 1; i <= 8; ++i)
        text += fmt::format(
            "<pattern id=\"hatch-{0}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
            "patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"var(--c{0})\" "
            "fill-opacity=\".28\"/><rect width=\"2.6\" height=\"6\" fill=\"var(--c{0})\"/>"
            "</pattern>",
            i);
    return text + "</defs></svg>\n";
}

std::string element(const char* name, const std::string& text) {
    return fmt::format("<{0}>{1}</{0}>", name, escape_html(text));
}

std::string html(const Table& table) {
    std::string text;
    if (!table.caption.empty()) text += element("h3", table.caption);  // does not scroll
    text += fmt::format("<div class=\"scroll\"><table aria-label=\"{}\">",
                        escape_html(table.caption.empty() ? "Numbers" : table.caption));
    text += "<thead><tr>";
    for (const Column& column : table.columns)
        text += fmt::format("<th scope=\"col\"{}>{}{}</th>", column.is_number ? " class=\"n\"" : "",
                            escape_html(column.name),
                            column.unit.empty() ? "" : element("small", column.unit));
    text += "</tr></thead><tbody>\n";
    for (const auto& row : table.rows) {
        text += "<tr>";
        for (size_t i = 0; i < row.size(); ++i) {
            const Cell& cell = row[i];
            const bool is_number = i < table.columns.size() && table.columns[i].is_number;
            const char* kind = is_number ? "n" : cell.text.size() <= kShortBytes ? "k" : "t";
            text += fmt::format("<td class=\"{}{}{}\"", kind, cell.style.empty() ? "" : " ",
                                cell.style);
            if (cell.value) text += fmt::format(" data-value=\"{}\"", *cell.value);
            text += fmt::format(">{}</td>", escape_html(cell.text));
        }
        text += "</tr>\n";
    }
    return text + "</tbody></table></div>";
}

// Folded tables stay shut until they are asked for.
std::string html_block(const Table& table) {
    if (!table.folded) return fmt::format("<div class=\"card full\">{}</div>\n", html(table));
    Table inner = table;
    inner.caption.clear();
    return fmt::format("<details class=\"card full\">{}{}</details>\n",
                       element("summary", table.caption), html(inner));
}

std::string html_block(const Figure& figure) {
    std::string text =
        fmt::format("<figure id=\"{}\" class=\"{}\"><figcaption><h3>{}</h3><p>{}</p></figcaption>",
                    escape_html(figure.id), figure.full_width ? "full" : "half",
                    escape_html(figure.title), escape_html(figure.caption));
    text += fmt::format("<div class=\"wide\">{}</div>",
                        figure.draw(figure.id + "-wide", figure.full_width ? kFullPx : kHalfPx));
    text += fmt::format("<div class=\"narrow\">{}</div>",
                        figure.draw(figure.id + "-narrow", kNarrowPx));
    if (!figure.data.rows.empty())
        text += fmt::format("<details><summary>Numbers</summary>{}</details>", html(figure.data));
    return text + "</figure>\n";
}

std::string html_block(const Paragraph& paragraph) {
    return fmt::format("<p class=\"prose{}\">{}</p>\n", paragraph.is_warning ? " warn" : "",
                       escape_html(paragraph.text));
}

std::string html_block(const KeyFigures& keys) {
    std::string text = "<div class=\"keys\">";
    for (const KeyFigure& key : keys.figures)
        text += fmt::format("<div class=\"key\"><span>{}</span><b>{}</b><span>{}</span></div>",
                            escape_html(key.name), escape_html(key.value), escape_html(key.note));
    return text + "</div>\n";
}

std::string html(const Section& section) {
    std::string text =
        fmt::format("<section id=\"{}\" aria-labelledby=\"{}-h\"><h2 id=\"{}-h\">{}</h2>",
                    section.id, section.id, section.id, escape_html(section.title));
    if (section.blocks.empty())
        return text +
               fmt::format("<p class=\"absent\">{}</p></section>\n", escape_html(section.absent));
    text += "<div class=\"grid\">";
    for (const Block& block : section.blocks) {
        text += std::visit([](const auto& known) { return html_block(known); }, block);
    }
    return text + "</div></section>\n";
}

}  // namespace

std::string to_html(const Document& document) {
    std::string text =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
        "<link rel=\"icon\" href=\"data:,\">"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
        "'unsafe-inline'; img-src data:\">";
    text += fmt::format("{}<style>{}</style></head><body>\n{}", element("title", document.title),
                        style_sheet(), patterns());
    text += fmt::format("<header>{}<p class=\"sub\">{}</p><nav aria-label=\"Sections\">",
                        element("h1", document.title), escape_html(document.subtitle));
    for (const Section& section : document.sections)
        text += fmt::format("<a href=\"#{}\"{}>{}</a>", section.id,
                            section.blocks.empty() ? " class=\"none\"" : "",
                            escape_html(section.title));
    text += "</nav></header>\n<main>\n";
    for (const Section& section : document.sections) text += html(section);
    return text +
           "</main>\n<footer>Written by ferry report. Numbers in tables are rounded; each "
           "cell carries the exact value.</footer>\n</body></html>\n";
}

}  // namespace ferry::report
