// The two forms of a report.
#pragma once
#include <string>

#include "runtime/report/document.h"

namespace ferry::report {

// One HTML file that needs nothing else: styles, pictures and a few lines of script are inside, and
// nothing is fetched. All of it is there without scripts.
std::string to_html(const Document& document);

// GitHub's dialect of tables; figures become tables.
std::string to_markdown(const Document& document);

// The page's style sheet, made of the palette below.
std::string style_sheet();

// Colours of series 1 to 8 and their ground, in light and dark: Okabe and Ito's palette, which
// colour-blind people tell apart, each darkened or lightened until it stands out (3:1) from the
// ground.
struct Palette {
    std::string ground, text, muted;
    std::string series[8];
};
const Palette& light_palette();
const Palette& dark_palette();
// WCAG 2: from 1 (equal) to 21. Colours as "#rrggbb".
double contrast(const std::string& colour, const std::string& other);

}  // namespace ferry::report
