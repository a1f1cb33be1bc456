// `ferry bench exchange`: dispatch and combine between the ranks of this job, without a model.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "comm/exchange_bench.h"
#include "comm/watchdog.h"
#include "launch/bench_arguments.h"
#include "launch/bench_report.h"
#include "launch/command_bench.h"
#include "launch/command_line.h"
#include "launch/text_output.h"
#include "launch/throughput_run.h"
#include "launch/versions.h"
#include "runtime/input_file.h"
#include "runtime/placements.h"
#include "runtime/routing_record.h"
#include "runtime/run_trace.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

const std::map<std::string, DType> kDTypes{
    {"f32", DType::f32}, {"bf16", DType::bf16}, {"fp8", DType::fp8_e4m3}};
const std::map<std::string, ExchangeMode> kModes{{"auto", ExchangeMode::automatic},
                                                 {"bounded", ExchangeMode::bounded},
                                                 {"sized", ExchangeMode::sized}};
const std::map<std::string, CombineMode> kCombines{{"exact", CombineMode::exact},
                                                   {"reduced", CombineMode::reduced}};

struct Arguments {
    std::vector<std::string> transports{"auto"}, layouts, routings{"uniform"}, dtypes{"bf16"},
        modes{"auto"};
    std::string combine = "exact", json, csv, trace;
    std::vector<int64_t> tokens{1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096}, dims{7168};
    int64_t topk = 8;
    int num_experts = 256, warmup = 5, repetitions = 50;
    double skew = 1.0;
    bool wait_matrix = false, stages = false;
};

const std::vector<BenchColumn> kColumns{
    {.key = "case", .heading = "case"},
    {.key = "tokens", .heading = "tokens"},
    {.key = "arrived_us", .heading = "arrived median"},
    {.key = "dispatch_min_us", .heading = "dispatch min"},
    {.key = "dispatch_us", .heading = "median"},
    {.key = "dispatch_p99_us", .heading = "p99"},
    {.key = "combine_min_us", .heading = "combine min"},
    {.key = "combine_us", .heading = "median"},
    {.key = "combine_p99_us", .heading = "p99"},
    {.key = "both_min_us", .heading = "both min"},
    {.key = "both_us", .heading = "median"},
    {.key = "both_p99_us", .heading = "p99"},
    {.key = "bytes", .heading = "MB", .num_digits = 3, .scale = 1e-6},
    {.key = "algorithm_GBps", .heading = "alg GB/s", .num_digits = 2},
    {.key = "bus_GBps", .heading = "bus GB/s", .num_digits = 2},
    {.key = "wrong", .heading = "#wrong"}};

// "2:4": attention and expert ranks; "colocated".
LayoutOptions parse_layout(const std::string& text) {
    if (text == "colocated") return {.mode = LayoutMode::colocated, .tp_size = 1};
    LayoutOptions layout{.tp_size = 1};
    char rest = 0;
    if (std::sscanf(text.c_str(), "%d:%d%c", &layout.attention_ranks, &layout.expert_ranks,
                    &rest) != 2)
        throw Error(ErrorKind::usage,
                    "--layout {}: write attention:expert ranks (2:4), or colocated", text);
    return layout;
}

struct BenchRouting {
    std::vector<double> popularity;
    std::vector<std::vector<int32_t>> replay;
    int64_t topk = 0;
};

// uniform, power, hot, or a file of an earlier run. Collective.
BenchRouting make_routing(const std::string& name, const Arguments& arguments, World& world) {
    const int num = arguments.num_experts;
    if (name == "uniform") return {uniform_popularity(num), {}, arguments.topk};
    if (name == "power") return {power_popularity(num, arguments.skew), {}, arguments.topk};
    if (name == "hot") return {hot_popularity(num), {}, arguments.topk};
    constexpr int64_t kMaxBytes = int64_t{1} << 30;
    if (world.rank() == 0 && !std::filesystem::exists(name))
        throw Error(ErrorKind::usage,
                    "--routing {}: neither uniform, power or hot, nor a file that log.routing or "
                    "log.expert_load wrote",
                    name);
    const std::string text = world.broadcast(
        world.rank() == 0 ? read_text_file(name, kMaxBytes, ErrorKind::input) : std::string(), 0);
    if (text.starts_with("{\"first_layer\"")) {
        std::vector<double> popularity;
        for (const std::vector<int64_t>& layer : parse_expert_load(text, name).rows) {
            popularity.resize(std::max(popularity.size(), layer.size()));
            for (size_t e = 0; e < layer.size(); ++e)
                popularity[e] += static_cast<double>(layer[e]);
        }
        return {std::move(popularity), {}, arguments.topk};
    }
    RoutingRecord record = parse_routing_record(text, name);
    return {uniform_popularity(static_cast<int>(record.num_experts)), std::move(record.choices),
            record.topk};
}

