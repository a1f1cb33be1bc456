#include "runtime/report/results.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <sstream>

#include "runtime/report/compare.h"
#include "runtime/report/pages.h"
#include "runtime/report/sections.h"
#include "tests/runtime/report/markup.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry::report {
namespace {

using ferry::testing::TempDir;
using ferry::testing::write_file;

// Two cases of two sizes; `scale` makes another machine of it.
std::string exchange_json(double scale, double spread) {
    std::string rows;
    for (const char* name : {"ucx 2:2 <b>&amp;", "ucx 1:3 | x"})
        for (const int tokens : {16, 256}) {
            const double us = scale * (10 + tokens);
            rows += fmt::format(
                "{}{{\"case\": \"{}\", \"tokens\": {}, \"dispatch_min_us\": 5, \"dispatch_us\": "
                "{}, \"dispatch_p99_us\": 30, \"combine_us\": 9, \"combine_p99_us\": 11, "
                "\"both_min_us\": {}, \"both_us\": {}, \"both_p99_us\": {}, \"bytes\": 1234567, "
                "\"algorithm_GBps\": {}, \"bus_GBps\": 0.7, \"wrong\": 0, \"wait_us\": [[0, 4.5], "
                "[1.25, 0]]}}",
                rows.empty() ? "" : ", ", name, tokens, us / 2, us * (1 - spread), us, us * 1.4,
                1 / scale);
        }
    return "{\"benchmark\": \"exchange\", \"parameters\": {\"ranks\": 4, \"versions\": \"ferry 0.1 "
           "(x);  MPI            Open MPI v4      ranks, transport mpi\"}, \"rows\": [" +
           rows + "]}";
}

const char* const kLoad = "{\"first_layer\": 3, \"rows\": [[10, 0, 30, 0], [5, 5, 5, 5]]}";
const char* const kTrace = R"({"traceEvents":[
{"name":"process_name","ph":"M","pid":0,"args":{"name":"rank 0 (attention) on node1"}},
{"name":"attention","ph":"X","pid":0,"tid":0,"ts":0,"dur":10,"args":{"layer":0}},
{"name":"experts","ph":"X","pid":1,"tid":0,"ts":12,"dur":8,"args":{"layer":1,"bytes":5}},
{"name":"rows","ph":"s","pid":0,"tid":0,"ts":5,"id":1},
{"name":"rows","ph":"f","bp":"e","pid":1,"tid":0,"ts":13,"id":1}]})";

class ReportResults : public ::testing::Test {
  protected:
    std::string file(const std::string& name, const std::string& text) {
        write_file(dir_ / name, text);
        return dir_ / name;
    }
    TempDir dir_;
};

TEST_F(ReportResults, FilesAreToldByTheirContent) {
    const Results results = read_results(
        {file("a.json", exchange_json(1, 0.01)), file("load.json", kLoad), file("t.json", kTrace)},
        "");
    ASSERT_EQ(results.benches.size(), 1u);
    EXPECT_EQ(results.benches[0].rows().size(), 4u);
    ASSERT_EQ(results.loads.size(), 1u);
    EXPECT_EQ(results.loads[0].first_layer, 3);
    ASSERT_EQ(results.traces.size(), 1u);
    EXPECT_EQ(results.traces[0].trace.spans.size(), 2u);
    EXPECT_EQ(results.traces[0].trace.spans[1].bytes, 5);
    EXPECT_EQ(results.traces[0].trace.flows.size(), 2u);
    EXPECT_EQ(results.traces[0].trace.rank_names.at(0), "rank 0 (attention) on node1");
}

TEST_F(ReportResults, NamesAreShortAndDifferent) {
    std::filesystem::create_directories(dir_ / "x");
    std::filesystem::create_directories(dir_ / "y");
    const std::string json = exchange_json(1, 0);
    const Results results =
        read_results({file("x/a.json", json), file("y/a.json", json), file("x/a.json", json)}, "");
    EXPECT_EQ(results.benches[0].name, "a");
    EXPECT_EQ(results.benches[1].name, "y/a");
    EXPECT_NE(results.benches[2].name, results.benches[0].name);
}

