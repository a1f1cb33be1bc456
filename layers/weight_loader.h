// From a WeightSource into the backend's packed weights, a piece at a time (bounded memory), the
// pieces in parallel.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "comm/node_memory.h"
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

class WeightLoader {
  public:
    // While one exists, what is loaded is what all ranks of `share()` load alike.
    class Replicated {
      public:
        explicit Replicated(WeightLoader& loader) : loader_(loader) { ++loader_.replicated_; }
        ~Replicated() { --loader_.replicated_; }
        Replicated(const Replicated&) = delete;
        Replicated& operator=(const Replicated&) = delete;

      private:
        WeightLoader& loader_;
    };

    // `progress` is called with the bytes read so far, from the calling thread.
    WeightLoader(WeightSource& source, Kernels& kernels,
                 std::function<void(int64_t bytes)> progress = {});
    // Weights that the node's members hold alike are kept once, each member reads and packs a part
    // of them; they are whole after share.barrier(). `share` must outlive the weights.
    void share_on_node(NodeMemory& share) { share_ = &share; }

    const ModelConfig& config() const { return source_.config(); }
    Kernels& kernels() { return kernels_; }
    int64_t bytes_read() const { return bytes_read_; }
    // An empty weight, shared while Replicated.
    Weight make_weight(const WeightSpec& spec);
    // This rank packs part i (of any weight).
    bool is_mine(int64_t i) const { return !shares() || i % share_->size() == share_->rank(); }

    // A whole tensor widened to f32 (norms, biases, gate weights).
    OwnedTensor plain(const std::string& name);
    // A tensor of f32 or bf16 rows in its stored type (embedding).
    OwnedTensor rows(const std::string& name, Range rows);
    // Matrix [out, in], or the box `out` x `in` of it (fp8: begins at multiples of 128).
    Weight linear(const std::string& name);
    Weight linear(const std::string& name, Range out, Range in);
    // The named experts of [experts, out, in], one group each.
    Weight experts(const std::string& name, std::span<const int32_t> experts);
    // The matrix as plain f32 [out, in], fp8 scales applied.
    OwnedTensor dequantised(const std::string& name);
    OwnedTensor dequantised(const std::string& name, Range out);  // fp8: whole blocks of 128
    DType dtype(const std::string& name) const;
    std::vector<int64_t> shape(const std::string& name) const;

  private:
    struct Piece {
        int64_t group, first_out, num_out;
        std::vector<Range> box;        // in the source tensor
        std::vector<Range> scale_box;  // in its scales
    };
    void fill(const std::string& name, Weight& weight, const std::vector<Piece>& pieces);
    void count(int64_t bytes);
    TensorInfo info(const std::string& name) const;
    bool shares() const { return share_ != nullptr && share_->size() > 1 && replicated_ > 0; }

    WeightSource& source_;
    Kernels& kernels_;
    std::function<void(int64_t)> progress_;
    NodeMemory* share_ = nullptr;
    int replicated_ = 0;
    int64_t bytes_read_ = 0;
};

}  // namespace ferry
