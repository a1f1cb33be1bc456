// A small model whose linear layers are int4, and the same with its int4 weights as f32.
#pragma once
#include <memory>
#include <numeric>
#include <vector>

#include "runtime/dummy_weights.h"

namespace ferry::testing {

// Every linear layer; some slices of w2 are empty (of the shared experts).
inline std::unique_ptr<DummyWeights> int4_model(uint64_t seed = 3) {
    const ModelConfig config{.vocab_size = 90,
                             .dim = 160,
                             .inter_dim = 416,
                             .moe_inter_dim = 64,
                             .n_layers = 3,
                             .n_dense_layers = 1,
                             .n_heads = 4,
                             .q_lora_rank = 96,
                             .kv_lora_rank = 32,
                             .qk_nope_head_dim = 16,
                             .qk_rope_head_dim = 8,
                             .v_head_dim = 24,
                             .yarn = {},
                             .n_routed_experts = 6,
                             .n_shared_experts = 2,
                             .n_activated_experts = 2};
    return std::make_unique<DummyWeights>(
        config, DummyOptions{.seed = seed, .dtype = DType::int4x2, .int4 = Int4Weights::all});
}

// Codes times scales, which is exact.
class WidenedInt4 : public WeightSource {
  public:
    explicit WidenedInt4(WeightSource& source) : source_(source) {}

    const ModelConfig& config() const override { return source_.config(); }
    std::optional<TensorInfo> find(const std::string& name) const override {
        std::optional<TensorInfo> info = source_.find(name);
        if (!info || info->dtype != DType::int4x2) return info;
        info->shape.back() *= 2;
        info->dtype = DType::f32;
        return info;
    }
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override {
        const TensorInfo stored = *source_.find(name);
        if (stored.dtype != DType::int4x2) return source_.read(name, ranges, dst);
        std::vector<Range> rows(ranges.begin(), ranges.end()), groups = rows;
        const Range columns = ranges.back();
        rows.back() = {0, stored.shape.back()};
        groups.back() = {0, scale_info(stored).shape.back()};
        const int64_t num_rows =
            std::accumulate(ranges.begin(), ranges.end() - 1, int64_t{1},
                            [](int64_t num, const Range& range) { return num * range.num; });
        std::vector<uint8_t> codes(static_cast<size_t>(num_rows * rows.back().num));
        std::vector<uint16_t> scales(static_cast<size_t>(num_rows * groups.back().num));
        source_.read(name, rows, codes.data());
        source_.read(name + "_scale", groups, scales.data());
        auto* to = static_cast<float*>(dst);
        for (int64_t row = 0; row < num_rows; ++row)
            for (int64_t k = columns.begin; k < columns.begin + columns.num; ++k) {
                const size_t code = static_cast<size_t>(row * rows.back().num + k / 2);
                const size_t group = static_cast<size_t>(row * groups.back().num + k / kInt4Group);
                *to++ =
                    static_cast<float>(int4_value(codes[code], k % 2)) * bf16_to_f32(scales[group]);
            }
    }

  private:
    WeightSource& source_;
};

}  // namespace ferry::testing