TEST_F(ReportResults, WhatIsWrongIsSaidInOneLine) {
    const auto refuse = [&](const std::string& text, const std::string& part) {
        const std::string path = file("bad.json", text);
        EXPECT_ERROR(make_document(read_results({path}, ""), "t"), ErrorKind::input, "bad.json",
                     part);
    };
    EXPECT_ERROR(read_results({dir_ / "none.json"}, ""), ErrorKind::input, "none.json");
    refuse("", "not valid JSON");
    refuse("{\"benchmark\": ", "not valid JSON");
    refuse("[1, 2]", "neither");
    refuse("{\"a\": 1}", "neither");
    refuse("{\"benchmark\": 7}", "benchmark: must be a text");
    refuse("{\"benchmark\": \"sprint\", \"rows\": []}", "this version knows exchange");
    refuse("{\"benchmark\": \"exchange\"}", "rows: is missing");
    refuse("{\"benchmark\": \"exchange\", \"rows\": []}", "nothing was measured");
    refuse("{\"benchmark\": \"exchange\", \"rows\": [4]}", "rows: must be a list of objects");
    refuse("{\"benchmark\": \"exchange\", \"rows\": [{\"case\": \"x\"}]}",
           "rows[0]: tokens: is missing");
    refuse("{\"benchmark\": \"exchange\", \"rows\": [{\"case\": 3, \"tokens\": 1}]}",
           "case: must be a text");
    refuse("{\"first_layer\": 0, \"rows\": [[1, 2], [3]]}", "no experts, or different numbers");
    refuse("{\"first_layer\": 0, \"rows\": [[]]}", "no experts, or different numbers");
    refuse(
        "{\"benchmark\": \"throughput\", \"rows\": [{\"case\": \"x\", \"ranks\": 1, "
        "\"output_tokens_per_s\": 1, \"expert_load\": [{\"layer\": 1, \"rows\": []}]}]}",
        "no experts, or different numbers");
    refuse("{\"traceEvents\": [{\"ph\": \"X\"}]}", "traceEvents[0]: ts: must be a number");
    refuse("{\"traceEvents\": [{\"ph\": \"X\", \"ts\": 1", "not a valid trace");
    EXPECT_ERROR(read_results({file("a.json", exchange_json(1, 0))}, file("l.json", kLoad)),
                 ErrorKind::usage, "l.json", "no result of a benchmark");
}

TEST_F(ReportResults, PageIsWellFormedAndHoldsEveryPlot) {
    const Results results = read_results({file("new.json", exchange_json(1.5, 0.01)),
                                          file("load.json", kLoad), file("t.json", kTrace)},
                                         file("old.json", exchange_json(1, 0.01)));
    const Document document = make_document(results, "A <title> & more");
    const std::string html = to_html(document);
    const Markup markup = read_markup(html);
    ASSERT_EQ(markup.error, "");
    size_t num_figures = 0;
    for (const Section& section : document.sections)
        for (const Block& block : section.blocks)
            num_figures += std::holds_alternative<Figure>(block) ? 1 : 0;
    // Exchange: two; waits of four rows; load; timeline; one difference.
    EXPECT_EQ(num_figures, 2u + 4u + 1u + 1u + 1u);
    EXPECT_EQ(markup.with_class("plot").size(), 2 * num_figures);
    for (const char* id : {"exchange-time", "exchange-bandwidth", "expert-load-load", "waits-1",
                           "timeline-t", "difference-1"})
        EXPECT_NE(html.find(fmt::format("<figure id=\"{}\"", id)), std::string::npos) << id;
    for (const char* absent : {"throughput", "scaling", "layer"})
        EXPECT_NE(html.find(fmt::format("<section id=\"{}\"", absent)), std::string::npos)
            << absent;
    // Nothing is fetched, and nothing runs.
    for (const char* part : {"http:", "https:", "src=", "<script", "@import", "url(//"})
        EXPECT_EQ(html.find(part), std::string::npos) << part;
    EXPECT_EQ(html.find("<b>&amp;amp;"), std::string::npos);  // the case's own markup
    EXPECT_NE(html.find("2:2 &lt;b&gt;&amp;amp;"), std::string::npos);
}

