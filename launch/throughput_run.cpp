#include "launch/throughput_run.h"

#include <fmt/chrono.h>
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <nlohmann/json.hpp>
#include <set>

#include "base/cores.h"
#include "launch/gpu_facts.h"
#include "launch/status_file.h"
#include "launch/versions.h"
#include "runtime/run_trace.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

template <typename T>
std::vector<T> or_else(const std::vector<T>& list, T value) {
    return list.empty() ? std::vector<T>{std::move(value)} : list;
}

std::string value_of(const Config& config, const std::string& key) {
    Config copy = config;
    for (const Field& field : config_fields(copy))
        if (field.key == key) return value_text(field);
    return "";
}

// Expert ranks by expert, when there is one answer for all layers and no copies.
std::vector<int> ranks_of_experts(const RankFabric& fabric) {
    const std::vector<Placement>& placements = fabric.options().placements;
    if (placements.size() != 1 || placements[0].num_copies() != placements[0].num_experts())
        return {};
    std::vector<int> ranks;
    for (int expert = 0; expert < placements[0].num_experts(); ++expert)
        ranks.push_back(placements[0].copies(expert)[0].expert_rank);
    return ranks;
}

// "2:4:1" as its numbers; empty when any is not a positive number.
std::vector<int> numbers_of(std::string_view text) {
    std::vector<int> numbers;
    for (const char *at = text.data(), *end = at + text.size();; ++at) {
        int number = 0;
        const auto [after, error] = std::from_chars(at, end, number);
        if (error != std::errc() || number < 1) return {};
        numbers.push_back(number);
        if (after == end) return numbers;
        if (*after != ':') return {};
        at = after;
    }
}

}  // namespace

LayoutChoice parse_layout_choice(const std::string& text, const std::string& option) {
    LayoutChoice choice{.text = text};
    constexpr std::string_view kColocated = "colocated";
    if (text == kColocated) return choice;
    if (text.starts_with("colocated:")) {
        const std::vector<int> numbers = numbers_of(text.substr(kColocated.size() + 1));
        if (numbers.size() == 1 || numbers.size() == 2) {
            choice.attention_ranks = numbers[0];
            if (numbers.size() == 2) choice.tp_size = numbers[1];
            return choice;
        }
    }
    const std::vector<int> numbers = numbers_of(text);
    if (numbers.size() == 2 || numbers.size() == 3) {
        choice.mode = Config::Layout::Mode::disaggregated;
        choice.attention_ranks = numbers[0];
        choice.expert_ranks = numbers[1];
        choice.tp_size = numbers.size() == 3 ? numbers[2] : 1;
        return choice;
    }
    throw Error(ErrorKind::usage,
                "{} {}: write attention:expert ranks (2:2), with the TP size (2:2:2) if it is not "
                "1, or colocated, colocated:RANKS, colocated:RANKS:TP",
                option, text);
}

LayoutChoice layout_choice_of(const Config& config, int num_ranks) {
    LayoutChoice choice{.mode = config.layout.mode,
                        .attention_ranks = static_cast<int>(config.layout.attention_ranks),
                        .expert_ranks = static_cast<int>(config.layout.expert_ranks),
                        .tp_size = static_cast<int>(config.layout.tp_size)};
    const std::string tp = choice.tp_size > 1 ? fmt::format(":{}", choice.tp_size) : "";
    if (choice.mode == Config::Layout::Mode::disaggregated) {
        fill_roles(choice.attention_ranks, choice.expert_ranks, num_ranks);
        choice.text = fmt::format("{}:{}{}", choice.attention_ranks, choice.expert_ranks, tp);
    } else if (choice.attention_ranks > 0)
        choice.text = fmt::format("colocated:{}{}", choice.attention_ranks, tp);
    else
        choice.text = "colocated";
    return choice;
}

std::vector<ThroughputCase> ThroughputSweep::cases(const Config& config) const {
    std::vector<ThroughputCase> all;
    for (const LayoutChoice& layout : layouts)
        for (const std::string& transport :
             or_else(transports, value_of(config, "exchange.transport")))
            for (const std::string& mode : or_else(modes, value_of(config, "exchange.mode")))
                for (const int64_t batch : or_else(batches, config.engine.max_batch))
                    for (const int64_t micro : or_else(micro_batches, config.engine.micro_batches))
                        for (const int64_t num : or_else(threads, config.engine.threads)) {
                            ThroughputCase each{.layout = layout.text,
                                                .tp_size = layout.tp_size,
                                                .max_batch = batch,
                                                .micro_batches = micro,
                                                .mode = mode,
                                                .transport = transport,
                                                .threads = static_cast<int>(num)};
                            each.settings = fmt::format("batch {}", batch);
                            if (transports.size() > 1) each.settings += " " + transport;
                            if (modes.size() > 1) each.settings += " " + mode;
                            if (micro_batches.size() > 1)
                                each.settings += fmt::format(" micro-batches {}", micro);
                            if (threads.size() > 1)
                                each.settings += fmt::format(" threads {}", num);
                            all.push_back(std::move(each));
                        }
    return all;
}

