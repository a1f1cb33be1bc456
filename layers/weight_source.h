// The tensors of a model by name, wherever they come from (checkpoint, dummy weights, tests), and
// the list of names and shapes that a model needs. Names are those of the checkpoint's HDF5 paths,
// without the leading slash.
#pragma once
#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "layers/model_config.h"
#include "layers/stored_weights.h"

namespace ferry {

// Linear weights are [out, in]; experts [experts, out, in].
//   embed, norm, head (absent with tied embeddings)
//   layers/N/attn_norm, layers/N/ffn_norm
//   layers/N/attn/{wq | wq_a, q_norm, wq_b}, layers/N/attn/{wkv_a, kv_norm, wkv_b, wo}
//   layers/N/ffn/{w1, w2, w3}                              dense layers
//   layers/N/ffn/gate/{weight, bias}                       MoE layers; bias when has_gate_bias
//   layers/N/ffn/shared/{w1, w2, w3}, layers/N/ffn/experts/{w1, w2, w3}
//   mtp/0/{enorm, hnorm, eh_proj, head_norm}, and a block as layers/N/   with n_mtp_layers
// An fp8 tensor NAME has its scales in NAME_scale: f32 [ceil(out/128), ceil(in/128)], experts first
// when it has them. Linear weights may be int4x2: [.., out, in / 2] bytes of two values, with
// scales bf16 [.., out, in / 32].
struct TensorSpec {
    std::string name;
    std::vector<int64_t> shape;
    bool is_linear =
        false;  // stored in the model's weight type (f32, bf16 or fp8); others are f32 or bf16
    bool is_expert = false;  // dimension 0 is the routed expert
};

std::vector<TensorSpec> model_tensors(const ModelConfig& config);
// Where names of a block's tensors begin: "layers/3/", or "mtp/0/" of layer n_layers.
std::string block_prefix(const ModelConfig& config, int64_t layer);
// The layer of a tensor of a block.
int64_t layer_of(const ModelConfig& config, const std::string& name);

// "[4, 128]", for messages.
std::string describe_shape(std::span<const int64_t> shape);

struct TensorInfo {
    DType dtype = DType::f32;
    std::vector<int64_t> shape;  // int4x2: of bytes, so the last extent is half as large
};

// Whether it may be int4x2.
bool can_be_int4(const TensorSpec& spec);

// The tensor's shape in that type; nothing when it cannot be stored so.
std::optional<std::vector<int64_t>> stored_shape(const TensorSpec& spec, DType stored);

// Scales of a weight whose type has them (stored_weights.h): f32 [.., ceil(out/128), ceil(in/128)]
// of fp8, bf16 [.., out, in / 32] of int4.
TensorInfo scale_info(const TensorInfo& weight);

struct Range {
    int64_t begin = 0;
    int64_t num = 0;
};

// Rows of a matrix that are loaded at once: in multiples of 128 (fp8 scale blocks), some 256 KiB,
// which stay in cache from reading to packing.
constexpr int64_t rows_at_once(int64_t row_bytes) {
    constexpr int64_t kBytes = int64_t{256} << 10, kMultiple = 128;
    return std::max<int64_t>(1, kBytes / std::max<int64_t>(1, row_bytes * kMultiple)) * kMultiple;
}

class WeightSource {
  public:
    virtual ~WeightSource() = default;
    virtual const ModelConfig& config() const = 0;
    // From now on config() has the model's multi-token-prediction module, mtp/0/, which must be
    // there. Not all sources can.
    virtual void add_mtp();
    // Nothing when there is no tensor of that name.
    virtual std::optional<TensorInfo> find(const std::string& name) const = 0;
    // The box `ranges` (one per dimension) of a tensor as plain row-major elements of its stored
    // type, into `dst` (host memory, contiguous, the box's size). Thread-safe. Throws
    // Error(checkpoint) naming file and tensor.
    virtual void read(const std::string& name, std::span<const Range> ranges, void* dst) = 0;
};

}  // namespace ferry
