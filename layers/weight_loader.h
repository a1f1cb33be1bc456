// From a WeightSource into the backend's packed weights, a piece at a time (bounded memory). Pieces
// of many weights are filled in one parallel loop, so that no thread waits at the end of each.
#pragma once
#include <atomic>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "comm/node_memory.h"
#include "comm/placement.h"
#include "layers/kernels.h"
#include "layers/weight_source.h"

namespace ferry {

// What one rank holds of a model.
struct ModelPart {
    bool attention = true;  // all but the routed experts
    // Routed experts held, in local order: one list for all MoE layers, or one per MoE layer.
    std::vector<std::vector<int32_t>> experts;
    int64_t tp_rank = 0;  // slice of dense and shared MLPs, embedding and head
    int64_t tp_size = 1;

    static ModelPart whole(const ModelConfig& config);
    std::span<const int32_t> experts_of(const ModelConfig& config, int64_t layer) const;
};

// What some ranks of a node hold alike is kept there once.
struct NodeShares {
    NodeMemory* attention = nullptr;  // all attention ranks: attention, norms, gates
    NodeMemory* slice = nullptr;      // those with the same tensor-parallel slices
    NodeMemory* experts = nullptr;    // all expert ranks: routed experts with several copies there
    // Which those are: one list for all MoE layers, or one per MoE layer; none without `experts`.
    std::vector<std::vector<SharedExpert>> shared_experts = {};

    std::span<const SharedExpert> shared_experts_of(const ModelConfig& config, int64_t layer) const;
};

// The same memory, owned by `weight`.
Weight view_of(const Weight& weight);

// Weights and rows are made empty and hold their values after finish().
class WeightLoader {
  public:
    // While one exists, what is loaded is held alike by all ranks of `share`, each of which reads
    // and packs a part of it.
    class HeldAlike {
      public:
        HeldAlike(WeightLoader& loader, NodeMemory* share)
            : loader_(loader), before_(std::exchange(loader.share_, share)) {}
        ~HeldAlike() { loader_.share_ = before_; }
        HeldAlike(const HeldAlike&) = delete;
        HeldAlike& operator=(const HeldAlike&) = delete;

      private:
        WeightLoader& loader_;
        NodeMemory* before_;
    };

    // `progress` is called with the bytes read so far, from the calling thread.
    WeightLoader(WeightSource& source, Kernels& kernels,
                 std::function<void(int64_t bytes)> progress = {});
    ~WeightLoader();
    WeightLoader(const WeightLoader&) = delete;
    WeightLoader& operator=(const WeightLoader&) = delete;
    // What is shared is whole after a barrier of the shares, which must outlive the weights.
    void share_on_node(NodeShares shares) { shares_ = std::move(shares); }
    const NodeShares& shares() const { return shares_; }

    // Runs `part`, which fills so many bytes, at the latest in finish(), on any thread; what it
    // throws is thrown there. Small parts that follow each other go to one thread.
    void later(int64_t num_bytes, std::function<void()> part);
    // All that was asked for is there. Throws what reading and packing throw.
    void finish();

    const ModelConfig& config() const { return source_.config(); }
    Kernels& kernels() { return kernels_; }
    // By this rank, of values and scales.
    int64_t bytes_read() const { return bytes_read_; }
    // An empty weight, shared while HeldAlike.
    Weight make_weight(const WeightSpec& spec);
    // This rank reads and packs part i (of any weight).
    bool is_mine(int64_t i) const { return !is_shared() || i % share_->size() == share_->rank(); }

    // A whole tensor widened to f32 (norms, biases), at once.
    OwnedTensor plain(const std::string& name);
    // Rows of a tensor of f32 or bf16 in its stored type (embedding). `packed` (may be null)
    // becomes a weight of the same rows (tied head).
    OwnedTensor rows(const std::string& name, Range rows, Weight* packed = nullptr);
    // Matrix [out, in], or the box `out` x `in` of it, which begins at whole blocks of scales. int4
    // stays so on the CPU and becomes bf16 (value * scale, rounded) on GPUs.
    Weight linear(const std::string& name);
    Weight linear(const std::string& name, Range out, Range in);
    // The same, widened to f32: of small weights whose products decide a choice.
    Weight linear_f32(const std::string& name);
    // The named experts of [experts, out, in], one group each. Collective over the node's expert
    // ranks when some are `shared` there. int4 stays so.
    Weight experts(const std::string& name, std::span<const int32_t> experts,
                   std::span<const SharedExpert> shared = {});
    // Some of the rows that dequantised() reads, and what they are packed into: a group of an empty
    // weight of the type that linear() holds.
    struct PackedRows {
        Weight* weight;
        int64_t group;
        Range rows;  // fp8: in whole blocks of scales
    };
    // Rows `out` of a matrix (fp8: from a multiple of 128) as plain f32 [out, in], scales applied;
    // those of `packed` are packed as well. At once, from any thread; not shared: for callers that
    // go by is_mine() and later().
    OwnedTensor dequantised(const std::string& name, Range out,
                            std::span<const PackedRows> packed = {});
    // The type that linear() holds.
    DType held_dtype(DType stored) const;
    DType dtype(const std::string& name) const;
    std::vector<int64_t> shape(const std::string& name) const;

  private:
    struct Piece {
        int64_t group, first_out, num_out;
        bool mine;
        std::vector<Range> box;        // in the source tensor
        std::vector<Range> scale_box;  // in its scales
    };
    Weight make_expert_weight(const WeightSpec& spec, std::span<const int32_t> experts,
                              std::span<const SharedExpert> shared);
    // Kernels::pack; what it throws tells the tensor's name.
    void pack(const std::string& name, Weight& weight, int64_t group, int64_t first_out,
              const Tensor& w, const Tensor* scales);
    void fill(const std::string& name, DType stored, Weight& weight, std::span<const Piece> pieces);
    void fill_later(const std::string& name, DType stored, const Weight& weight,
                    std::vector<Piece> pieces);
    void read(const std::string& name, std::span<const Range> box, std::span<std::byte> to);
    void tell_progress() const;
    Buffer take(size_t size_bytes);
    TensorInfo info(const std::string& name) const;
    bool is_shared() const { return share_ != nullptr && share_->size() > 1; }

    WeightSource& source_;
    Kernels& kernels_;
    std::function<void(int64_t)> progress_;
    NodeShares shares_;
    NodeMemory* share_ = nullptr;
    int64_t num_plain_ = 0;
    struct Task {
        int64_t num_bytes;
        std::vector<std::function<void()>> parts;
    };
    std::vector<Task> tasks_;
    std::atomic<int64_t> bytes_read_{0};
};

}  // namespace ferry
