// Made-up calls of select_keys.
#pragma once
#include <numeric>

#include "layers/sampling_math.h"
#include "tests/layers/cpu/attention_support.h"
#include "tests/support/reference_attention.h"

namespace ferry {

// Sequences given by (first position, rows), their pages dealt out in a shuffled order.
struct Selecting {
    using Sequence = std::pair<int64_t, int64_t>;
    using Rows = std::vector<std::vector<int32_t>>;

    Selecting(int64_t heads, int64_t dim, int64_t topk_keys, const std::vector<Sequence>& list,
              DType dtype)
        : topk(topk_keys) {
        int64_t num_pages = 0;
        for (const auto& [position, rows] : list) {
            num_rows += rows;
            num_pages += ceil_div(position + rows, kPageTokens);
            positions = std::max(positions, position + rows);
        }
        order.resize(static_cast<size_t>(num_pages));
        std::iota(order.begin(), order.end(), 0);
        Random random(1);
        for (size_t i = order.size(); i > 1; --i)
            std::swap(order[i - 1], order[random.next_u32() % i]);
        q = random_tensor({num_rows, heads, dim}, 20);
        weights = random_tensor({num_rows, heads}, 21);
        keys = random_tensor({num_pages, kPageTokens, dim}, 22, dtype);
        int64_t row = 0, page = 0;
        for (const auto& [position, rows] : list) {
            const int64_t used = ceil_div(position + rows, kPageTokens);
            sequences.push_back({.first_row = row,
                                 .num_rows = rows,
                                 .first_position = position,
                                 .pages = std::span(order).subspan(static_cast<size_t>(page),
                                                                   static_cast<size_t>(used))});
            row += rows;
            page += used;
        }
    }

    int64_t num_keys(const SequenceRows& rows, int64_t row) const {
        return std::min(topk, rows.first_position + row + 1);
    }
    KeySelection selection() const {
        return {.q = q,
                .weights = weights,
                .keys = keys,
                .topk = topk,
                .scores = {},
                .sequences = sequences};
    }
    // What is chosen of each row of `some`.
    Rows rows_of(const Tensor& chosen, std::span<const SequenceRows> some) const {
        Rows result;
        for (const SequenceRows& rows : some)
            for (int64_t i = 0; i < rows.num_rows; ++i) {
                const auto* from = chosen.row<int32_t>(rows.first_row + i);
                result.emplace_back(from, from + num_keys(rows, i));
            }
        return result;
    }
    Rows reference(bool rounded) const {
        Rows result;
        for (const SequenceRows& rows : sequences)
            for (int64_t i = 0; i < rows.num_rows; ++i) {
                const std::vector<float> scores =
                    reference_key_scores(selection(), rows, i, rounded);
                std::vector<int32_t> best(scores.size());
                std::iota(best.begin(), best.end(), 0);
                std::stable_sort(best.begin(), best.end(), [&](int32_t a, int32_t b) {
                    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
                });
                best.resize(static_cast<size_t>(num_keys(rows, i)));
                std::sort(best.begin(), best.end());
                result.push_back(best);
            }
        return result;
    }

    int64_t topk, num_rows = 0, positions = 0;
    OwnedTensor q, weights, keys;
    std::vector<int32_t> order;
    std::vector<SequenceRows> sequences;
};

}  // namespace ferry
