// A report before it has a form: sections of paragraphs, tables and figures, which html.h and
// markdown.h write.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace ferry::report {

struct Cell {
    std::string text;
    std::optional<double> value{};  // exact, when the text is a rounded number
    std::string style{};            // good, bad or empty
};
Cell number_cell(double value, int digits = 4);
Cell number_cell(const std::optional<double>& value, int digits = 4);  // "–" when there is none

struct Column {
    std::string name;
    std::string unit{};
    bool is_number = false;
};

struct Table {
    std::string caption{};
    std::vector<Column> columns{};
    std::vector<std::vector<Cell>> rows{};
    bool folded = false;  // shown when asked for
};

struct Paragraph {
    std::string text;
    bool is_warning = false;
};

// Figures that matter most, large.
struct KeyFigure {
    std::string name, value, note;
};
struct KeyFigures {
    std::vector<KeyFigure> figures;
};

struct Figure {
    std::string id;  // unique in the document
    std::string title;
    std::string caption;
    bool full_width = false;
    std::function<std::string(std::string_view id, double width_px)> draw;
    Table data{};  // the same in numbers: what Markdown shows in its place
};

using Block = std::variant<Paragraph, Table, KeyFigures, Figure>;

struct Section {
    std::string id;
    std::string title;
    std::vector<Block> blocks{};
    // Why there is nothing: shown in place of blocks.
    std::string absent{};
};

struct Document {
    std::string title;
    std::string subtitle;
    std::vector<Section> sections;
};

// "Peak of 3 runs" → "peak-of-3-runs": for ids.
std::string slug(std::string_view text);

}  // namespace ferry::report
