#include "runtime/memory_plan.h"

#include <algorithm>

#include "base/error.h"
#include "comm/exchange_kernels.h"
#include "runtime/device_tensor_parallel.h"
#include "runtime/filled_step.h"

namespace ferry {
namespace {

std::string gib(int64_t size_bytes) {
    return fmt::format("{:.2f} GiB", static_cast<double>(size_bytes) / (1 << 30));
}

// All values of a tensor; of routed experts those that the rank holds in one layer. A GPU holds
// int4 of other weights as bf16.
int64_t weight_bytes(const WeightSource& source, const ModelPart& part, bool on_gpu) {
    const ModelConfig& c = source.config();
    int64_t bytes = 0;
    for (const TensorSpec& spec : model_tensors(c)) {
        const std::optional<TensorInfo> info = source.find(spec.name);
        if (!info || (!spec.is_expert && !part.attention)) continue;
        // Norms, biases and gates are widened; the embedding's rows are not.
        const bool widened = !spec.is_linear && !spec.is_expert && spec.name != "embed";
        double size = static_cast<double>(size_bytes(widened ? DType::f32 : info->dtype));
        for (const int64_t extent : info->shape) size *= static_cast<double>(extent);
        if (spec.is_expert) {
            size *= static_cast<double>(part.experts_of(c, layer_of(c, spec.name)).size()) /
                    static_cast<double>(c.n_routed_experts);
        } else if (spec.name == "embed" || spec.name == "head" ||
                   (spec.is_linear && spec.name.find("/ffn/") != std::string::npos)) {
            size /= static_cast<double>(part.tp_size);
        }
        if (info->dtype == DType::fp8_e4m3)
            size *= 1 + 4.0 / static_cast<double>(kScaleBlock * kScaleBlock);
        if (info->dtype == DType::int4x2)
            size *= on_gpu && !spec.is_expert ? 4 : 1 + 4.0 / static_cast<double>(kInt4Group);
        bytes += static_cast<int64_t>(size);
        if (spec.name == "embed" && c.tie_word_embeddings) bytes += static_cast<int64_t>(size);
        // wkv_b a second time, folded into query and output: int4 as if both were bf16.
        if (spec.name.ends_with("/wkv_b"))
            bytes += c.n_heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim) *
                     (rows_as(info->dtype) == DType::bf16 ? 2 : 4);
    }
    return bytes;
}

// Of the exchange of GPUs (comm/exchange_device.h), from and to every rank of the other role.
int64_t block_bytes(const ModelConfig& c, const FabricOptions& options, const ModelPart& part) {
    ExchangeOptions exchange = options.exchange;
    int64_t slots = 0;
    for (const Placement& placement : options.placements)
        slots = std::max<int64_t>(slots, placement.max_slots());
    const int64_t tokens = exchange.mode == ExchangeMode::bounded && exchange.bounded_tokens > 0
                               ? exchange.bounded_tokens
                               : options.max_tokens;
    const int64_t entries = tokens * std::min(slots, c.n_activated_experts);
    const int64_t pair = block_format(exchange.dtype, c.dim, tokens, entries).size_bytes +
                         block_format(combine_dtype(exchange), c.dim,
                                      exchange.combine == CombineMode::exact ? entries : tokens, 0)
                             .size_bytes;
    const int64_t peers = (part.attention ? options.layout.num_expert() : 0) +
                          (part.experts.empty() ? 0 : options.layout.num_attention());
    // The only rank's blocks stay where they are.
    return pair * (options.layout.num_ranks() == 1 ? 1 : peers) * exchange.num_micro_batches;
}

// What tensor cores multiply (layers/cuda/grouped_gemm_launch.h): rows of experts as bf16, unless
// the weights are f32.
int64_t rounded_row_bytes(const WeightSource& source) {
    constexpr int64_t kValuesAtOnce = 16;
    const ModelConfig& c = source.config();
    const auto info = source.find(fmt::format("layers/{}/ffn/experts/w1", c.n_dense_layers));
    if (info && info->dtype == DType::f32) return 0;
    return 2 * ceil_div(std::max(c.dim, c.moe_inter_dim), kValuesAtOnce) * kValuesAtOnce;
}

// What a GPU's kernels take for attention and dense layers beside their results, at most
// (CudaKernels::scratch, cublas_lt.cpp): the widest rows as bf16, partial results of decode
// (layers/cuda/mla_plan.cpp), the largest fp8 matrix widened, which Hopper does without, and
// cuBLASLt's workspace.
int64_t scratch_bytes(const WeightSource& source, const WorkerLimits& limits) {
    constexpr int64_t kLibrary = 32 << 20, kPartialResults = 256 << 20, kShortestSplit = 1024;
    const ModelConfig& c = source.config();
    int64_t widened = 0;
    for (const TensorSpec& spec : model_tensors(c)) {
        const std::optional<TensorInfo> info = source.find(spec.name);
        if (info && spec.is_linear && info->dtype == DType::fp8_e4m3)
            widened = std::max(widened, 2 * info->shape.end()[-1] * info->shape.end()[-2]);
    }
    const int64_t head_columns =
        std::max({c.kv_lora_rank, c.v_head_dim, c.qk_nope_head_dim + c.qk_rope_head_dim});
    const int64_t columns = std::max({c.dim, c.inter_dim, c.n_heads * head_columns});
    const int64_t slots = limits.max_tokens * ceil_div(limits.max_context, kShortestSplit);
    return kLibrary + widened + 2 * limits.max_tokens * columns +
           std::min(kPartialResults, slots * c.n_heads * (c.kv_lora_rank + 2) * 4);
}

// Kernels and copies of a decode step, per micro-batch: of a layer's attention with its dense or
// shared experts, of a layer's exchange and gate, of a layer's routed experts, and of all else.
constexpr int64_t kBlockNodes = 36, kExchangeNodes = 14, kExpertNodes = 14, kStepNodes = 12;
// What sparse attention adds to a layer.
constexpr int64_t kIndexNodes = 14;
// What a tensor-parallel group adds to a layer, and to embedding and head.
constexpr int64_t kGroupNodes = 6;

// Of the graphs that are kept of decode steps, one for each form (CudaStepGraphs).
int64_t graph_bytes(const ModelConfig& c, const FabricOptions& options, const ModelPart& part,
                    const WorkerLimits& limits) {
    const bool repeats = limits.cuda_graphs && options.blocks != nullptr &&
                         options.exchange.mode != ExchangeMode::sized;
    if (!repeats) return 0;
    const int64_t num_moe = c.n_layers - c.n_dense_layers;
    int64_t nodes = 0;
    const int64_t block_nodes = kBlockNodes + (c.index_topk > 0 ? kIndexNodes : 0);
    if (part.attention) nodes += kStepNodes + c.n_layers * block_nodes + num_moe * kExchangeNodes;
    if (part.attention && part.tp_size > 1) nodes += (c.n_layers + 2) * kGroupNodes;
    if (!part.experts.empty()) nodes += num_moe * kExpertNodes;
    const int64_t rows = std::min(limits.max_tokens, limits.max_logit_rows);
    const int64_t graphs = std::min<int64_t>(kMostStepGraphs, num_forms(rows, limits.max_context));
    return graphs * nodes * options.exchange.num_micro_batches * kGraphNodeBytes;
}

// What NCCL takes when ranks first talk, in its communicators for dispatches, for replies and of a
// tensor-parallel group. Seen on 8 H100 (NCCL's issue 1685): 32 channels to each rank of the node,
// 10 + 2 MiB each to receive and 2 MiB to send. To ranks of other nodes one pool (512 MiB, NCCL's
// issue 2363).
class NcclBytes {
  public:
    NcclBytes(const Layout& layout, int world_rank) : layout_(layout), rank_(world_rank) {}
    // Of one communicator, whose peers talk(peer) tells as {sends, receives}.
    template <typename Talk>
    void add(Talk&& talk) {
        bool over_network = false;
        for (int peer = 0; peer < layout_.num_ranks(); ++peer) {
            if (peer == rank_) continue;
            const auto [sends, receives] = talk(peer);
            if (layout_.node_of_rank(peer) == layout_.node_of_rank(rank_))
                bytes_ += kChannels * ((sends ? kSend : 0) + (receives ? kReceive : 0));
            else
                over_network = over_network || sends || receives;
        }
        if (over_network) bytes_ += kNetworkPool;
    }
    int64_t total() const { return bytes_; }

