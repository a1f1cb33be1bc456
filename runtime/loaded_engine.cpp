#include "runtime/loaded_engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/cgroup.h"
#include "base/device_cuda.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/launcher.h"
#include "comm/progress_state.h"
#include "runtime/checkpoint.h"
#include "runtime/memory_plan.h"
#include "runtime/placements.h"

namespace ferry {
namespace {

// Ranks may read very unlike shares of a model from a busy file system; one that is lost is noticed
// by the watchdog long before.
constexpr double kLoadingDeadlineS = 3600;
constexpr double kGibibyte = 1024.0 * 1024.0 * 1024.0;

// Of shards that have no checksums of blocks, before they are read. The ranks share the work.
void verify(const Checkpoint& checkpoint, int threads, const World& world,
            const LoadedEngine::OnProgress& on_progress) {
    int64_t total_bytes = 0;
    for (const Checkpoint::Piece& piece : checkpoint.pieces()) total_bytes += piece.size_bytes;
    ThreadPool pool(threads);
    std::atomic<int64_t> done_bytes{0};
    checkpoint.verify(
        pool,
        [&](int64_t bytes) {
            const int64_t done = done_bytes.fetch_add(bytes) + bytes;
            if (on_progress) on_progress(done, total_bytes, true);
        },
        static_cast<size_t>(world.rank()), static_cast<size_t>(world.size()));
}

bool on_gpu(const Config& config) {
    return config.engine.device == Config::Engine::Device::cuda;
}

SchedulerOptions scheduler_options(const Config& config) {
    const Config::Engine& engine = config.engine;
    return {.max_batch = engine.max_batch,
            .max_batch_tokens = engine.max_batch_tokens,
            .max_prefill_chunk = engine.max_prefill_chunk,
            .max_drafts = engine.draft_tokens,
            .num_parts = engine.micro_batches};
}

}  // namespace

EngineOptions engine_options(const Config& config, const ModelConfig& model,
                             const Numerics& numerics) {
    const Config::Engine& engine = config.engine;
    EngineOptions options;
    options.scheduler = scheduler_options(config);
    options.expanded_bytes = static_cast<int64_t>(engine.prefill_gib * kGibibyte);
    options.share_prefixes = engine.prefix_cache;
    options.cuda_graphs = engine.cuda_graphs;
    options.draft_acceptance = engine.draft_acceptance;
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
    const auto memory_bytes = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) *
                              static_cast<double>(::sysconf(_SC_PAGESIZE));
    const double cache_bytes =
        static_cast<double>(options.num_pages) * static_cast<double>(page_bytes);
    if (!on_gpu(config) && cache_bytes > memory_bytes)
        throw Error(
            ErrorKind::memory,
            "the latent cache would take {:.1f} GiB (engine.cache_gib, engine.cache_pages), "
            "this machine has {:.1f} GiB",
            cache_bytes / kGibibyte, memory_bytes / kGibibyte);
    if (engine.max_context == 0)
        options.max_context = std::min(options.max_context, options.num_pages * kPageTokens);
    return options;
}

void check_supported(const Config& config) {
    if (!on_gpu(config)) return;
    if (!config.log.routing.empty())
        throw Error(ErrorKind::usage, "log.routing is not recorded with engine.device: cuda");
    if (config.engine.compress_weights == Config::Switch::on)
        throw Error(ErrorKind::usage,
                    "engine.compress_weights: GPUs hold weights as they are; set it to false, or "
                    "engine.device: cpu");
    if (config.numerics.bf16_activations == Config::NumericsSection::Rounding::amx)
        throw Error(
            ErrorKind::usage,
            "numerics.bf16_activations: amx is an order of sums on CPUs; set it to auto, or "
            "engine.device: cpu");
    if (config.numerics.int8_activations)
        throw Error(
            ErrorKind::usage,
            "numerics.int8_activations: GPUs multiply int4 weights by rows of bf16; set it to "
            "false, or engine.device: cpu");
    // Says which of these it is: not built in, no driver, no GPU.
    if (num_cuda_devices() == 0) cuda_device(0);
}