TEST_F(ReportResults, IdsAreUniqueWhateverFilesAreCalled) {
    const Results results =
        read_results({file("\xC3\xA4.json", kTrace), file("\xC3\xB6.json", kTrace),
                      file("a-b.json", kLoad), file("a+b.json", kLoad)},
                     "");
    EXPECT_EQ(read_markup(to_html(make_document(results, "t"))).error, "");
}

TEST_F(ReportResults, CellsCarryTheExactValues) {
    const Results results = read_results({file("a.json", exchange_json(1.2345678, 0.01))}, "");
    const Markup markup = read_markup(to_html(make_document(results, "t")));
    const auto has = [&](double value) {
        for (const Element& element : markup.elements)
            if (const auto found = element.attributes.find("data-value");
                found != element.attributes.end() && std::stod(found->second) == value)
                return true;
        return false;
    };
    for (const Row& row : results.benches[0].rows())
        for (const char* key : {"tokens", "dispatch_us", "both_us", "both_p99_us", "bytes"})
            EXPECT_TRUE(has(row.number(key))) << key;
}

TEST_F(ReportResults, MarkdownHasTheSameTables) {
    const Results results =
        read_results({file("new.json", exchange_json(1.5, 0.01)), file("load.json", kLoad)},
                     file("old.json", exchange_json(1, 0.01)));
    const std::string text = to_markdown(make_document(results, "T"));
    EXPECT_NE(text.find("## Exchange\n"), std::string::npos);
    EXPECT_NE(text.find("### Time of one exchange"), std::string::npos);
    EXPECT_NE(text.find("ucx 1:3 \\| x"), std::string::npos);
    EXPECT_NE(text.find("*No result of ferry bench throughput was given.*"), std::string::npos);
    size_t columns = 0;  // every line of a table has as many cells as its head
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        if (line.empty() || line[0] != '|') {
            columns = 0;
            continue;
        }
        size_t bars = 0;
        for (size_t i = 0; i < line.size(); ++i)
            bars += line[i] == '|' && (i == 0 || line[i - 1] != '\\') ? 1 : 0;
        if (columns == 0) columns = bars;
        EXPECT_EQ(bars, columns) << line;
    }
}

// As ferry bench load and ferry bench scaling write them.
std::string loading_json(double load_s) {
    return fmt::format(
        "{{\"benchmark\": \"load\", \"parameters\": {{}}, \"rows\": ["
        "{{\"layout\": \"2:2\", \"ranks\": 4, \"state\": \"cold\", \"cached_share\": 0.25, "
        "\"skipped\": \"\", \"load_s\": {}, \"load_bytes\": 4000000, \"load_GBps\": 0.125, "
        "\"load_GBps_per_rank\": 0.03125, \"raw_s\": 0.5, \"raw_bytes\": 3000000, "
        "\"raw_GBps\": 0.25, \"of_raw\": 0.5}}, "
        "{{\"layout\": \"8:8\", \"ranks\": 16, \"state\": \"cold\", \"skipped\": \"needs 16 "
        "ranks\"}}]}}",
        load_s);
}
const char* const kScaling = R"({"benchmark": "scaling", "parameters": {}, "rows": [
{"kind": "strong", "layout": "colocated:1", "ranks": 1, "nodes": 1, "requests": 8, "skipped": "",
 "wall_s": 4, "output_tokens_per_s": 100, "output_tokens_per_s_per_rank": 100,
 "speedup": 1, "efficiency": 1, "valid": "yes"},
{"kind": "strong", "layout": "colocated:2", "ranks": 2, "nodes": 1, "requests": 8, "skipped": "",
 "wall_s": 2.5, "output_tokens_per_s": 160, "output_tokens_per_s_per_rank": 80,
 "speedup": 1.6, "efficiency": 0.8125, "valid": "doubt"}]})";

