#include <algorithm>
#include <cmath>
#include <limits>

#include "layers/cpu/cpu_kernels.h"

namespace ferry {

void CpuKernels::mla_prefill(const PrefillAttention& a) {
    const int64_t heads = a.q.dim(1), qk_dim = a.nope_dim + a.rope_dim;
    const int64_t kv_dim = a.nope_dim + a.v_dim;
    for (int64_t row = 0; row < a.rows.num_rows; ++row) {
        const int64_t num_keys = a.rows.first_position + row + 1;
        for (int64_t head = 0; head < heads; ++head) {
            const float* q = a.q.row<float>(a.rows.first_row + row) + head * qk_dim;
            float* out = a.out.row<float>(a.rows.first_row + row) + head * a.v_dim;
            std::fill_n(out, a.v_dim, 0.0f);
            float maximum = -std::numeric_limits<float>::infinity(), sum = 0;
            for (int64_t begin = 0; begin < num_keys; begin += kPageTokens) {
                const int64_t keys = std::min(kPageTokens, num_keys - begin);
                float scores[kPageTokens];
                float block_maximum = maximum;
                for (int64_t j = 0; j < keys; ++j) {
                    const float* k = a.kv.row<float>(begin + j) + head * kv_dim;
                    const float* k_rope = a.latent.row<float>(begin + j) + a.kv_lora_rank;
                    float dot = 0;
                    for (int64_t i = 0; i < a.nope_dim; ++i) dot = std::fma(q[i], k[i], dot);
                    for (int64_t i = 0; i < a.rope_dim; ++i)
                        dot = std::fma(q[a.nope_dim + i], k_rope[i], dot);
                    scores[j] = dot * a.scale;
                    block_maximum = std::max(block_maximum, scores[j]);
                }
                const float correction = std::exp(maximum - block_maximum);
                maximum = block_maximum;
                sum *= correction;
                for (int64_t i = 0; i < a.v_dim; ++i) out[i] *= correction;
                for (int64_t j = 0; j < keys; ++j) {
                    const float p = std::exp(scores[j] - maximum);
                    const float* v = a.kv.row<float>(begin + j) + head * kv_dim + a.nope_dim;
                    sum += p;
                    for (int64_t i = 0; i < a.v_dim; ++i) out[i] = std::fma(p, v[i], out[i]);
                }
            }
            for (int64_t i = 0; i < a.v_dim; ++i) out[i] /= sum;
        }
    }
}

}  // namespace ferry
