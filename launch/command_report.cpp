// `ferry report`: one page from the results of benchmarks and runs.
#include <fmt/core.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "comm/launcher.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/text_output.h"
#include "runtime/report/pages.h"
#include "runtime/report/sections.h"

namespace ferry {
namespace {

struct Arguments {
    std::vector<std::string> results;
    std::string baseline, html, markdown, title = "Ferry report";
};

// A result that took hours is not overwritten by a slip of the shell's completion.
void keep_inputs(const Arguments& arguments) {
    std::vector<std::string> inputs = arguments.results;
    if (!arguments.baseline.empty()) inputs.push_back(arguments.baseline);
    for (const std::string& output : {arguments.html, arguments.markdown})
        for (const std::string& input : inputs) {
            std::error_code ignored;
            if (!output.empty() && std::filesystem::equivalent(output, input, ignored))
                throw Error(ErrorKind::usage, "{}: is a result and would be overwritten", output);
        }
    if (!arguments.html.empty() && arguments.html == arguments.markdown)
        throw Error(ErrorKind::usage, "-o and --markdown: both are {}", arguments.html);
}

void write_report(Arguments arguments) {
    refuse_several_tasks(own_environment, "report");  // all would write the same file
    if (arguments.html.empty() && arguments.markdown.empty()) arguments.html = "report.html";
    keep_inputs(arguments);
    const report::Results results = report::read_results(arguments.results, arguments.baseline);
    const report::Document document = report::make_document(results, arguments.title);
    if (!arguments.html.empty()) write_text(arguments.html, report::to_html(document));
    if (!arguments.markdown.empty()) write_text(arguments.markdown, report::to_markdown(document));
}

}  // namespace

void add_report(Command& app) {
    Command command = app.add_command(
        "report",
        "Write one self-contained HTML page about results of ferry bench --json, traces "
        "(log.trace) and expert loads (log.expert_load)");
    const auto arguments = std::make_shared<Arguments>();
    command.option("RESULTS", arguments->results, "Files; each is told by its content").required();
    command.option("--baseline", arguments->baseline,
                   "Result of the same benchmark to compare with: differences, and whether "
                   "they exceed the noise");
    command.option("-o,--output", arguments->html, "HTML file (report.html); - : stdout");
    command.option("--markdown", arguments->markdown,
                   "The same as Markdown; alone: no HTML; - : stdout");
    command.option("--title", arguments->title, "Heading of the page").show_default();
    command.on_run([arguments] { write_report(*arguments); });
}

}  // namespace ferry