Config with_launcher_layout(Config config) {
    if (config.layout.mode != Config::Layout::Mode::from_launcher) return config;
    const std::vector<int> components =
        launcher_components([](const char* name) { return std::getenv(name); });
    if (components.size() != 2)
        throw Error(ErrorKind::usage,
                    "layout.mode: from_launcher takes a job of two components, attention ranks "
                    "first, and this one has {}; start it with srun --het-group=0,1 in a "
                    "heterogeneous job, or with mpirun -n A ferry ... : -n E ferry ...",
                    components.empty() ? "no launcher" : std::to_string(components.size()));
    config.layout.mode = Config::Layout::Mode::disaggregated;
    config.layout.attention_ranks = components[0];
    config.layout.expert_ranks = components[1];
    return config;
}

Layout layout_of(const Config& given, const World& world) {
    const Config config = with_launcher_layout(given);
    const bool colocated = config.layout.mode == Config::Layout::Mode::colocated;
    LayoutOptions options{.mode = colocated ? LayoutMode::colocated : LayoutMode::disaggregated,
                          .attention_ranks = static_cast<int>(config.layout.attention_ranks),
                          .expert_ranks = static_cast<int>(config.layout.expert_ranks),
                          .tp_size = static_cast<int>(config.layout.tp_size)};
    const Layout layout = make_layout(options, world.node_of_rank());
    // A size that nobody chose must fit the slices of sums.
    options.tp_size = std::gcd(layout.tp_size(), static_cast<int>(config.numerics.tp_slices));
    return config.layout.tp_size > 0 ? layout : make_layout(options, world.node_of_rank());
}

int threads_of(const Config& config, int own_cores) {
    return config.engine.threads > 0 ? static_cast<int>(config.engine.threads) : own_cores;
}

namespace {

FabricOptions fabric_options(const Config& config, const ModelConfig& model, const Layout& layout,
                             World& world) {
    FabricOptions options{.layout = layout,
                          .placements = make_placements(config, model, layout, world),
                          .exchange = {},
                          .max_tokens = config.engine.max_batch_tokens,
                          .max_logit_rows = scheduler_options(config).max_logit_rows()};
    if (model.n_mtp_layers > 0)
        options.num_draft_rounds = static_cast<int>(config.engine.draft_tokens);
    const Config::Exchange& exchange = config.exchange;
    switch (exchange.dtype) {
        case Config::Exchange::Payload::f32:
            options.exchange.dtype = DType::f32;
            break;
        case Config::Exchange::Payload::bf16:
            options.exchange.dtype = DType::bf16;
            break;
        case Config::Exchange::Payload::fp8:
            options.exchange.dtype = DType::fp8_e4m3;
            break;
    }
    switch (exchange.mode) {
        case Config::Exchange::Mode::automatic:
            options.exchange.mode = ExchangeMode::automatic;
            break;
        case Config::Exchange::Mode::bounded:
            options.exchange.mode = ExchangeMode::bounded;
            break;
        case Config::Exchange::Mode::sized:
            options.exchange.mode = ExchangeMode::sized;
            break;
    }
    options.exchange.combine = exchange.combine == Config::Exchange::Combine::exact
                                   ? CombineMode::exact
                                   : CombineMode::reduced;
    options.exchange.bounded_tokens = exchange.bounded_tokens;
    options.exchange.num_micro_batches = static_cast<int>(config.engine.micro_batches);
    options.exchange.stall_timeout_s = config.engine.patience_s();
    return options;
}

// Of a layer's routed experts, the part that this rank reads.
double expert_part(const ModelConfig& model, const ModelPart& part, const NodeShares& shares,
                   int64_t layer) {
    double num = 0;
    const std::span<const SharedExpert> shared = shares.shared_experts_of(model, layer);
    for (const int32_t expert : part.experts_of(model, layer))
        if (std::ranges::find(shared, expert, &SharedExpert::expert) == shared.end()) ++num;
    for (const SharedExpert& copies : shared)
        if (copies.holder >= 0) num += 1.0 / copies.num_holders;
    return num / static_cast<double>(model.n_routed_experts);
}

// What this rank reads of the model: its routed experts, and on attention ranks the rest (of a TP
// group's slices its own, of what ranks of its node hold alike a part).
int64_t bytes_to_load(const WeightSource& source, const Layout& layout, const ModelPart& part,
                      int world_rank, const NodeShares& shares) {
    const int num_attention_alike = shares.attention == nullptr ? 1 : shares.attention->size();
    const int num_slices_alike = shares.slice == nullptr ? 1 : shares.slice->size();
    double bytes = 0;
    for (const TensorSpec& spec : model_tensors(source.config())) {
        double size = 0;
        for (const std::string& name : {spec.name, spec.name + "_scale"})
            if (const std::optional<TensorInfo> info = source.find(name)) {
                double elements = 1;
                for (const int64_t extent : info->shape) elements *= static_cast<double>(extent);
                size += elements * static_cast<double>(size_bytes(info->dtype));
            }
        if (spec.is_expert) {
            const int64_t layer = layer_of(source.config(), spec.name);
            bytes += size * expert_part(source.config(), part, shares, layer);
            continue;
        }
        if (layout.attention_rank(world_rank) < 0) continue;
        const bool sliced = spec.name == "embed" || spec.name == "head" ||
                            (spec.name.find("/ffn/") != std::string::npos && spec.is_linear);
        bytes += sliced ? size / layout.tp_size() / num_slices_alike : size / num_attention_alike;
    }
    return static_cast<int64_t>(bytes);
}

// Of all hosts, so that all ranks end with the same words. Collective.
void require_host_memory(World& world, const HostShare& own) {
    std::vector<HostShare> by_rank;
    for (const std::string& bytes :
         world.all_gather(std::string(reinterpret_cast<const char*>(&own), sizeof own)))
        std::memcpy(&by_rank.emplace_back(), bytes.data(), sizeof own);
    const std::string warning =
        require_room_on_hosts(by_rank, world.node_of_rank(), world.host_of_node());
    if (world.rank() == 0 && !warning.empty()) log_warn("{}", warning);
}

const char* name_of(Config::Exchange::Transport transport) {
    switch (transport) {
        case Config::Exchange::Transport::automatic:
            return "auto";
        case Config::Exchange::Transport::mpi:
            return "mpi";
        case Config::Exchange::Transport::ucx:
            return "ucx";
        case Config::Exchange::Transport::nccl:
            return "nccl";
        case Config::Exchange::Transport::self:
            return "self";
    }
    return "auto";
}

}  // namespace

