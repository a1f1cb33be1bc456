#include <algorithm>
#include <cmath>
#include <limits>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {
namespace {

float cache_value(const Tensor& cache, int64_t index) {
    return cache.dtype() == DType::f32 ? cache.as<float>()[index]
                                       : bf16_to_f32(cache.as<uint16_t>()[index]);
}

}  // namespace

void CpuKernels::mla_decode(const DecodeAttention& a) {
    const int64_t heads = a.q_latent.dim(1), kv_lora = a.q_latent.dim(2), rope = a.q_rope.dim(2);
    const int64_t width = kv_lora + rope;
    for (const SequenceRows& rows : a.sequences)
        for (int64_t row = rows.first_row; row < rows.first_row + rows.num_rows; ++row)
            for (int64_t head = 0; head < heads; ++head) {
                const int64_t num_keys = rows.first_position + (row - rows.first_row) + 1;
                const float* q = a.q_latent.row<float>(row) + head * kv_lora;
                const float* q_rope = a.q_rope.row<float>(row) + head * rope;
                float* out = a.out.row<float>(row) + head * kv_lora;
                std::fill_n(out, kv_lora, 0.0f);
                float maximum = -std::numeric_limits<float>::infinity(), sum = 0;
                for (int64_t begin = 0; begin < num_keys; begin += kPageTokens) {
                    const int64_t keys = std::min(kPageTokens, num_keys - begin);
                    const int64_t page = rows.pages[static_cast<size_t>(begin / kPageTokens)];
                    float scores[kPageTokens];
                    float block_maximum = maximum;
                    for (int64_t j = 0; j < keys; ++j) {
                        const int64_t base = (page * kPageTokens + j) * width;
                        float dot = 0;
                        for (int64_t i = 0; i < kv_lora; ++i)
                            dot = std::fma(q[i], cache_value(a.cache, base + i), dot);
                        for (int64_t i = 0; i < rope; ++i)
                            dot =
                                std::fma(q_rope[i], cache_value(a.cache, base + kv_lora + i), dot);
                        scores[j] = dot * a.scale;
                        block_maximum = std::max(block_maximum, scores[j]);
                    }
                    const float correction = std::exp(maximum - block_maximum);
                    maximum = block_maximum;
                    sum *= correction;
                    for (int64_t i = 0; i < kv_lora; ++i) out[i] *= correction;
                    for (int64_t j = 0; j < keys; ++j) {
                        const float p = std::exp(scores[j] - maximum);
                        const int64_t base = (page * kPageTokens + j) * width;
                        sum += p;
                        for (int64_t i = 0; i < kv_lora; ++i)
                            out[i] = std::fma(p, cache_value(a.cache, base + i), out[i]);
                    }
                }
                for (int64_t i = 0; i < kv_lora; ++i) out[i] /= sum;
            }
}

}  // namespace ferry
