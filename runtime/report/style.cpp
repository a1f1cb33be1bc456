#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "runtime/report/pages.h"

namespace ferry::report {
namespace {

constexpr const char* kRules = R"(
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","Liberation Sans","DejaVu Sans",Arial,sans-serif}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:20px;line-height:1.3;margin:0 0 14px;letter-spacing:-.005em}
h3{font-size:15px;line-height:1.4;margin:0 0 2px;font-weight:650}
.sub{color:var(--muted);margin:0 0 18px}
nav{display:flex;flex-wrap:wrap;gap:6px 8px;margin:0 0 8px}
nav a{color:var(--text);text-decoration:none;border:1px solid var(--line);border-radius:999px;padding:2px 12px;font-size:13px;background:var(--ground)}
nav a:hover,nav a:focus-visible{border-color:var(--c1);color:var(--c1)}
nav a.none{color:var(--muted);border-style:dashed;background:none}
section{margin:30px 0 0;scroll-margin-top:12px}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}
.grid>*{min-width:0}
.full,.prose{grid-column:1/-1}
.card,figure{background:var(--ground);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0}
figure{display:flex;flex-direction:column}
figcaption{margin-bottom:10px}
figcaption p{margin:0;color:var(--muted);font-size:13px;line-height:1.45}
.plot{display:block;width:100%;height:auto;margin:0 auto;overflow:visible}
.narrow{display:none}
figure details{margin-top:auto;padding-top:10px;font-size:13px}
details.card{font-size:13px}
details[open]>summary{margin-bottom:8px}
summary{cursor:pointer;color:var(--muted);width:max-content}
summary:hover,summary:focus-visible{color:var(--c1)}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:13px;line-height:1.4;font-variant-numeric:tabular-nums}
.card>h3{margin-bottom:8px}
th,td{padding:5px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;vertical-align:bottom;white-space:nowrap}
th small{display:block;font-weight:400;color:var(--muted);font-size:12px}
tbody tr:last-child td{border-bottom:0}
tbody tr:hover td{background:var(--hover)}
.n{text-align:right;white-space:nowrap}
.k{white-space:nowrap}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
td.good{color:var(--good);font-weight:600}
td.bad{color:var(--bad);font-weight:600}
.prose{margin:0;max-width:80ch}
.warn{border-left:3px solid var(--bad);padding-left:12px}
.absent{color:var(--muted);margin:0;border:1px dashed var(--line);border-radius:10px;padding:12px 18px}
.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;grid-column:1/-1}
.key{background:var(--ground);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.key b{display:block;font-size:24px;line-height:1.25;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.key span{color:var(--muted);font-size:13px;display:block;overflow-wrap:anywhere}
footer{color:var(--muted);font-size:13px;padding-top:28px;padding-bottom:40px}
svg text{font-size:12px;fill:var(--text)}
svg .tick,svg .note{fill:var(--muted)}
svg .note{fill:var(--text)}
svg .point{paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round}
svg .group{font-weight:650}
svg .hot{fill:var(--hot)}
svg line.grid{stroke:var(--gridline);stroke-width:1}
svg line.axis{stroke:var(--axis);stroke-width:1}
svg .curve{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .again.curve{stroke-dasharray:6 4}
svg .ideal{fill:none;stroke:var(--axis);stroke-width:1.5;stroke-dasharray:5 4}
svg .mark{fill:var(--c);stroke:var(--ground);stroke-width:1.2}
svg .band{fill:var(--c);opacity:.16}
svg rect.seg,svg rect.swatch{stroke:var(--ground);stroke-width:.8}
svg .lane{fill:var(--hover)}
svg .flow{fill:none;stroke:var(--text);stroke-width:1;opacity:.35}
svg .heat{fill:var(--c1)}
svg rect.noise{fill:var(--gridline)}
svg rect.better{fill:var(--c3)}
svg rect.worse{fill:var(--c2)}
svg rect.neutral{fill:var(--axis)}
.patterns{position:absolute;width:0;height:0}
.p-attention{fill:var(--c1)}.p-experts{fill:var(--c3)}.p-shared{fill:url(#hatch-3)}.p-dense{fill:url(#hatch-1)}
.p-gate{fill:var(--c6)}.p-norm{fill:url(#hatch-6)}.p-pack{fill:var(--c8)}.p-reply{fill:url(#hatch-8)}
.p-dispatch_wait{fill:url(#hatch-2)}.p-combine_wait{fill:var(--c2)}.p-combine{fill:var(--c5)}.p-exchange{fill:url(#hatch-5)}
.p-tensor_parallel{fill:url(#hatch-4)}.p-head{fill:var(--c4)}.p-embed{fill:url(#hatch-4)}
.p-sample{fill:var(--c7)}.p-schedule{fill:url(#hatch-7)}.p-step,.p-output,.p-load,.p-other{fill:var(--axis)}.p-idle{fill:var(--gridline)}
@media (max-width:760px){
main,header,footer{padding-left:14px;padding-right:14px}
header{padding-top:22px}
h1{font-size:25px}
.grid{grid-template-columns:minmax(0,1fr)}
.card,figure{padding:14px 12px}
.wide{display:none}.narrow{display:block}
}
@media print{
body{background:#fff;font-size:11pt}
main,header,footer{max-width:none;padding:0}
nav,details,.noprint{display:none}
figure,.card,.key{break-inside:avoid;border-color:#bbb}
section{break-inside:auto}
h2{break-after:avoid}
.wide{display:block}.narrow{display:none}
.scroll{overflow:visible}
}
)";

std::string variables(const Palette& palette, const char* page, const char* line, const char* grid,
                      const char* axis, const char* hover, const char* hot) {
    std::string text = fmt::format(
        "--page:{};--ground:{};--text:{};--muted:{};--line:{};--gridline:{};--axis:{};--hover:{};"
        "--hot:{};--good:{};--bad:{};",
        page, palette.ground, palette.text, palette.muted, line, grid, axis, hover, hot,
        palette.series[2], palette.series[1]);
    for (int i = 0; i < 8; ++i) text += fmt::format("--c{}:{};", i + 1, palette.series[i]);
    return text;
}

double luminance(const std::string& colour) {
    const auto channel = [&](size_t at) {
        const double value = std::stoi(colour.substr(at, 2), nullptr, 16) / 255.0;
        return value <= 0.04045 ? value / 12.92 : std::pow((value + 0.055) / 1.055, 2.4);
    };
    return 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
}

}  // namespace

const Palette& light_palette() {
    static const Palette palette{
        "#ffffff",
        "#1b2129",
        "#59636f",
        {"#0072b2", "#d55e00", "#00875f", "#b8558f", "#b97a00", "#2b8fc6", "#4a525c", "#8f8400"}};
    return palette;
}

const Palette& dark_palette() {
    static const Palette palette{
        "#171c23",
        "#e6eaef",
        "#9aa5b1",
        {"#4ea6e6", "#f07f3c", "#2fc79b", "#dd93be", "#f0b23a", "#8fd0f5", "#b4bcc6", "#e8dd55"}};
    return palette;
}

double contrast(const std::string& colour, const std::string& other) {
    const double a = luminance(colour), b = luminance(other);
    return (std::max(a, b) + 0.05) / (std::min(a, b) + 0.05);
}

std::string style_sheet() {
    const std::string light = variables(light_palette(), "#f5f6f8", "#dde1e6", "#e7eaee", "#8a94a0",
                                        "#f3f5f7", "#ffffff");
    const std::string dark =
        variables(dark_palette(), "#0e1217", "#2c343e", "#28303a", "#77828e", "#1f262f", "#0e1217");
    std::string text = ":root{color-scheme:light dark;" + light + "}\n";
    text += "@media (prefers-color-scheme:dark){:root:not([data-theme=light]){" + dark + "}}\n";
    text += "@media print{:root{color-scheme:light;" + light + "}}\n";
    for (int i = 1; i <= 8; ++i)
        text += fmt::format(".s{0}{{--c:var(--c{0});fill:var(--c{0})}}", i);
    return text + kRules;
}

}  // namespace ferry::report