// Kernels of what this rank computes on. Collective: rank 0 says who computes where.
std::unique_ptr<Kernels> LoadedEngine::make_kernels(const Config& config,
                                                    const CpuOptions& options) {
    const int threads = threads_of(config, world_.own_cores());
    if (!on_gpu(config)) return make_cpu_kernels(threads, options);
    const int ordinal = device_of_rank(world_.node_rank(), std::max(1, num_cuda_devices()));
    const CudaDeviceInfo info = cuda_device(ordinal).info();
    devices_ = gather_device_table(
        world_,
        fmt::format("GPU {}, {}, compute capability {}.{}, {:.1f} of {:.1f} GiB free", ordinal,
                    info.name, info.capability / 10, info.capability % 10,
                    static_cast<double>(info.free_bytes) / kGibibyte,
                    static_cast<double>(info.total_bytes) / kGibibyte),
        info.pci_bus_id);
    if (world_.rank() == 0) log_info("devices\n{}", devices_.describe());
    return make_cuda_kernels(ordinal, threads);
}

// What rows travel by between ranks, and `transport_` for everything else. Collective.
void LoadedEngine::connect(const Config& config, const Layout& layout) {
    World& world = world_;
    const auto choice = config.exchange.transport;
    const bool automatic = choice == Config::Exchange::Transport::automatic;
    const bool nccl = choice == Config::Exchange::Transport::nccl;
    const TransportOptions options{.progress_thread = config.exchange.progress_thread};
    std::string why;
    transport_ = make_transport(nccl ? "auto" : name_of(choice), world, &why, options);
    auto* device = dynamic_cast<CudaDevice*>(&kernels_->device());
    if (device != nullptr) {
        const std::string host = why;
        const int attention = layout.attention_rank(world.rank());
        const std::vector<int> group =
            attention >= 0 ? layout.tp_members(attention) : std::vector<int>{};
        if (nccl) {
            devices_.require_one_rank_each();
            blocks_ = make_nccl_blocks(world, *device, group);
            why.clear();
        } else if (world.size() == 1) {
            blocks_ = make_self_blocks(*device);
        } else if (automatic && nccl_build_version().empty()) {
            why = host + "; through pinned host memory, as this build has no NCCL";
        } else if (automatic && !devices_.one_rank_each()) {
            why = host + "; through pinned host memory, as ranks share a GPU, which NCCL refuses";
        } else if (automatic) {
            blocks_ = make_nccl_blocks(world, *device, group);
            why = "exchange.transport: nccl " + nccl_build_version() +
                  ", as every rank has a GPU of its own";
        }
    }
    if (world.rank() == 0 && !why.empty()) log_info("{}", why);
}

