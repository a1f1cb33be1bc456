#include "runtime/step_bench.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/median.h"
#include "base/random.h"
#include "base/trace.h"
#include "base/zones_cuda.h"
#include "runtime/device_rates.h"

namespace ferry {
namespace {

constexpr size_t kReadBytes = size_t{1} << 30;  // of the read loop: far beyond any cache
const SamplingParams kGreedy{.temperature = 0};

int64_t pages_of(const StepWorkload& workload) {
    return workload.sequences * ceil_div(workload.last_position() + 1, kPageTokens);
}

template <typename Measure>
int64_t most(const std::vector<StepWorkload>& workloads, Measure&& measure) {
    int64_t result = 1;
    for (const StepWorkload& workload : workloads) result = std::max(result, measure(workload));
    return result;
}

int64_t most_rows(const std::vector<StepWorkload>& workloads) {
    return most(workloads, [](const StepWorkload& w) { return w.num_rows(); });
}

WorkerLimits limits_of(const std::vector<StepWorkload>& workloads) {
    const int64_t sequences = most(workloads, [](const StepWorkload& w) { return w.sequences; });
    return {.max_tokens = most_rows(workloads),
            .max_sequences = sequences,
            .max_context = most(workloads, [](const auto& w) { return w.last_position() + 1; }),
            .max_logit_rows = sequences,
            .num_pages = most(workloads, pages_of)};
}

// Latents as large as a norm makes them, so that attention has work of the ordinary kind.
void fill_cache(LatentCache& cache, const ModelConfig& model, Device& device) {
    Stage host(device, StageSide::host);
    const auto fill = [&](const Tensor& cached, int64_t layer) {
        const Tensor values = host.shaped_like(cached);
        for (int64_t i = 0; i < values.count(); ++i) {
            const uint64_t bits = mix64(static_cast<uint64_t>(i * 31 + layer));
            const float value = static_cast<float>(bits >> 40) * 0x1p-23f - 1;
            if (values.dtype() == DType::f32)
                values.as<float>()[i] = value;
            else
                values.as<uint16_t>()[i] = f32_to_bf16(value);
        }
        put(device, values, cached);
    };
    for (int64_t layer = 0; layer < model.n_layers; ++layer) {
        fill(cache.layer(layer), layer);
        if (model.has_indexer(layer)) fill(cache.index_keys(layer), layer);
    }
}

std::unique_ptr<BlockTransport> blocks_of(Device& device) {
    auto* gpu = dynamic_cast<CudaDevice*>(&device);
    return gpu != nullptr ? make_self_blocks(*gpu) : nullptr;
}

// On a GPU rows are packed as they would travel.
FabricOptions fabric_of(const WeightSource& source, const Kernels& kernels, int64_t max_rows,
                        BlockTransport* blocks) {
    FabricOptions options = single_rank_fabric(source.config(), max_rows);
    options.blocks = blocks;
    if (blocks != nullptr) options.exchange.dtype = DType::bf16;
    send_rounded_rows(options.exchange, source, kernels);
    return options;
}

struct StageZones {
    const char* name;
    std::vector<Zone> zones;
};
const std::array<StageZones, 9> kStages{
    {{"embed", {Zone::embed}},
     {"attention", {Zone::attention}},
     {"dense", {Zone::dense}},
     {"gate", {Zone::gate}},
     {"shared", {Zone::shared}},
     {"experts", {Zone::experts}},
     {"exchange",
      {Zone::pack, Zone::dispatch_wait, Zone::reply, Zone::combine_wait, Zone::combine}},
     {"head", {Zone::head}},
     {"sample", {Zone::sample}}}};

// Zones of the exchange lie in one another; those of other stages hold only parts of themselves
// (tensor_parallel).
double seconds_of(const StageZones& stage) {
    int64_t ns = 0;
    for (const Zone zone : stage.zones) {
        const ZoneTotals& totals = trace().totals()[static_cast<size_t>(zone)];
        ns += stage.zones.size() > 1 ? totals.self_ns : totals.time_ns;
    }
    return static_cast<double>(ns) * 1e-9;
}

}  // namespace

// Arrays of a step's batch.
struct StepBench::Rows {
    std::vector<int32_t> tokens, positions, logit_rows;
    std::vector<int64_t> slots;
    std::vector<std::vector<int32_t>> pages;
    std::vector<SequenceRows> sequences;
    bool prefill = false;

