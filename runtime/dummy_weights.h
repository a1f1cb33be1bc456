// Seeded random weights of a published shape, made in memory without any file: for benchmarks.
#pragma once
#include <map>
#include <string>

#include "runtime/convert_plan.h"

namespace ferry {

struct DummyOptions {
    uint64_t seed = 1;
    // Of linear weights: f32, bf16, fp8_e4m3 (embedding and head bf16) or int4x2 (of those that
    // `int4` says; all else bf16).
    DType dtype = DType::bf16;
    Int4Weights int4 = Int4Weights::experts;
    int64_t n_layers = 0;  // fewer layers than the shape has; 0: all
    bool mtp = false;      // with a multi-token-prediction module
};

// The value of an element depends on seed, tensor name and position only. Weights have random signs
// and magnitudes within a factor of two, their root mean square is 1/sqrt(in) (for f32 and bf16 up
// to a factor of sqrt(2)); norms are 1, gate biases 0. int4 values are odd, from -7 to 7, so that
// their mean is 0.
class DummyWeights : public WeightSource {
  public:
    // Throws Error(usage) for a dtype or number of layers that does not fit.
    DummyWeights(ModelConfig config, const DummyOptions& options);

    const ModelConfig& config() const override { return config_; }
    std::optional<TensorInfo> find(const std::string& name) const override;
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override;

  private:
    // 8 bytes of elements are (random word & mask) | pattern.
    struct Tensor {
        TensorInfo info;
        uint64_t key, mask, pattern;
    };
    void add(const std::string& name, TensorInfo info, uint64_t mask, uint64_t pattern);
    void add_random(const TensorSpec& spec, DType dtype);

    ModelConfig config_;
    uint64_t seed_;
    std::map<std::string, Tensor> tensors_;
};

}  // namespace ferry