TEST_F(ReportResults, LoadingAndScalingHaveSectionsOfTheirOwn) {
    const Results results =
        read_results({file("new.json", loading_json(2)), file("scaling.json", kScaling)},
                     file("old.json", loading_json(1)));
    const std::string html = to_html(make_document(results, "t"));
    ASSERT_EQ(read_markup(html).error, "");
    for (const char* id :
         {"loading-speed", "scaling-speedup", "scaling-measured-efficiency", "difference-1"})
        EXPECT_NE(html.find(fmt::format("<figure id=\"{}\"", id)), std::string::npos) << id;
    for (const char* value : {"\"0.03125\"", "\"0.25\"", "\"1.6\"", "\"0.8125\""})
        EXPECT_NE(html.find(fmt::format("data-value={}", value)), std::string::npos) << value;
    EXPECT_NE(html.find(">not run: needs 16 ranks<"), std::string::npos);
    EXPECT_NE(html.find(">in doubt<"), std::string::npos);
    EXPECT_NE(html.find("in doubt: 1 of 2 cases"), std::string::npos);
    EXPECT_EQ(html.find("INVALID"), std::string::npos);
    const std::vector<Comparison> all = compare(*results.baseline, results.benches[0], nullptr);
    ASSERT_EQ(all.size(), 1u);
    EXPECT_EQ(all[0].name, "2:2, cold");
    EXPECT_DOUBLE_EQ(all[0].change, 1);
    EXPECT_EQ(all[0].verdict, Verdict::worse);
}

TEST_F(ReportResults, LinesOfSeveralScalingResultsAreApart) {
    const Results results = read_results({file("a.json", kScaling), file("b.json", kScaling)}, "");
    const std::string html = to_html(make_document(results, "t"));
    ASSERT_EQ(read_markup(html).error, "");
    for (const char* name : {"a: strong scaling", "b: strong scaling"})
        EXPECT_NE(html.find(name), std::string::npos) << name;
}

// As ferry bench throughput writes it, of one case.
std::string throughput_json(const std::string& layout, int ranks, int batch, double rate,
                            double tokens_per_s, const std::string& input = "128") {
    return fmt::format(
        "{{\"benchmark\": \"throughput\", \"parameters\": {{\"model\": \"demo\"}}, \"workload\": "
        "{{\"input\": \"{0}\", \"rate\": {4}}}, \"rows\": [{{\"case\": \"{1} batch {3}\", "
        "\"layout\": \"{1}\", \"ranks\": {2}, \"max_batch\": {3}, \"rate\": {4}, "
        "\"output_tokens_per_s\": {5}, \"output_tokens_per_s_per_rank\": {5}, \"ttft_p99_ms\": 5, "
        "\"tpot_p50_ms\": 1, \"valid\": \"yes\"}}]}}",
        input, layout, ranks, batch, rate, tokens_per_s);
}

// What slurm/bench-sweep.sbatch leaves: a file for each case.
TEST_F(ReportResults, CasesOfOneSweepAreJoinedWhateverFilesTheyAreIn) {
    std::vector<std::string> paths;
    for (const int ranks : {1, 2})
        for (const int batch : {4, 8}) {
            const std::string layout = fmt::format("colocated:{}", ranks);
            paths.push_back(file(fmt::format("sweep-{}-b{}.json", ranks, batch),
                                 throughput_json(layout, ranks, batch, 0, 10 * ranks * batch)));
        }
    std::string text = to_markdown(make_document(read_results(paths, ""), "t"));
    EXPECT_NE(text.find("| colocated:1 | 4 | 40 |\n| colocated:1 | 8 | 80 |\n"), std::string::npos);
    EXPECT_NE(text.find("| batch 8 | 2 | colocated:2 | 160 | 2 | 100 |"), std::string::npos);
    // Another run of the same cases, and another workload, are sweeps of their own.
    for (const int ranks : {1, 2}) {
        const std::string layout = fmt::format("colocated:{}", ranks);
        paths.push_back(file(fmt::format("again-{}.json", ranks),
                             throughput_json(layout, ranks, 4, 0, 30 * ranks)));
        paths.push_back(file(fmt::format("long-{}.json", ranks),
                             throughput_json(layout, ranks, 16, 0, 50 * ranks, "512")));
    }
    text = to_markdown(make_document(read_results(paths, ""), "t"));
    for (const char* line : {"| sweep: batch 4 | 2 | colocated:2 | 80 | 2 | 100 |",
                             "| again: batch 4 | 2 | colocated:2 | 60 | 2 | 100 |",
                             "| long: batch 16 | 2 | colocated:2 | 100 | 2 | 100 |"})
        EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
}