Config ThroughputRunner::config_of(const ThroughputCase& about, const LayoutChoice& layout) const {
    Config config = config_;
    config.layout.mode = layout.mode;
    config.layout.attention_ranks = layout.attention_ranks;
    config.layout.expert_ranks = layout.expert_ranks;
    config.layout.tp_size = layout.tp_size;
    const std::vector<Field> fields = config_fields(config);
    for (const std::string& assignment :
         {"exchange.transport=" + about.transport, "exchange.mode=" + about.mode,
          fmt::format("engine.max_batch={}", about.max_batch),
          fmt::format("engine.micro_batches={}", about.micro_batches),
          fmt::format("engine.threads={}", about.threads)})
        assign_text(fields, assignment);
    check_config(config, {}, "command line");
    return config;
}

ThroughputOutcome ThroughputRunner::run(ThroughputCase about, const LayoutChoice& layout,
                                        const std::vector<WorkloadRequest>& workload,
                                        ThroughputOptions options) {
    const int num_ranks = layout.num_ranks(world_.size());
    about.num_ranks = num_ranks;
    about.attention_ranks = layout.attention_ranks > 0 ? layout.attention_ranks : num_ranks;
    about.expert_ranks =
        layout.mode == Config::Layout::Mode::disaggregated ? layout.expert_ranks : num_ranks;
    if (num_ranks > world_.size()) {
        about.skipped = fmt::format("needs {} ranks, this job has {}", num_ranks, world_.size());
        return {.about = std::move(about)};
    }
    const Config config = config_of(about, layout);
    std::unique_ptr<World> part = world_.first_ranks(num_ranks);
    ThroughputOutcome outcome;
    if (part != nullptr)
        outcome = run_on(*part, std::move(about), config, workload, std::move(options));
    part.reset();
    world_.wait_quietly();  // ranks without a part in it come here at once
    return outcome;
}

ThroughputOutcome ThroughputRunner::run_on(World& part, ThroughputCase about, const Config& config,
                                           const std::vector<WorkloadRequest>& workload,
                                           ThroughputOptions options) {
    const ModelConfig& shape = model_.source->config();
    reset_peak_memory();
    LoadedEngine loaded(config, model_, part, {});
    about.num_nodes = part.num_nodes();
    about.num_gpus = loaded.num_gpus();
    about.transport = std::string(loaded.transport_name());
    about.threads = loaded.num_threads();
    if (options.num_warmup_requests < 0)
        options.num_warmup_requests = config.engine.max_batch * about.attention_ranks;
    const Layout layout = layout_of(config, part);
    StatusFile status(part.rank() == 0 ? status_dir_ : "",
                      {.command = "bench " + about.name(),
                       .model = model_.name,
                       .layout = layout_text(layout),
                       .num_requests = static_cast<int64_t>(workload.size()),
                       .ranks = describe_ranks(layout, part)},
                      [&] { return take_snapshot(part.size(), watchdog_); });
    options.after_step = [&](Engine& engine, int64_t num_finished) {
        note_engine(engine, progress_state());
        progress_state().set(Tally::done, num_finished);
        status.update();
    };
    std::optional<RunTrace> run_trace;
    options.before_repetition = [&](bool last) {
        if (last && !about.trace.empty()) run_trace.emplace(part, true, &loaded.device());
    };
    if (watchdog_ != nullptr) watchdog_->arm(true);
    ThroughputOutcome outcome;
    outcome.repetitions = measure_throughput(loaded, shape, part, workload, options);
    if (watchdog_ != nullptr) watchdog_->arm(false);
    if (run_trace) {
        run_trace->finish();
        run_trace->write(part, loaded.fabric().layout(), about.trace);
    } else {
        about.trace.clear();  // stopped before the repetition that is traced
    }
    status.finish(stop_requested() ? JobState::stopped : JobState::finished);
    if (outcome.repetitions.empty()) about.skipped = "stopped";
    outcome.hosts = part.host_of_node();
    outcome.experts_of_rank = ranks_of_experts(loaded.fabric());
    outcome.num_requests = static_cast<int64_t>(workload.size());
    outcome.cores = machine_info().cores;
    outcome.about = std::move(about);
    loaded.unload();
    return outcome;
}

std::string config_json(Config config) {
    Json json = Json::object();
    for (const Field& field : config_fields(config)) json[field.key] = value_text(field);
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string hosts_json(World& world) {
    const MachineInfo machine = machine_info();
    const Json own{{"cpu", machine.cpu},
                   {"kernel", machine.kernel},
                   {"cores", machine.cores},
                   {"memory_bytes", machine.memory_bytes},
                   {"gpus", gpu_facts().gpus.size()}};
    const std::vector<std::string> all = world.all_gather(own.dump());
    const std::vector<std::string> cores = world.all_gather(core_ranges(allowed_cores()));
    Json hosts = Json::array();
    for (int node = 0; node < world.num_nodes(); ++node) {
        Json host{{"node", node}, {"host", world.host_of_node()[static_cast<size_t>(node)]}};
        Json ranks = Json::array();
        std::set<int> usable;
        for (int rank = 0; rank < world.size(); ++rank) {
            if (world.node_of_rank()[static_cast<size_t>(rank)] != node) continue;
            if (ranks.empty()) host.update(Json::parse(all[static_cast<size_t>(rank)]));
            ranks.push_back(rank);
            for (const int core : parse_core_ranges(cores[static_cast<size_t>(rank)]))
                usable.insert(core);
        }
        host["usable_cores"] = usable.size();
        host["ranks"] = std::move(ranks);
        hosts.push_back(std::move(host));
    }
    return hosts.dump();
}

std::string versions_json() {
    Json json = Json::object();
    for (const auto& [name, version] : list_versions()) json[name] = version;
    return json.dump();
}

std::string time_text() {
    return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

}  // namespace ferry
