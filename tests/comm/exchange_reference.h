// The exchange as one loop, to compare with: what combine() must return for given expert outputs.
#pragma once
#include <vector>

#include "base/random.h"
#include "comm/exchange.h"
#include "comm/row_codec.h"

namespace ferry {

struct Tokens {
    std::vector<float> x{};          // [num, dim]
    std::vector<int32_t> experts{};  // [num, topk]
    std::vector<float> weights{};    // [num, topk]
    int64_t num = 0, dim = 0, topk = 0;

    Tensor x_view() const { return Tensor(x.data(), DType::f32, {num, dim}); }
    Routing routing() const {
        return {Tensor(experts.data(), DType::i32, {num, topk}),
                Tensor(weights.data(), DType::f32, {num, topk})};
    }
};

// Rows of -7, 0 and 7 (exact in every dtype) and weights 1 and 2, so that expert outputs are small
// integers and all their sums are exact in bf16; skew sends most tokens to the first experts.
// Depends on the seed only: any rank can make the tokens of any other.
inline Tokens make_tokens(uint64_t seed, int64_t num, int64_t dim, int64_t topk, int num_experts,
                          bool skewed) {
    Tokens tokens{.num = num, .dim = dim, .topk = topk};
    Random random(seed);
    for (int64_t i = 0; i < num * dim; ++i)
        tokens.x.push_back(static_cast<float>(static_cast<int>(random.next_u32() % 3) * 7 - 7));
    for (int64_t t = 0; t < num; ++t) {
        std::vector<int32_t> chosen;
        while (static_cast<int64_t>(chosen.size()) < topk) {
            const uint32_t draw = random.next_u32();
            const auto expert = static_cast<int32_t>(
                skewed && draw % 8 != 0 ? (draw >> 8) % static_cast<uint32_t>(topk)
                                        : (draw >> 8) % static_cast<uint32_t>(num_experts));
            if (std::find(chosen.begin(), chosen.end(), expert) == chosen.end())
                chosen.push_back(expert);
        }
        for (int32_t expert : chosen) {
            tokens.experts.push_back(expert);
            tokens.weights.push_back(static_cast<float>(1 + random.next_u32() % 2));
        }
    }
    return tokens;
}

// "Expert e of layer l": adds and negates by column, e and l; |y| <= |x| + 4.
inline void fake_expert(int layer, int expert, const float* x, int64_t dim, float* y) {
    for (int64_t i = 0; i < dim; ++i) {
        const float value = x[i] + static_cast<float>((expert * 5 + i) % 4 + layer % 2);
        y[i] = ((i >> 2) + expert * 3 + (expert >> 2)) & 1 ? -value : value;
    }
}

// combine() for these tokens by the definition in exchange.h.
inline std::vector<float> reference_combine(const ExchangeOptions& options, int layer,
                                            const Tokens& tokens) {
    const int64_t dim = tokens.dim;
    std::vector<float> out(static_cast<size_t>(tokens.num * dim));
    std::vector<std::byte> wire(static_cast<size_t>(dim) * 4);
    std::vector<float> scales(static_cast<size_t>(dim / 128 + 1));
    std::vector<float> x(dim), y(dim);
    for (int64_t t = 0; t < tokens.num; ++t) {
        encode_row(options.dtype, tokens.x.data() + t * dim, dim, wire.data(), scales.data());
        decode_row(options.dtype, wire.data(), scales.data(), dim, x.data());
        for (int64_t k = 0; k < tokens.topk; ++k) {
            fake_expert(layer, tokens.experts[t * tokens.topk + k], x.data(), dim, y.data());
            encode_row(combine_dtype(options), y.data(), dim, wire.data(), nullptr);
            decode_row(combine_dtype(options), wire.data(), nullptr, dim, y.data());
            const float weight = tokens.weights[t * tokens.topk + k];
            for (int64_t i = 0; i < dim; ++i) {
                const float product = weight * y[i];
                float& sum = out[t * dim + i];
                sum = k == 0 ? product : sum + product;
            }
        }
    }
    return out;
}

// y of a batch: every slot is its expert.
inline void fake_experts(const ExpertBatch& batch, std::span<const int> experts) {
    decode_rows(batch);
    for (size_t slot = 0; slot + 1 < batch.offsets.size(); ++slot)
        for (int64_t row = batch.offsets[slot]; row < batch.offsets[slot + 1]; ++row) {
            std::vector<float> y(batch.rows.dim(1));
            fake_expert(batch.layer, experts[slot], batch.rows.row<float>(row), batch.rows.dim(1),
                        y.data());
            std::copy(y.begin(), y.end(), batch.rows.row<float>(row));
        }
}

}  // namespace ferry