TEST_F(ReportResults, SweepsWhoseFilesBeginAlikeHaveDifferentNames) {
    std::vector<std::string> paths;
    for (const int ranks : {1, 2})
        for (const char* input : {"128", "512"})
            paths.push_back(
                file(fmt::format("t-{}-{}.json", ranks, input),
                     throughput_json(fmt::format("colocated:{}", ranks), ranks, 8, 0, 7, input)));
    const std::string text = to_markdown(make_document(read_results(paths, ""), "t"));
    EXPECT_NE(text.find("| t-1-128: batch 8 | 2 |"), std::string::npos) << text;
    EXPECT_NE(text.find("| t-1-512: batch 8 | 2 |"), std::string::npos);
}

TEST_F(ReportResults, RatesOfArrivalFormALine) {
    const Results results = read_results({file("r1.json", throughput_json("1:1", 2, 8, 5, 50)),
                                          file("r2.json", throughput_json("1:1", 2, 8, 9, 70))},
                                         "");
    const std::string text = to_markdown(make_document(results, "t"));
    EXPECT_NE(text.find("| 1:1 batch 8 | 5 | 50 |\n| 1:1 batch 8 | 9 | 70 |\n"), std::string::npos)
        << text;
}

// A quarter of a million waits are no quarter of a million cells.
TEST_F(ReportResults, WaitsOfAThousandRanksAreDrawnInBlocks) {
    std::string waits, row;
    for (int a = 0; a < 500; ++a) row += fmt::format("{}{}", a == 0 ? "[" : ",", a == 77 ? 9 : 1);
    for (int e = 0; e < 500; ++e) waits += (e == 0 ? "[" : ",") + row + "]";
    std::string json = throughput_json("500:500", 1000, 8, 0, 50);
    json.insert(json.find("\"valid\""), "\"wait_us\": " + waits + "], ");
    const Section section = wait_section(read_results({file("a.json", json)}, ""));
    const auto& figure = std::get<Figure>(section.blocks.at(0));
    EXPECT_LT(figure.draw("id", 1000).size(), 1u << 20);
    EXPECT_NE(figure.caption.find("Of each block of ranks the most."), std::string::npos);
    ASSERT_EQ(figure.data.rows.size(), 500u);
    EXPECT_EQ(figure.data.rows[77][1].value, 9);
}

TEST_F(ReportResults, LinesThatAreLeftOutAreTold) {
    std::vector<std::string> paths;
    for (int ranks = 1; ranks <= 13; ++ranks)
        for (const int batch : {4, 8})
            paths.push_back(
                file(fmt::format("{}-{}.json", ranks, batch),
                     throughput_json(fmt::format("colocated:{}", ranks), ranks, batch, 0, batch)));
    const std::string html = to_html(make_document(read_results(paths, ""), "t"));
    size_t num = 0;  // output, first token, frontier
    for (size_t at = 0;
         (at = html.find("The first 12 of 13 cases are drawn.", at)) != std::string::npos; ++at)
        ++num;
    EXPECT_EQ(num, 3u);
}

// Steps of 100 us with `num` spans each.
std::string steps_json(int num_steps, int num) {
    std::string events =
        R"({"traceEvents":[{"name":"experts","ph":"X","pid":0,"tid":0,"ts":0,"dur":900})";
    for (int step = 0; step < num_steps; ++step)
        for (int i = 0; i < num; ++i)
            events += fmt::format(R"(,{{"name":"{}","ph":"X","pid":0,"tid":1,"ts":{},"dur":0.01}})",
                                  i == 0 ? "embed" : "gate", 100 * step + 100.0 * i / num);
    return events + "]}";
}

