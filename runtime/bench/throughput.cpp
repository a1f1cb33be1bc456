#include "runtime/bench/throughput.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "base/random.h"
#include "comm/progress_state.h"
#include "runtime/checksum.h"
#include "runtime/placements.h"
#include "runtime/request_loop.h"

namespace ferry {
namespace {

constexpr double kLongestNapS = 1e-3;  // while nothing has arrived

template <typename T>
std::string bytes_of(const T* data, size_t count) {
    return std::string(reinterpret_cast<const char*>(data), count * sizeof(T));
}
template <typename T>
std::vector<T> values_of(const std::string& bytes) {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}
template <typename T>
std::vector<T> gather_all(World& world, const std::vector<T>& own) {
    std::vector<T> all;
    for (const std::string& bytes : world.all_gather(bytes_of(own.data(), own.size())))
        for (const T& value : values_of<T>(bytes)) all.push_back(value);
    return all;
}

// Counts and hashes what comes, keeps nothing.
class CountingSink : public ResultSink {
  public:
    CountingSink(const std::vector<WorkloadRequest>& workload, RankReport& report)
        : workload_(workload), report_(report) {}
    bool is_done(int64_t, int64_t) const override { return false; }
    void accept(Completion completion) override {
        const auto index = static_cast<size_t>(completion.index);
        const auto num_tokens = static_cast<int64_t>(completion.tokens.size());
        ++report_.num_finished;
        report_.num_failed += completion.finish_reason == FinishReason::error ? 1 : 0;
        report_.num_wrong_length += num_tokens == workload_[index].max_tokens ? 0 : 1;
        report_.num_output_tokens += num_tokens;
        report_.outputs +=
            mix64(mix64(index) ^ checksum(completion.tokens.data(), completion.tokens.size() * 4));
        if (completion.finish_reason == FinishReason::error && first_error_.empty())
            first_error_ = completion.error;
    }
    const std::string& first_error() const { return first_error_; }

  private:
    const std::vector<WorkloadRequest>& workload_;
    RankReport& report_;
    std::string first_error_;
};

class Measurement {
  public:
    Measurement(LoadedEngine& loaded, const ModelConfig& model, World& world,
                const ThroughputOptions& options)
        : loaded_(loaded), model_(model), world_(world), options_(options) {}

    Repetition run(const std::vector<WorkloadRequest>& workload) {
        std::vector<double> arrivals_s;
        int64_t num_tokens = 0;
        for (const WorkloadRequest& request : workload) {
            arrivals_s.push_back(request.arrival_s);
            num_tokens += request.max_tokens;
        }
        LatencyLog log([] { return trace_now_ns(); }, arrivals_s, num_tokens);
        RankReport report;
        describe(report);
        const ExpertLoad load_before = gather_expert_load(loaded_.fabric(), model_, world_);
        const Lateness lateness_before = lateness();
        const int64_t in_flight_before = in_flight_ns();
        if (loaded_.engine() != nullptr) loaded_.engine()->forget_prefixes();
        report.machine.before = sample_machine();
        world_.barrier();
        trace().reset_totals();
        log.start();
        const int64_t begin_ns = trace_now_ns();
        std::string error;
        if (Engine* engine = loaded_.engine())
            error = run_attention(*engine, workload, log, report, begin_ns);
        else
            loaded_.serve_experts();
        report.wall_ns = trace_now_ns() - begin_ns;
        report.zones = trace().totals();
        report.machine.after = sample_machine();
        if (loaded_.engine() != nullptr) loaded_.close();
        loaded_.reopen();
        report.in_flight_ns = in_flight_ns() - in_flight_before;
        note_memory(report);
        check_failures(report, error);
        return gather(report, log, load_before, lateness_before);
    }

  private:
    struct Lateness {
        std::vector<int64_t> ns;
        int64_t num = 0;
    };