    StepBatch batch() const {
        StepBatch batch{.tokens = tokens,
                        .positions = positions,
                        .slots = slots,
                        .prompt = {},
                        .generated = {},
                        .logit_rows = logit_rows};
        (prefill ? batch.prompt : batch.generated) = sequences;
        return batch;
    }
};

StepBench::StepBench(WeightSource& source, const Numerics& numerics,
                     std::unique_ptr<Kernels> kernels, const std::vector<StepWorkload>& workloads)
    : config_(source.config()),
      numerics_(numerics),
      kernels_(std::move(kernels)),
      transport_(make_self_transport()),
      blocks_(blocks_of(kernels_->device())),
      rank_(source, *kernels_, numerics,
            fabric_of(source, *kernels_, most_rows(workloads), blocks_.get()), *transport_),
      worker_(*kernels_, rank_.model(), rank_.fabric(), rank_.experts(), limits_of(workloads)),
      chooser_(*kernels_, config_.vocab_size, limits_of(workloads).max_logit_rows),
      greedy_(static_cast<size_t>(limits_of(workloads).max_logit_rows),
              SampleInput{.logits = {}, .params = kGreedy}),
      host_logits_(kernels_->device()) {
    if (on_gpu()) {
        device_rates_ = measure_device_rates(*kernels_);
    } else {
        memory_ = Buffer(kernels_->device(), kReadBytes);
        std::memset(memory_.data(), 1, memory_.size_bytes());
    }
    fill_cache(worker_.cache(), config_, kernels_->device());
}

// Positions [begin, end) of the workload's sequences from the first_sequence-th on.
StepBench::Rows StepBench::rows_of(const StepWorkload& workload, int64_t first_sequence,
                                   int64_t begin, int64_t end) const {
    Rows rows;
    rows.prefill = workload.prefill;
    const int64_t num_pages = pages_of(workload) / workload.sequences;
    rows.pages.reserve(static_cast<size_t>(workload.sequences));
    for (int64_t i = first_sequence; i < workload.sequences; ++i) {
        std::vector<int32_t>& pages = rows.pages.emplace_back();
        for (int64_t page = 0; page < num_pages; ++page)
            pages.push_back(static_cast<int32_t>(page * workload.sequences + i));  // not in a row
        const int64_t dense =
            workload.prefill ? std::clamp(worker_.expanded_positions(), begin, end) : end;
        const auto first_row = static_cast<int64_t>(rows.tokens.size());
        for (const auto& [first, last] : {std::pair(begin, dense), std::pair(dense, end)})
            if (first < last)
                rows.sequences.push_back({.first_row = first_row + first - begin,
                                          .num_rows = last - first,
                                          .first_position = first,
                                          .pages = pages});
        for (int64_t position = begin; position < end; ++position) {
            const uint64_t random = mix64(static_cast<uint64_t>(i * 1000003 + position));
            rows.tokens.push_back(
                static_cast<int32_t>(random % static_cast<uint64_t>(config_.vocab_size)));
            rows.positions.push_back(static_cast<int32_t>(position));
            rows.slots.push_back(pages[static_cast<size_t>(position / kPageTokens)] * kPageTokens +
                                 position % kPageTokens);
        }
        rows.logit_rows.push_back(static_cast<int32_t>(rows.tokens.size()) - 1);
    }
    return rows;
}

Tensor StepBench::step(const Rows& rows) {
    const Tensor logits = worker_.step(rows.batch()).logits;
    const ScopedZone zone(Zone::sample);
    chooser_.choose(
        logits, [&](size_t i) { return greedy_[i]; }, [](size_t, const SampledToken&) {});
    return logits;
}

// Rows that every expert of every MoE layer got so far.
std::vector<int64_t> StepBench::expert_rows() {
    std::vector<int64_t> rows;
    for (int64_t layer = config_.n_dense_layers; layer < config_.n_layers; ++layer) {
        const auto load = rank_.fabric().exchange().expert_load(static_cast<int>(layer));
        rows.insert(rows.end(), load.begin(), load.end());
    }
    return rows;
}

// Stages of a GPU are timed one by one: zones end when their work is done.
double StepBench::timed_step(const Rows& rows, Rates& rates, Tensor& logits) {
    if (!on_gpu())
        return take_turn(kernels_->threads(), BenchClock::wall(), memory_.data(),
                         memory_.size_bytes(), rates, [&] { logits = step(rows); });
    const GpuZones zones(&kernels_->device());
    const double step_s = BenchClock::wall().seconds([&] { logits = step(rows); });
    const double before = rates.kernel_s;
    rates = device_rates_;
    rates.kernel_s = std::min(before, step_s);
    return step_s;
}

StepTimes StepBench::run(const StepWorkload& workload, int num_warmups, int num_repetitions) {
    const int64_t end = workload.last_position() + 1, begin = workload.prefill ? 0 : end - 1;
    const Rows rows = rows_of(workload, 0, begin, end);
    StepTimes times;
    times.workload = workload;

    const auto bytes_of = [&](const Tensor& logits, int64_t row) {
        const Tensor host = host_logits_.of(logits.slice_rows(row, 1));
        return std::string(reinterpret_cast<const char*>(host.data()),
                           static_cast<size_t>(host.dim(1)) * sizeof(float));
    };
    const std::vector<int64_t> before = expert_rows();
    std::string expected = bytes_of(step(rows), workload.sequences - 1);
    std::vector<int64_t> touched = expert_rows();
    for (size_t i = 0; i < touched.size(); ++i) touched[i] = touched[i] > before[i] ? 1 : 0;
    for (int i = 1; i < num_warmups; ++i) step(rows);

    std::vector<std::vector<double>> seconds(kStages.size() + 2);
    for (int repetition = 0; repetition < num_repetitions; ++repetition) {
        trace().reset_totals();
        Tensor logits;
        const double step_s = timed_step(rows, times.rates, logits);
        times.same_bits &= bytes_of(logits, workload.sequences - 1) == expected;
        double rest_s = step_s;
        for (size_t i = 0; i < kStages.size(); ++i) {
            seconds[i].push_back(seconds_of(kStages[i]));
            rest_s -= seconds[i].back();
        }
        seconds[kStages.size()].push_back(rest_s);  // norms and sums between the zones
        seconds[kStages.size() + 1].push_back(step_s);
    }
    for (size_t i = 0; i < seconds.size(); ++i) {
        times.stages.push_back({.name = i < kStages.size()    ? kStages[i].name
                                        : i == kStages.size() ? "other"
                                                              : "step",
                                .num_layers = 1,
                                .best_s = std::ranges::min(seconds[i]),
                                .median_s = median(seconds[i])});
    }
    count_work(times, touched);
    if (on_gpu()) return times;  // the library's sums may depend on the number of rows

    const int64_t last = workload.sequences - 1, middle = begin + (end - begin) / 2;
    if (workload.prefill && middle > begin) step(rows_of(workload, last, begin, middle));
    const Tensor alone = step(rows_of(workload, last, middle, end));
    times.same_bits &= bytes_of(alone, 0) == expected;
    return times;
}

void StepBench::count_work(StepTimes& times, const std::vector<int64_t>& touched) const {
    const ModelConfig& c = config_;
    const StepWorkload& w = times.workload;
    const Transformer& model = rank_.model();
    const double rows = static_cast<double>(w.num_rows());
    const double num_moe = static_cast<double>(c.n_layers - c.n_dense_layers);
    double num_touched = 0;
    for (const int64_t one : touched) num_touched += static_cast<double>(one);
    times.experts_per_layer = num_moe > 0 ? num_touched / num_moe : 0;

    // Multiply-adds of attention: projections, wkv_b in either form, keys and values.
    const auto product = [](auto... factors) { return (static_cast<double>(factors) * ...); };
    const int64_t kv = c.qk_nope_head_dim + c.v_head_dim;
    const double projections =
        (c.q_lora_rank > 0 ? product(c.q_lora_rank, c.dim + c.n_heads * c.qk_head_dim())
                           : product(c.dim, c.n_heads, c.qk_head_dim())) +
        product(c.dim, c.n_heads, c.v_head_dim);
    const double latents = product(c.dim, c.latent_dim());
    const double expand = product(c.kv_lora_rank, c.n_heads, kv);
    const double tokens = static_cast<double>(w.last_position() + 1);
    const double dense = std::min(tokens, static_cast<double>(c.dense_positions()));
    const bool chooses = dense < tokens;
    const double last_keys = product(w.sequences, dense);  // that the last rows attend to
    const double all_keys =
        w.prefill ? product(w.sequences, dense * (dense + 1) / 2 + (tokens - dense) * dense)
                  : last_keys;
    // That rows choose among, and what the indexer does for a row and for a key.
    const double seen_keys =
        chooses
            ? product(w.sequences, w.prefill ? (tokens + dense + 1) * (tokens - dense) / 2 : tokens)
            : 0;
    const double last_seen_keys = chooses ? product(w.sequences, tokens) : 0;
    const double per_seen_key = product(c.index_n_heads, c.index_head_dim + 1);
    const double index_queries =
        chooses ? product(c.index_n_heads, c.q_lora_rank * c.index_head_dim + c.dim) : 0;
    const double per_key = w.prefill ? product(c.n_heads, c.qk_head_dim() + c.v_head_dim)
                                     : product(c.n_heads, c.kv_lora_rank + c.latent_dim());
    const double per_value = product(w.sequences, size_bytes(numerics_.cache_dtype));
    const double latent_bytes = per_value * dense * static_cast<double>(c.latent_dim());
    const double index_bytes =
        chooses ? per_value * tokens * static_cast<double>(c.index_head_dim) : 0;

    for (StepStage& stage : times.stages) {
        for (int64_t layer = 0; layer < c.n_layers; ++layer) {
            const Block& block = model.block(layer);
            const bool only_last = AttentionWorker::works_on_wanted(c, layer);
            const double asked = only_last ? static_cast<double>(w.sequences) : rows;
            const double keys = only_last ? last_keys : all_keys;
            const double seen = only_last ? last_seen_keys : seen_keys;
            const auto mlp = [&](int64_t inter) { return product(6, asked, c.dim, inter); };
            if (stage.name == "attention") {
                stage.bytes += static_cast<double>(block.mla().weight_bytes()) + latent_bytes;
                stage.flops +=
                    2 * (rows * (latents + expand) + asked * projections + keys * per_key);
                if (!c.has_indexer(layer)) continue;
                stage.bytes += index_bytes;
                stage.flops += 2 * (rows * product(c.dim, c.index_head_dim) +
                                    asked * index_queries + seen * per_seen_key);
            } else if (stage.name == "dense" && !block.is_moe()) {
                stage.bytes += static_cast<double>(block.mlp().weight_bytes());
                stage.flops += mlp(c.inter_dim);
            } else if (stage.name == "gate" && block.is_moe()) {
                stage.bytes += product(4, c.dim, c.n_routed_experts);
                stage.flops += product(2, asked, c.dim, c.n_routed_experts);
            } else if (stage.name == "shared" && block.has_shared()) {
                stage.bytes += static_cast<double>(block.mlp().weight_bytes());
                stage.flops += mlp(c.n_shared_experts * c.moe_inter_dim);
            } else if (stage.name == "experts" && block.is_moe()) {
                stage.bytes += times.experts_per_layer *
                               static_cast<double>(model.experts(layer).weight_bytes_per_expert());
                stage.flops += mlp(c.n_activated_experts * c.moe_inter_dim);
            }
        }
        if (stage.name == "attention") stage.num_layers = c.n_layers;
        if (stage.name == "dense") stage.num_layers = c.n_dense_layers;
        if (stage.name == "gate" || stage.name == "shared" || stage.name == "experts" ||
            stage.name == "exchange")
            stage.num_layers = c.n_layers - c.n_dense_layers;
        if (stage.name == "head") {
            stage.bytes = static_cast<double>(model.head_bytes());
            stage.flops = product(2, w.sequences, c.dim, c.vocab_size);
        }
    }
    StepStage& all = times.stages.back();
    for (const StepStage& stage : times.stages) {
        if (&stage == &all) break;
        all.bytes += stage.bytes;
        all.flops += stage.flops;
    }
    all.num_layers = 1;
}

}  // namespace ferry