TEST_F(ReportResults, TotalsOfATimelineAddUp) {
    const std::string json = R"({"traceEvents":[
{"name":"step","ph":"X","pid":0,"tid":0,"ts":0,"dur":100},
{"name":"combine_wait","ph":"X","pid":0,"tid":0,"ts":10,"dur":60},
{"name":"experts","ph":"X","pid":0,"tid":0,"ts":20,"dur":50.001},
{"name":"gate","ph":"X","pid":0,"tid":0,"ts":70,"dur":10},
{"name":"exchange","ph":"X","pid":0,"tid":1,"ts":15,"dur":50}]})";
    const Section section = timeline_section(read_results({file("t.json", json)}, ""));
    std::map<std::string, double> totals_ms;
    for (const auto& row : std::get<Figure>(section.blocks.at(0)).data.rows)
        totals_ms[row[0].text] = *row[2].value;
    EXPECT_NEAR(totals_ms["between phases"], 0.03, 1e-5);
    EXPECT_NEAR(totals_ms["combine wait"], 0.01, 1e-5);
    EXPECT_NEAR(totals_ms["experts"], 0.05, 1e-5);
    EXPECT_NEAR(totals_ms["gate"], 0.01, 1e-5);
    EXPECT_NEAR(totals_ms["exchange"], 0.05, 1e-5);
}

TEST_F(ReportResults, TimelinesSayWhichPartTheyShow) {
    const auto caption = [&](const std::string& json) {
        const Section section = timeline_section(read_results({file("t.json", json)}, ""));
        return std::get<Figure>(section.blocks.at(0)).caption;
    };
    for (const auto& [json, text] :
         {std::pair{steps_json(2, 50),
                    "900\xC2\xA0\xC2\xB5s of 900\xC2\xA0\xC2\xB5s traced, from 0\xC2\xA0s after "
                    "the start: all of it."},
          {steps_json(5, 50), ": a step of median length."},
          {steps_json(5, 10), ": a step of median length and the next ones."},
          {steps_json(5, 5000), "80\xC2\xA0\xC2\xB5s of 900\xC2\xA0\xC2\xB5s traced"},
          {steps_json(5, 5000), ": the beginning of a step of median length."}})
        EXPECT_NE(caption(json).find(text), std::string::npos) << caption(json);
    std::string two = R"({"traceEvents":[{"name":"gate","ph":"X","pid":0,"tid":0,"ts":0,"dur":1})";
    for (int i = 0; i < 20; ++i)  // of two micro-batches, 30 us apart
        two += fmt::format(R"(,{{"name":"embed","ph":"X","pid":0,"tid":0,"ts":{},"dur":1,"args":)"
                           R"({{"micro_batch":{}}}}})",
                           i / 2 * 1000 + i % 2 * 30, i % 2);
    EXPECT_NE(caption(two + "]}").find("from 5\xC2\xA0ms after"), std::string::npos)
        << caption(two + "]}");
}

TEST_F(ReportResults, CasesWhoseChecksFailedAreTheBestOfNothing) {
    std::string invalid = throughput_json("colocated:2", 2, 8, 0, 999);
    invalid.replace(invalid.find("\"yes\""), 5, "\"NO\"");
    std::string wrong = exchange_json(1, 0);
    wrong.replace(wrong.find("\"wrong\": 0"), 10, "\"wrong\": 3");
    const Results results =
        read_results({file("a.json", throughput_json("colocated:1", 1, 8, 0, 50)),
                      file("b.json", throughput_json("colocated:2", 2, 8, 0, 70)),
                      file("c.json", invalid), file("d.json", wrong)},
                     "");
    const std::string text = to_markdown(make_document(results, "t"));
    EXPECT_NE(text.find("- Most output: **70 tokens/s** (b: "), std::string::npos) << text;
    EXPECT_NE(text.find("(ucx 2:2 \\<b\\>&amp;, 256 tokens)"), std::string::npos) << text;
    EXPECT_EQ(text.find("| colocated:2 | 999 |"), std::string::npos);
    EXPECT_NE(text.find("INVALID: 1 of 1 cases"), std::string::npos);
}