    void describe(RankReport& report) const {
        report.rank = world_.rank();
        report.node = report.machine.node = world_.node();
        report.attention = loaded_.engine() != nullptr;
        report.expert = loaded_.fabric().expert_rank() >= 0;
        report.weight_bytes = loaded_.model().model().weight_bytes();
        if (report.attention) report.cache_bytes = loaded_.engine()->cache_bytes();
    }
    static void note_memory(RankReport& report) {
        const MemoryUse memory = memory_use();
        report.resident_bytes = memory.resident_bytes;
        report.peak_bytes = memory.peak_bytes;
    }
    Lateness lateness() const {
        if (loaded_.experts() == nullptr) return {};
        const std::span<const int64_t> ns = loaded_.experts()->lateness_ns();
        return {{ns.begin(), ns.end()}, loaded_.experts()->num_batches()};
    }
    int64_t in_flight_ns() const {
        return loaded_.fabric().has_exchange() ? loaded_.fabric().exchange().times().in_flight_ns
                                               : 0;
    }

    std::string run_attention(Engine& engine, const std::vector<WorkloadRequest>& workload,
                              LatencyLog& log, RankReport& report, int64_t begin_ns) {
        WorkloadReader reader(workload, static_cast<int64_t>(workload.size()), options_.seed,
                              [&log] { return log.now_s(); });
        CountingSink sink(workload, report);
        engine.set_token_hook(
            [&log](const Request& request, int32_t) { log.token(request.index); });
        const int64_t preemptions = engine.num_preemptions();
        const int64_t drafts = engine.num_drafts();
        const int64_t accepted_drafts = engine.num_accepted_drafts();
        int64_t last_ns = begin_ns;
        double last_step_s = log.now_s();
        const LoopHooks hooks{.stop_requested = options_.stop_requested,
                              .after_step =
                                  [&] {
                                      note_step(engine.last_step(), last_ns, report);
                                      last_step_s = log.now_s();
                                      options_.after_step(engine, report.num_finished);
                                  },
                              .wait_for_arrival =
                                  [&] {
                                      ScopedZone zone(Zone::idle);
                                      progress_state().beat();
                                      const double wait_s = reader.next_arrival_s() - log.now_s();
                                      std::this_thread::sleep_for(std::chrono::duration<double>(
                                          std::clamp(wait_s, 0.0, kLongestNapS)));
                                      last_ns = trace_now_ns();
                                      const double idle_s = log.now_s() - last_step_s;
                                      if (idle_s < world_.deadline_s() / 4) return;
                                      engine.step_idly();
                                      last_step_s = log.now_s();
                                  }};
        if (loaded_.claims() == nullptr) {
            run_requests(engine, reader, sink, hooks);
        } else {
            loaded_.claims()->expect(std::ssize(workload));
            run_claimed_requests(engine, reader, sink, *loaded_.claims(), hooks);
        }
        engine.cancel_all();
        engine.set_token_hook({});
        report.num_prefix_hits = engine.num_prefix_hits();
        report.num_preemptions = engine.num_preemptions() - preemptions;
        report.num_drafts = engine.num_drafts() - drafts;
        report.num_accepted_drafts = engine.num_accepted_drafts() - accepted_drafts;
        return sink.first_error();
    }

    static void note_step(const Engine::StepRows& rows, int64_t& last_ns, RankReport& report) {
        const int64_t now_ns = trace_now_ns();
        const int64_t step_ns = now_ns - std::exchange(last_ns, now_ns);
        ++report.num_steps;
        report.prompt_rows += rows.prompt;
        report.generated_rows += rows.generated;
        report.wanted_rows += rows.wanted;
        if (rows.prompt > 0 && rows.generated == 0) {
            report.prefill_ns += step_ns;
            report.prefill_rows += rows.prompt;
        } else if (rows.generated > 0 && rows.prompt == 0) {
            report.decode_ns += step_ns;
            report.decode_tokens += rows.chosen;
        }
    }

