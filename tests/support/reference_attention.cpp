#include "tests/support/reference_attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace ferry {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float to_bf16(float x) {
    return bf16_to_f32(f32_to_bf16(x));
}

// 0, 1, 2 ... num - 1, or of each pair the second first.
std::vector<int64_t> order_of(int64_t num, bool rounded) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < num; ++i) order.push_back(i);
    for (int64_t i = 0; rounded && i + 1 < num; i += 2)
        std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i + 1)]);
    return order;
}

// One query over keys in blocks: m, l, o as in attention-inl.h.
struct Softmax {
    explicit Softmax(int64_t columns, bool rounded_factors = false)
        : rounded(rounded_factors), o(static_cast<size_t>(columns)) {}

    // score(j) and value(j, column) of the block's keys.
    template <typename Score, typename Value>
    void add_block(int64_t keys, Score&& score, Value&& value) {
        std::vector<float> p;
        float maximum = m;
        for (int64_t j = 0; j < keys; ++j) {
            p.push_back(score(j));
            maximum = std::max(maximum, p.back());
        }
        const float shift = maximum == kNever ? 0 : maximum;  // all are left out
        const float correction = reference_exp(m - shift);
        m = maximum;
        l *= correction;
        for (float& x : p) l += x = reference_exp(x - shift);
        const std::vector<int64_t> order = order_of(keys, rounded);
        for (size_t column = 0; column < o.size(); ++column) {
            o[column] *= correction;
            for (int64_t j : order) {
                const float weight = p[static_cast<size_t>(j)];
                o[column] =
                    std::fma(rounded ? to_bf16(weight) : weight, value(j, column), o[column]);
            }
        }
    }

    void merge(const Softmax& split) {
        const float maximum = std::max(m, split.m);
        const float a = reference_exp(m - maximum), b = reference_exp(split.m - maximum);
        m = maximum;
        l = std::fma(split.l, b, l * a);
        for (size_t i = 0; i < o.size(); ++i) o[i] = std::fma(split.o[i], b, o[i] * a);
    }

    bool rounded = false;
    float m = kNever, l = 0;
    std::vector<float> o;
};

}  // namespace