LoadedEngine::LoadedEngine(const Config& config, OpenedModel& model, World& world,
                           const OnProgress& on_progress)
    : world_(world) {
    check_supported(config);
    world.set_deadline(kLoadingDeadlineS, "while the model is loaded");
    const ModelConfig& shape = model.source->config();
    const EngineOptions options = engine_options(config, shape, model.numerics);
    if (world.rank() == 0 && options.max_context > shape.max_positions)
        log_warn(
            "engine.max_context: {} is more than the {} positions that the model knows: text "
            "beyond them may be worthless",
            options.max_context, shape.max_positions);
    const Layout layout = layout_of(config, world);
    if (layout.num_attention() > 1 && shape.n_dense_layers == shape.n_layers)
        throw Error(ErrorKind::usage,
                    "layout: a model without MoE layers runs on one attention rank only");
    const FabricOptions fabric = fabric_options(config, shape, layout, world);
    if (const ExchangeOptions& exchange = fabric.exchange;
        world.rank() == 0 && exchange.mode == ExchangeMode::bounded &&
        exchange.bounded_tokens > 0 && exchange.bounded_tokens < fabric.max_tokens)
        log_warn(
            "exchange.bounded_tokens: a message holds {} tokens, and a step may send {} to one "
            "rank, which would end the run; 0 holds all, exchange.mode: auto sends the rest after",
            exchange.bounded_tokens, fabric.max_tokens);
    if (world.rank() == 0 && world.size() > 1) {
        std::vector<RankPlace> places;
        for (const std::string& cores : world.cores_of_rank()) places.push_back({"-", cores});
        log_info("layout\n{}", layout.describe(world.host_of_node(), fabric.placements, places));
    }
    auto* checkpoint = dynamic_cast<Checkpoint*>(model.source.get());
    if (checkpoint != nullptr && config.checkpoint.verify == Config::Checkpoint::Verify::full) {
        if (checkpoint->has_block_sums())
            checkpoint->check_reads();
        else
            verify(*checkpoint, threads_of(config, world.own_cores()), world, on_progress);
    }
    // Nobody asked for weights to be compressed where that is automatic: it must not end the run.
    CpuOptions cpu = model.cpu;
    if (config.engine.compress_weights == Config::Switch::automatic)
        cpu.incompressible = &incompressible_;
    load(config, model, options, fabric, cpu, on_progress);
    if (world.all_max(incompressible_) > 0) {
        if (world.rank() == 0)
            log_info(
                "engine.compress_weights: some weights have too many different exponents; all are "
                "loaded again, as they are (false saves that)");
        unload();
        cpu.compress_weights = false;
        load(config, model, options, fabric, cpu, on_progress);
    }
    world.barrier();  // all have loaded
    world.set_deadline(config.engine.patience_s(), "during or after the run");
}