  private:
    static constexpr int64_t kMiB = 1 << 20, kChannels = 32, kReceive = 12 * kMiB, kSend = 2 * kMiB;
    static constexpr int64_t kNetworkPool = 512 * kMiB;
    const Layout& layout_;
    int rank_;
    int64_t bytes_ = 0;
};

int64_t nccl_bytes(const FabricOptions& options, int world_rank) {
    const Layout& layout = options.layout;
    NcclBytes bytes(layout, world_rank);
    const auto from_to = [&](int from, int to) {
        return layout.attention_rank(from) >= 0 && layout.expert_rank(to) >= 0;
    };
    bytes.add(
        [&](int peer) { return std::pair(from_to(world_rank, peer), from_to(peer, world_rank)); });
    bytes.add(
        [&](int peer) { return std::pair(from_to(peer, world_rank), from_to(world_rank, peer)); });
    if (const int attention = layout.attention_rank(world_rank); attention >= 0) {
        const std::vector<int> group = layout.tp_members(attention);
        bytes.add([&](int peer) {
            const bool together = std::ranges::find(group, peer) != group.end();
            return std::pair(together, together);
        });
    }
    return bytes.total();
}

}  // namespace

MemoryPlan plan_memory(const WeightSource& source, const Numerics& numerics,
                       const FabricOptions& options, int world_rank, const WorkerLimits& limits) {
    const ModelConfig& c = source.config();
    const ModelPart part = model_part(options, c, world_rank);
    MemoryPlan plan{{{"weights", weight_bytes(source, part, options.blocks != nullptr)}}};
    if (part.attention) {
        plan.parts.push_back({fmt::format("latent cache ({} pages)", limits.num_pages),
                              limits.num_pages * LatentCache::page_bytes(c, numerics)});
        if (const int64_t units = AttentionWorker::num_expanded_units(c, limits); units > 0)
            plan.parts.push_back(
                {fmt::format("expanded prompts ({} positions)", units / c.n_layers),
                 units * AttentionWorker::expanded_unit_bytes(c, limits.expansion)});
        const bool ahead = part.experts.empty() && options.exchange.num_micro_batches > 1 &&
                           options.blocks == nullptr;  // as AttentionWorker::looks_ahead()
        const int64_t hidden = HiddenRows::size_bytes(
            c, limits.max_tokens, std::min(limits.max_context, limits.expansion.positions));
        const int64_t rows = 2 * limits.max_tokens * c.dim +
                             // as they come, and as penalties change them
                             2 * limits.max_logit_rows * c.vocab_size +
                             limits.max_logit_rows * c.dim +
                             (c.n_mtp_layers > 0 ? limits.max_tokens * c.dim : 0) +
                             limits.max_context * c.qk_rope_head_dim;
        plan.parts.push_back({"activations", (ahead ? 2 : 1) * hidden + 4 * rows});
        plan.parts.push_back(
            {"attention workspace", static_cast<int64_t>(AttentionWorker::workspace_bytes(
                                        c, numerics, part.tp_size, limits))});
    }
    if (part.attention && options.blocks != nullptr)
        plan.parts.push_back({"kernels' scratch", scratch_bytes(source, limits)});
    if (part.attention && part.tp_size > 1 && options.blocks != nullptr)
        plan.parts.push_back(
            {"tensor-parallel rows",
             tensor_parallel_memory(static_cast<int>(numerics.tp_slices),
                                    static_cast<int>(part.tp_size), static_cast<int>(part.tp_rank),
                                    tensor_parallel_sizes(options, c))
                 .total()});
    if (!part.experts.empty()) {
        const int64_t rows = ExpertWorker::max_rows(c, part, options);
        plan.parts.push_back(
            {"expert workspace", static_cast<int64_t>(Experts::workspace_bytes(c, rows))});
        plan.parts.push_back({"rows of experts", 4 * rows * c.dim});
        const int64_t row_bytes = options.blocks != nullptr ? rounded_row_bytes(source) : 0;
        if (row_bytes > 0) plan.parts.push_back({"rounded rows of experts", rows * row_bytes});
    }
    if (options.blocks != nullptr)
        plan.parts.push_back({"exchange blocks", block_bytes(c, options, part)});
    if (const int64_t bytes = graph_bytes(c, options, part, limits); bytes > 0)
        plan.parts.push_back({"CUDA graphs (estimated)", bytes});
    if (options.blocks != nullptr && options.blocks->name() == "nccl")
        plan.parts.push_back({"NCCL (estimated)", nccl_bytes(options, world_rank)});
    return plan;
}