float reference_exp(float x) {
    if (x > 88.72283f) return std::numeric_limits<float>::infinity();
    if (x < -87.33f) return 0;
    const float t = std::fma(x, 1.44269502f, 12582912.0f);
    const float n = t - 12582912.0f;
    float r = std::fma(n, -0.693145751953125f, x);
    r = std::fma(n, -1.42860677e-6f, r);
    float p = 1.9875691500e-4f;
    for (float c :
         {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = std::fma(p, r, c);
    const float y = std::fma(p, r * r, r) + 1;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(y) + (std::bit_cast<uint32_t>(t) << 23));
}

void reference_prefill(const PrefillAttention& a, bool rounded) {
    const auto factor = [&](float x) { return rounded ? to_bf16(x) : x; };
    const std::vector<int64_t> depth = order_of(a.nope_dim + a.rope_dim, rounded);
    const int64_t qk_dim = a.nope_dim + a.rope_dim, kv_dim = a.nope_dim + a.v_dim;
    for (int64_t row = 0; row < a.rows.num_rows; ++row)
        for (int64_t head = 0; head < a.q.dim(1); ++head) {
            const float* q = a.q.row<float>(a.rows.first_row + row) + head * qk_dim;
            const int64_t num_keys = a.rows.first_position + row + 1;
            Softmax total(a.v_dim, rounded);
            for (int64_t begin = 0; begin < num_keys; begin += kPageTokens) {
                const auto k = [&](int64_t j) {
                    return a.kv.row<float>(begin + j) + head * kv_dim;
                };
                total.add_block(
                    std::min(kPageTokens, num_keys - begin),
                    [&](int64_t j) {
                        const int64_t at = a.rows.first_row + row, word = (begin + j) / 32;
                        if (a.mask.count() > 0 && num_keys > a.topk &&
                            (a.mask.row<uint32_t>(at)[word] >> j % 32 & 1) == 0)
                            return kNever;
                        const float* k_rope = a.rope.row<float>(begin + j);
                        float dot = 0;
                        for (int64_t i : depth) {
                            const float key = i < a.nope_dim ? k(j)[i] : k_rope[i - a.nope_dim];
                            dot = std::fma(factor(q[i]), factor(key), dot);
                        }
                        return dot * a.scale;
                    },
                    [&](int64_t j, size_t column) { return factor(k(j)[a.nope_dim + column]); });
            }
            float* out = a.out.row<float>(a.rows.first_row + row) + head * a.v_dim;
            for (float o : total.o) *out++ = o / total.l;
        }
}

void reference_decode(const DecodeAttention& a, bool rounded) {
    const auto factor = [&](float x) { return rounded ? to_bf16(x) : x; };
    const int64_t kv_lora = a.q_latent.dim(2), rope = a.q_rope.dim(2), width = kv_lora + rope;
    const std::vector<int64_t> latent_order = order_of(kv_lora, rounded),
                               rope_order = order_of(rope, rounded);
    for (const SequenceRows& rows : a.sequences)
        for (int64_t row = 0; row < rows.num_rows; ++row)
            for (int64_t head = 0; head < a.q_latent.dim(1); ++head) {
                const float* q = a.q_latent.row<float>(rows.first_row + row) + head * kv_lora;
                const float* q_rope = a.q_rope.row<float>(rows.first_row + row) + head * rope;
                const int64_t num_keys = rows.first_position + row + 1;
                const auto key = [&](int64_t position, int64_t i) {
                    const int64_t page = rows.pages[static_cast<size_t>(position / kPageTokens)];
                    const int64_t at = (page * kPageTokens + position % kPageTokens) * width + i;
                    return a.cache.dtype() == DType::f32 ? factor(a.cache.as<float>()[at])
                                                         : bf16_to_f32(a.cache.as<uint16_t>()[at]);
                };
                Softmax total(kv_lora, rounded);
                for (int64_t split = 0; split < num_keys; split += kDecodeSplitTokens) {
                    Softmax part(kv_lora, rounded);
                    const int64_t end = std::min(num_keys, split + kDecodeSplitTokens);
                    for (int64_t begin = split; begin < end; begin += kPageTokens)
                        part.add_block(
                            std::min(kPageTokens, end - begin),
                            [&](int64_t j) {
                                float dot = 0;
                                for (int64_t i : latent_order)
                                    dot = std::fma(factor(q[i]), key(begin + j, i), dot);
                                for (int64_t i : rope_order)
                                    dot = std::fma(factor(q_rope[i]), key(begin + j, kv_lora + i),
                                                   dot);
                                return dot * a.scale;
                            },
                            [&](int64_t j, size_t column) {
                                return key(begin + j, static_cast<int64_t>(column));
                            });
                    if (split == 0)
                        total = part;
                    else
                        total.merge(part);
                }
                float* out = a.out.row<float>(rows.first_row + row) + head * kv_lora;
                for (float o : total.o) *out++ = o / total.l;
            }
}

std::vector<float> reference_key_scores(const KeySelection& s, const SequenceRows& rows,
                                        int64_t row, bool rounded) {
    const auto factor = [&](float x) { return rounded ? to_bf16(x) : x; };
    const int64_t heads = s.q.dim(1), dim = s.q.dim(2),
                  batch_row = rows.first_row - s.first_row + row;
    const std::vector<int64_t> order = order_of(dim, rounded);
    std::vector<float> scores;
    for (int64_t position = 0; position <= rows.first_position + row; ++position) {
        const int64_t page = rows.pages[static_cast<size_t>(position / kPageTokens)];
        const int64_t at = (page * kPageTokens + position % kPageTokens) * dim;
        float sums[16] = {};
        for (int64_t head = 0; head < heads; ++head) {
            float dot = 0;
            for (int64_t i : order) {
                const float key = s.keys.dtype() == DType::f32
                                      ? factor(s.keys.as<float>()[at + i])
                                      : bf16_to_f32(s.keys.as<uint16_t>()[at + i]);
                dot = std::fma(factor(s.q.row<float>(batch_row)[head * dim + i]), key, dot);
            }
            sums[head % 16] = std::fma(s.weights.row<float>(batch_row)[head], std::max(dot, 0.0f),
                                       sums[head % 16]);
        }
        for (int width = 8; width >= 1; width /= 2)
            for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
        scores.push_back(sums[0]);
    }
    return scores;
}

}  // namespace ferry