std::string host_names(const World& world) {
    std::vector<std::string> names;
    for (int rank = 0; rank < world.size(); ++rank)
        if (std::ranges::find(names, world.host(rank)) == names.end())
            names.push_back(world.host(rank));
    return fmt::format("{}", fmt::join(names, " "));
}

std::string describe_stages(const ExchangeBenchResult& result, const ExchangeBenchCase& bench_case,
                            const World& world, const std::string& name, int64_t tokens) {
    const Layout layout = make_layout(bench_case.layout, world.node_of_rank());
    std::string text =
        fmt::format("\n{} {}, {} tokens: us of every rank\n", result.transport, name, tokens);
    text += fmt::format("  {:18}", "");
    for (const Zone zone : kExchangeZones) text += fmt::format(" {:>13}", to_string(zone));
    text += '\n';
    for (int rank = 0; rank < world.size(); ++rank) {
        const bool attends = layout.attention_rank(rank) >= 0;
        const char* role = layout.expert_rank(rank) < 0 ? "attention" : attends ? "both" : "expert";
        text += fmt::format("  rank {:3} {:9}", rank, role);
        for (const double us : result.stage_us[static_cast<size_t>(rank)])
            text += fmt::format(" {:13.1f}", us);
        text += '\n';
    }
    return text;
}

void bench_exchange_on(World& world, const Arguments& arguments) {
    if (world.rank() == 0)
        for (const std::string& path : {arguments.json, arguments.csv, arguments.trace})
            check_writable(path);
    std::optional<Watchdog> watchdog;
    if (world.size() > 1) watchdog.emplace(world, WatchdogOptions{});
    std::vector<std::string> layouts = arguments.layouts;
    if (layouts.empty())
        layouts = {world.size() == 1
                       ? "colocated"
                       : fmt::format("{}:{}", world.size() / 2, world.size() - world.size() / 2)};
    BenchReport report("exchange", kColumns);
    report.add_parameter("ranks", int64_t{world.size()});
    report.add_parameter("nodes", int64_t{world.num_nodes()});
    report.add_parameter("hosts", host_names(world));
    report.add_section("hosts", hosts_json(world));
    describe_machine(report);
    std::vector<BenchRouting> routings;
    for (const std::string& name : arguments.routings)
        routings.push_back(make_routing(name, arguments, world));
    report.add_parameter("experts", static_cast<int64_t>(routings[0].popularity.size()));
    report.add_parameter("top-k", routings[0].topk);
    report.add_parameter("combine", arguments.combine);
    report.add_parameter("warm-up", int64_t{arguments.warmup});
    report.add_parameter("repetitions", int64_t{arguments.repetitions});
    const size_t num_cases = arguments.transports.size() * layouts.size() *
                             arguments.routings.size() * arguments.dtypes.size() *
                             arguments.modes.size() * arguments.dims.size() *
                             arguments.tokens.size();
    int64_t num_wrong = 0;
    std::string matrix;
    bool stopped = false;  // by a signal: cases that are done are reported
    const auto run = [&](ExchangeBenchCase bench_case, const std::string& name, int64_t tokens) {
        stopped = stopped || world.all_max(stop_requested() ? 1 : 0) > 0;
        if (stopped) return;
        std::optional<RunTrace> run_trace;
        if (!arguments.trace.empty()) run_trace.emplace(world, true);
        const ExchangeBenchResult result = bench_exchange(world, bench_case);
        if (run_trace) {
            run_trace->finish();
            const std::string one = fmt::format("{} {} {}", bench_case.transport, name, tokens);
            run_trace->write(world, make_layout(bench_case.layout, world.node_of_rank()),
                             num_cases > 1 ? trace_path_of(arguments.trace, one) : arguments.trace);
        }
        num_wrong += result.num_wrong;
        report.add_row({fmt::format("{} {}", result.transport, name), tokens,
                        result.arrived.median_us, result.dispatch.min_us, result.dispatch.median_us,
                        result.dispatch.p99_us, result.combine.min_us, result.combine.median_us,
                        result.combine.p99_us, result.both.min_us, result.both.median_us,
                        result.both.p99_us,
                        static_cast<double>(result.dispatch_bytes + result.combine_bytes),
                        result.algorithm_gb_per_s, result.bus_gb_per_s, result.num_wrong});
        report.add_detail("wait_us", nlohmann::json(result.wait_us).dump());
        report.add_detail("stage_us", nlohmann::json(result.stage_us).dump());
        if (arguments.stages) matrix += describe_stages(result, bench_case, world, name, tokens);
        if (!arguments.wait_matrix) return;
        matrix += fmt::format(
            "\n{} {}, {} tokens: us that rows of each attention rank came after "
            "the first\n",
            result.transport, name, tokens);
        for (size_t e = 0; e < result.wait_us.size(); ++e) {
            matrix += fmt::format("  expert rank {:3}:", e);
            for (const double us : result.wait_us[e]) matrix += fmt::format(" {:8.1f}", us);
            matrix += '\n';
        }
    };
    for (const std::string& transport : arguments.transports)
        for (const std::string& layout : layouts)
            for (size_t r = 0; r < routings.size(); ++r) {
                const BenchRouting& choices = routings[r];
                for (const std::string& dtype : arguments.dtypes)
                    for (const std::string& mode : arguments.modes)
                        for (const int64_t dim : arguments.dims)
                            for (const int64_t tokens : arguments.tokens)
                                run({.transport = transport,
                                     .layout = parse_layout(layout),
                                     .exchange = {.dim = dim,
                                                  .topk = choices.topk,
                                                  .max_tokens = tokens,
                                                  .dtype = kDTypes.at(dtype),
                                                  .mode = kModes.at(mode),
                                                  .combine = kCombines.at(arguments.combine)},
                                     .popularity = choices.popularity,
                                     .replay = choices.replay,
                                     .num_warmups = arguments.warmup,
                                     .num_repetitions = arguments.repetitions},
                                    fmt::format("{} {} {} {} x {}", layout, arguments.routings[r],
                                                dtype, mode, dim),
                                    tokens);
            }
    if (world.rank() == 0) {
        std::string versions = describe_versions();
        std::replace(versions.begin(), versions.end(), '\n', ';');
        report.add_parameter("versions", versions);
        report.add_parameter("environment", describe_environment());
        report.publish(arguments.json, arguments.csv);
        fmt::print("{}", matrix);
    }
    if (num_wrong > 0)
        throw Error(ErrorKind::communication, "{} elements came back wrong", num_wrong);
}