TEST_F(ReportResults, DifferencesBeyondTheNoiseCount) {
    const auto verdict = [&](double scale, double spread) {
        const Results results = read_results({file("new.json", exchange_json(scale, spread))},
                                             file("old.json", exchange_json(1, spread)));
        const std::vector<Comparison> all = compare(*results.baseline, results.benches[0], nullptr);
        EXPECT_EQ(all.size(), 4u);
        EXPECT_NEAR(all[0].change, scale - 1, 1e-12);
        EXPECT_NEAR(all[0].noise, std::max(0.02, 2 * spread), 1e-12);
        return all[0].verdict;
    };
    EXPECT_EQ(verdict(1.5, 0.01), Verdict::worse);
    EXPECT_EQ(verdict(0.5, 0.01), Verdict::better);
    EXPECT_EQ(verdict(1.015, 0.0), Verdict::within_noise);
    EXPECT_EQ(verdict(1.15, 0.10), Verdict::within_noise);
    EXPECT_EQ(judge(0.1, 0.02, true), Verdict::better);
    EXPECT_EQ(judge(-0.1, 0.02, true), Verdict::worse);
    EXPECT_DOUBLE_EQ(spread_of({90, 100, 120}), 0.15);
    EXPECT_DOUBLE_EQ(spread_of({100}), 0);
}

// From the best to the worst repetition, over the median.
TEST_F(ReportResults, SpreadOfARowIsTwiceItsNoise) {
    for (std::string json : {std::string(kScaling), loading_json(1)}) {
        const std::string before = "\"skipped\": \"\",";
        for (size_t at = 0; (at = json.find(before, at)) != std::string::npos; ++at)
            json.replace(at, before.size(), before + " \"spread\": 0.25,");
        const Results results = read_results({file("new.json", json)}, file("old.json", json));
        for (const Comparison& one : compare(*results.baseline, results.benches[0], nullptr))
            EXPECT_DOUBLE_EQ(one.noise, 0.25) << one.name;
    }
}

TEST_F(ReportResults, OtherWorkloadsThanTheBaselinesAreTold) {
    const auto warnings = [&](std::string old) {
        const Results results =
            read_results({file("new.json", exchange_json(1, 0))}, file("old.json", old));
        std::string text;
        for (const Block& block : comparison_section(results).blocks)
            if (const auto* paragraph = std::get_if<Paragraph>(&block))
                text += paragraph->is_warning ? paragraph->text : "";
        return text;
    };
    std::string old = exchange_json(1, 0);
    old.replace(old.find("ferry 0.1"), 9, "ferry 0.2");
    EXPECT_EQ(warnings(old), "");
    old.replace(old.find("\"ranks\": 4"), 10, "\"ranks\": 8, \"top-k\": 2");
    EXPECT_EQ(
        warnings(old),
        "new: not measured as the baseline was: ranks: 4, was 8; top-k: \xE2\x80\x93, was 2.");
}

TEST_F(ReportResults, MeasurementsOfOneSideAreNamed) {
    std::string other = exchange_json(1, 0.01);
    other.replace(other.find("ucx 1:3"), 7, "ucx 9:9");
    const Results results =
        read_results({file("new.json", exchange_json(1, 0.01))}, file("old.json", other));
    std::vector<std::string> missing;
    const std::vector<Comparison> all = compare(*results.baseline, results.benches[0], &missing);
    EXPECT_EQ(all.size(), 3u);
    ASSERT_EQ(missing.size(), 2u);
    EXPECT_EQ(missing[0], "ucx 1:3 | x, 16 tokens (new only)");
    EXPECT_EQ(missing[1], "ucx 9:9 | x, 16 tokens (baseline only)");
}

}  // namespace
}  // namespace ferry::report