int64_t MemoryPlan::total_bytes() const {
    int64_t total = 0;
    for (const Part& part : parts) total += part.size_bytes;
    return total;
}

std::string MemoryPlan::describe() const {
    std::string text;
    for (const Part& part : parts)
        text += fmt::format("{}{} {}", text.empty() ? "" : " + ", part.name, gib(part.size_bytes));
    return text + " = " + gib(total_bytes());
}

void require_room(const MemoryPlan& plan, const std::string& device, size_t free_bytes) {
    if (plan.total_bytes() <= static_cast<int64_t>(free_bytes)) return;
    throw Error(ErrorKind::memory,
                "{} has {} free, but this rank needs {}; use more ranks, a smaller "
                "engine.cache_gib, engine.prefill_gib, engine.max_batch_tokens or "
                "engine.max_context",
                device, gib(static_cast<int64_t>(free_bytes)), plan.describe());
}

std::string require_room_on_hosts(std::span<const HostShare> by_rank,
                                  std::span<const int> node_of_rank,
                                  std::span<const std::string> host_of_node) {
    std::vector<HostShare> hosts(host_of_node.size());
    for (size_t rank = 0; rank < by_rank.size(); ++rank) {
        HostShare& host = hosts[static_cast<size_t>(node_of_rank[rank])];
        host.weights += by_rank[rank].weights;
        host.cache += by_rank[rank].cache;
        host.limit =
            host.limit == 0 ? by_rank[rank].limit : std::min(host.limit, by_rank[rank].limit);
    }
    std::string warning;
    for (size_t node = 0; node < hosts.size(); ++node) {
        const HostShare& host = hosts[node];
        const std::string found =
            fmt::format("{} has {} for this job, its ranks' weights take at least {}",
                        host_of_node[node], gib(host.limit), gib(host.weights));
        if (host.weights > host.limit)
            throw Error(ErrorKind::memory,
                        "{}; use more hosts, or ask the batch system for more (Slurm: --mem=0)",
                        found);
        if (host.weights + host.cache > host.limit && warning.empty())
            warning = fmt::format(
                "{} and full caches {} more, so that it may be killed; a smaller engine.cache_gib, "
                "more hosts, or more of their memory (Slurm: --mem=0)",
                found, gib(host.cache));
    }
    return warning;
}

}  // namespace ferry
