#include "runtime/loaded_engine.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/error.h"
#include "runtime/checkpoint.h"

namespace ferry {
namespace {

constexpr double kGibibyte = 1024.0 * 1024.0 * 1024.0;

Transformer load(const OpenedModel& model, Kernels& kernels,
                 const LoadedEngine::OnProgress& on_progress) {
    WeightLoader loader(*model.source, kernels, [&](int64_t bytes) {
        if (on_progress) on_progress(bytes, model.weight_bytes, false);
    });
    return Transformer(loader, ModelPart::whole(model.source->config()), model.numerics);
}

void verify(const Checkpoint& checkpoint, int threads,
            const LoadedEngine::OnProgress& on_progress) {
    int64_t total_bytes = 0;
    for (const Checkpoint::Piece& piece : checkpoint.pieces()) total_bytes += piece.size_bytes;
    ThreadPool pool(threads);
    std::atomic<int64_t> done_bytes{0};
    checkpoint.verify(pool, [&](int64_t bytes) {
        const int64_t done = done_bytes.fetch_add(bytes) + bytes;
        if (on_progress) on_progress(done, total_bytes, true);
    });
}

}  // namespace

EngineOptions engine_options(const Config& config, const ModelConfig& model,
                             const Numerics& numerics) {
    const Config::Engine& engine = config.engine;
    EngineOptions options;
    options.scheduler = {.max_batch = engine.max_batch,
                         .max_batch_tokens = engine.max_batch_tokens,
                         .max_prefill_chunk = engine.max_prefill_chunk};
    options.share_prefixes = engine.prefix_cache;
    options.max_context = engine.max_context > 0 ? engine.max_context : model.max_positions;

    const int64_t page_bytes = LatentCache::page_bytes(model, numerics);
    options.num_pages =
        engine.cache_pages > 0
            ? engine.cache_pages
            : static_cast<int64_t>(engine.cache_gib * kGibibyte / static_cast<double>(page_bytes));
    if (options.num_pages < 1)
        throw Error(ErrorKind::memory, "engine.cache_gib: {} holds no page of {} bytes",
                    engine.cache_gib, page_bytes);
    // More than all running requests can fill is for shared prefixes only.
    const int64_t most_pages = engine.max_batch * Scheduler::pages_needed(options.max_context) *
                               (engine.prefix_cache ? 2 : 1);
    if (engine.cache_pages == 0) options.num_pages = std::min(options.num_pages, most_pages);
    if (engine.max_context == 0)
        options.max_context = std::min(options.max_context, options.num_pages * kPageTokens);
    return options;
}

void check_one_rank(const Config& config) {
    const Config defaults;
    const auto refuse = [](const char* key) {
        throw Error(ErrorKind::usage,
                    "{}: is for several ranks, and generate runs on one rank in this version", key);
    };
    if (config.layout.mode != defaults.layout.mode) refuse("layout.mode");
    if (config.layout.attention_ranks > 1) refuse("layout.attention_ranks");
    if (config.layout.expert_ranks > 1) refuse("layout.expert_ranks");
    if (config.layout.tp_size > 1) refuse("layout.tp_size");
    if (config.layout.placement != defaults.layout.placement) refuse("layout.placement");
    if (config.exchange.transport != Config::Exchange::Transport::automatic &&
        config.exchange.transport != Config::Exchange::Transport::self)
        refuse("exchange.transport");
    if (config.exchange.dtype != defaults.exchange.dtype) refuse("exchange.dtype");
    if (config.exchange.mode != defaults.exchange.mode) refuse("exchange.mode");
    if (config.exchange.combine != defaults.exchange.combine) refuse("exchange.combine");
    if (config.engine.micro_batches > 1) refuse("engine.micro_batches");
    if (!config.log.expert_load.empty()) refuse("log.expert_load");
    if (config.engine.device == Config::Engine::Device::cuda)
        throw Error(ErrorKind::usage, "engine.device: cuda is not part of this version");
}

int num_threads(const Config& config, int node_size) {
    if (config.engine.threads > 0) return static_cast<int>(config.engine.threads);
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return std::max(1, cores / std::max(1, node_size));
}

LoadedEngine::LoadedEngine(const Config& config, OpenedModel& model,
                           const OnProgress& on_progress) {
    check_one_rank(config);
    const EngineOptions options = engine_options(config, model.source->config(), model.numerics);
    const int threads = num_threads(config, 1);
    const auto* checkpoint = dynamic_cast<const Checkpoint*>(model.source.get());
    if (checkpoint != nullptr && config.checkpoint.verify == Config::Checkpoint::Verify::full)
        verify(*checkpoint, threads, on_progress);
    kernels_ = make_cpu_kernels(threads);
    transformer_ = std::make_unique<Transformer>(load(model, *kernels_, on_progress));
    engine_ = std::make_unique<Engine>(*kernels_, *transformer_, options, model.eos_tokens,
                                       model.tokenizer);
}

}  // namespace ferry