// Collective.
void LoadedEngine::load(const Config& config, OpenedModel& model, const EngineOptions& options,
                        FabricOptions fabric, const CpuOptions& cpu,
                        const OnProgress& on_progress) {
    World& world = world_;
    const ModelConfig& shape = model.source->config();
    const Layout layout = fabric.layout;
    auto* checkpoint = dynamic_cast<Checkpoint*>(model.source.get());
    progress_state().enter(Activity::loading);
    kernels_ = make_kernels(config, cpu);
    connect(config, layout);
    fabric.blocks = blocks_.get();
    send_rounded_rows(fabric.exchange, *model.source, *kernels_);
    WorkerLimits limits = worker_limits(options);
    limits.expansion = kernels_->kv_expansion(shape);
    const MemoryPlan plan =
        plan_memory(*model.source, model.numerics, fabric, world.rank(), limits);
    if (const auto* gpu = dynamic_cast<CudaDevice*>(&kernels_->device())) {
        const std::string device = fmt::format("GPU {} on {}", gpu->ordinal(), world.host());
        log_info("{}: {}", device, plan.describe());
        require_room(plan, device, gpu->info().free_bytes);
    }
    std::vector<int> attention_ranks;
    for (int rank = 0; rank < layout.num_attention(); ++rank)
        attention_ranks.push_back(layout.world_rank_of_attention(rank));
    // A device has memory of its own: nothing of it is shared.
    const bool on_cpu = kernels_->device().type() == DeviceType::cpu;
    const int a = on_cpu ? layout.attention_rank(world.rank()) : -1;
    attention_share_ = std::make_unique<NodeMemory>(world, a < 0 ? -1 : 0);
    slice_share_ = std::make_unique<NodeMemory>(world, a < 0 ? -1 : layout.tp_rank(a));
    const int e = on_cpu ? layout.expert_rank(world.rank()) : -1;
    expert_share_ = std::make_unique<NodeMemory>(world, e < 0 ? -1 : 0);
    NodeShares shares;
    if (a >= 0) shares = {.attention = attention_share_.get(), .slice = slice_share_.get()};
    if (e >= 0) {
        shares.experts = expert_share_.get();
        shares.shared_experts =
            experts_shared_on_node(layout, fabric.placements, world.node_of_rank(), world.rank());
    }
    const int64_t own_bytes = bytes_to_load(
        *model.source, layout, model_part(fabric, shape, world.rank()), world.rank(), shares);
    const int64_t total_bytes = world.all_sum(own_bytes);
    if (on_cpu)
        require_host_memory(
            world,
            {.weights = cpu.compress_weights ? own_bytes / 4 * 3 : own_bytes,  // at least
             .cache = layout.attention_rank(world.rank()) < 0
                          ? 0
                          : limits.num_pages * LatentCache::page_bytes(shape, model.numerics),
             .limit = memory_limit()});
    try {
        rank_ = std::make_unique<RankModel>(
            *model.source, *kernels_, model.numerics, fabric, *transport_,
            [&](int64_t bytes) {
                if (on_progress) on_progress(bytes, total_bytes, false);
            },
            [&] {
                if (layout.num_attention() > 1 && layout.attention_rank(world.rank()) >= 0)
                    claims_ = std::make_unique<SharedCounter>(*transport_, attention_ranks,
                                                              std::numeric_limits<int64_t>::max());
            },
            shares);
    } catch (const Error&) {
        if (checkpoint != nullptr) checkpoint->require_sound();  // why, if it is not
        throw;
    }
    if (checkpoint != nullptr) checkpoint->require_sound();
    if (layout.attention_rank(world.rank()) >= 0)
        engine_ =
            std::make_unique<Engine>(*kernels_, rank_->model(), rank_->fabric(), rank_->experts(),
                                     options, model.eos_tokens, model.tokenizer);
    if (engine_ != nullptr && config.engine.cuda_graphs && on_gpu(config) && world.rank() == 0)
        if (const std::string_view why = engine_->why_no_step_is_repeated(); !why.empty())
            log_info("engine.cuda_graphs: steps are launched kernel by kernel, as {}", why);
}

void LoadedEngine::close() {
    if (!rank_->fabric().has_exchange()) return;
    Exchange& exchange = rank_->fabric().exchange();
    engine_->settle();
    exchange.attention()->close();
    // A colocated rank reads the others' farewells, so that no message is left in flight.
    if (ExpertSide* experts = exchange.experts())
        while (!experts->closed()) experts->receive();
}

void LoadedEngine::reopen() {
    if (rank_->fabric().has_exchange())
        if (ExpertSide* experts = rank_->fabric().exchange().experts()) experts->reopen();
    world_.barrier();
    if (claims_ && rank_->fabric().attention_rank() == 0) claims_->restart();
    world_.barrier();
}

void LoadedEngine::unload() {
    world_.barrier();
    engine_.reset();
    rank_.reset();
    claims_.reset();
    blocks_.reset();
    kernels_.reset();
    transport_.reset();
    for (NodeMemory* share : {attention_share_.get(), slice_share_.get(), expert_share_.get()})
        share->release();
    world_.barrier();
}

}  // namespace ferry