template <typename Map>
std::vector<std::string> keys(const Map& map) {
    std::vector<std::string> names;
    for (const auto& [name, value] : map) names.push_back(name);
    return names;
}

}  // namespace

void add_bench_exchange(Command& bench) {
    Command command = bench.add_command(
        "exchange",
        "Dispatch and combine between the ranks of this job (mpirun, srun), without a model: us "
        "from a common start to the last rank, GB/s per attention rank, elements that came back "
        "wrong. Lists are swept");
    const auto arguments = std::make_shared<Arguments>();
    const auto list = [&](const char* name, auto& values, const char* help) {
        return command.option(name, values, help).comma_separated().show_default();
    };
    list("--transport", arguments->transports, "auto, mpi, ucx, self");
    list("--layout", arguments->layouts,
         "Attention:expert ranks (2:4), or colocated; default: half and half");
    list("--routing", arguments->routings,
         "uniform; power: expert e as (e + 1)^-skew; hot: one expert gets all tokens; a FILE: "
         "the choices that log.routing recorded, in order, or random ones as often as "
         "log.expert_load counted");
    command.option("--skew", arguments->skew, "Of --routing power")
        .in_range(0.0, 10.0)
        .show_default();
    list("--dtype", arguments->dtypes, "Of rows on the wire").one_of(keys(kDTypes));
    list("--mode", arguments->modes, "As exchange.mode").one_of(keys(kModes));
    command.option("--combine", arguments->combine, "As exchange.combine")
        .one_of(keys(kCombines))
        .show_default();
    list("--tokens", arguments->tokens, "Of every attention rank").in_range(0, 1 << 16);
    list("--dim", arguments->dims, "Hidden size").in_range(1, 1 << 16);
    command.option("--topk", arguments->topk, "Experts of a token").in_range(1, 64).show_default();
    command.option("--experts", arguments->num_experts, "Routed experts")
        .in_range(1, 1 << 14)
        .show_default();
    command.option("--warmup", arguments->warmup, "Exchanges before timing")
        .in_range(0, 10000)
        .show_default();
    command.option("--repetitions", arguments->repetitions, "Exchanges to time")
        .in_range(1, 1000000)
        .show_default();
    command.flag("--wait-matrix", arguments->wait_matrix,
                 "Also print which attention rank made which expert rank wait (JSON always tells)");
    command.flag("--stages", arguments->stages,
                 "Also print where the time of every rank goes: packing (on expert ranks: putting "
                 "in order), waiting, replying, summing (JSON always tells)");
    command.option("--trace", arguments->trace,
                   "Write a Chrome/Perfetto trace of all exchanges to this file; of several "
                   "cases, each to a file named after it");
    command.option("--json", arguments->json, "Write JSON to this file; - : to stdout");
    command.option("--csv", arguments->csv, "Write CSV to this file; - : to stdout");
    command.on_run([arguments] {
        run_bench_job([&](World& world) { bench_exchange_on(world, *arguments); });
    });
}

}  // namespace ferry