    // A request that the engine refuses is a mistake in the options: say so at once.
    void check_failures(const RankReport& report, const std::string& error) {
        if (world_.all_sum(report.num_failed) == 0) return;
        for (const std::string& each : world_.all_gather(error))
            if (!each.empty()) throw Error(ErrorKind::usage, "a request cannot run: {}", each);
    }

    Repetition gather(const RankReport& report, const LatencyLog& log,
                      const ExpertLoad& load_before, const Lateness& lateness_before) {
        Repetition result;
        result.ranks = gather_all(world_, std::vector<RankReport>{report});
        for (const RankReport& rank : result.ranks)
            result.wall_s = std::max(result.wall_s, static_cast<double>(rank.wall_ns) * 1e-9);
        result.requests = gather_all(world_, log.requests());
        result.between_tokens_s = gather_all(world_, log.between_tokens_s());
        result.expert_rows = gather_expert_load(loaded_.fabric(), model_, world_).rows;
        for (size_t layer = 0; layer < result.expert_rows.size(); ++layer)
            for (size_t expert = 0; expert < result.expert_rows[layer].size(); ++expert)
                result.expert_rows[layer][expert] -= load_before.rows[layer][expert];
        const Lateness now = lateness();
        std::vector<double> own_us;
        for (size_t a = 0; a < now.ns.size(); ++a)
            own_us.push_back(
                static_cast<double>(now.ns[a] - lateness_before.ns[a]) * 1e-3 /
                static_cast<double>(std::max<int64_t>(now.num - lateness_before.num, 1)));
        for (const std::string& bytes : world_.all_gather(bytes_of(own_us.data(), own_us.size())))
            if (!bytes.empty()) result.wait_us.push_back(values_of<double>(bytes));
        return result;
    }

    LoadedEngine& loaded_;
    const ModelConfig& model_;
    World& world_;
    const ThroughputOptions& options_;
};

std::vector<WorkloadRequest> warmup_of(const std::vector<WorkloadRequest>& workload, int64_t num) {
    std::vector<WorkloadRequest> first(
        workload.begin(), workload.begin() + std::min<std::ptrdiff_t>(num, std::ssize(workload)));
    for (WorkloadRequest& request : first) request.arrival_s = 0;
    return first;
}

}  // namespace

double RankReport::covered() const {
    int64_t ns = 0;
    for (const ZoneTotals& zone : zones) ns += zone.self_ns;
    return wall_ns > 0 ? static_cast<double>(ns) / static_cast<double>(wall_ns) : 0;
}

bool Repetition::all_finished(int64_t num_requests) const {
    return sum(&RankReport::num_finished) == num_requests && sum(&RankReport::num_failed) == 0;
}

bool Repetition::expert_rows_match(const ModelConfig& model) const {
    const int64_t all = sum(&RankReport::prompt_rows) + sum(&RankReport::generated_rows);
    int64_t layer = model.n_dense_layers;
    return std::ranges::all_of(expert_rows, [&](const std::vector<int64_t>& rows) {
        const int64_t tokens =
            AttentionWorker::works_on_wanted(model, layer++) ? sum(&RankReport::wanted_rows) : all;
        return std::reduce(rows.begin(), rows.end()) == tokens * model.n_activated_experts;
    });
}

std::vector<Repetition> measure_throughput(LoadedEngine& loaded, const ModelConfig& model,
                                           World& world,
                                           const std::vector<WorkloadRequest>& workload,
                                           const ThroughputOptions& options) {
    Measurement measurement(loaded, model, world, options);
    if (options.num_warmup_requests > 0)
        measurement.run(warmup_of(workload, options.num_warmup_requests));
    std::vector<Repetition> repetitions;
    const auto stopped = [&] { return world.all_max(options.stop_requested() ? 1 : 0) > 0; };
    for (int i = 0; i < options.num_repetitions && !stopped(); ++i) {
        options.before_repetition(i + 1 == options.num_repetitions);
        Repetition repetition = measurement.run(workload);
        if (stopped()) break;
        repetitions.push_back(std::move(repetition));
    }
    return repetitions;
}

}  // namespace ferry
