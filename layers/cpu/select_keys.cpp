// Sparse attention: which keys a row attends to. Heads lie in vector lanes, 16 to a panel, and a
// product is summed as attention's scores are (attention-inl.h). Of a key, lane l adds up
// w_h relu(q_h . k) of heads h = l, l + 16, ... by FMAs from 0; then lanes are added by halves.
//
// Tasks are a row's keys in splits of kDecodeSplitTokens, as many rows at once as there is memory
// for their scores, then those rows, of which each looks for its highest.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

#include "layers/cpu/cpu_kernels.h"
#include "layers/sampling_math.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/select_keys.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/attention-inl.h"
#include "layers/cpu/bf16-inl.h"

#ifndef FERRY_LAYERS_CPU_SELECT_KEYS_ONCE
#define FERRY_LAYERS_CPU_SELECT_KEYS_ONCE
namespace ferry {
namespace {

constexpr int64_t kLaneHeads = 16;

// Rows of a task: what they share of a page is taken from the cache once.
constexpr int64_t kRowsAtOnce = 4;

// Of what a task needs, in a thread's scratch, in floats.
struct SelectSizes {
    int64_t heads, head_dim, panels;

    explicit SelectSizes(const KeySelection& s)
        : heads(s.q.dim(1)), head_dim(s.q.dim(2)), panels(ceil_div(heads, kLaneHeads)) {}

    int64_t words() const { return head_dim + head_dim % 2; }  // at most, of a key
    int64_t row_queries() const { return panels * words() * kLaneHeads; }
    int64_t row_weights() const { return panels * kLaneHeads; }
    int64_t weights_offset() const { return kRowsAtOnce * row_queries(); }
    int64_t keys_offset() const { return weights_offset() + kRowsAtOnce * row_weights(); }
    int64_t products_offset() const { return keys_offset() + kPageTokens * words(); }
    int64_t sums_offset() const {
        return products_offset() + std::max(kPageTokens * kLaneHeads, words());
    }
    int64_t floats() const { return sums_offset() + kPageTokens * kLaneHeads; }
};

// A row of a call.
struct SelectingRow {
    const SequenceRows* sequence = nullptr;
    int64_t row = 0;  // of q
    int64_t num_keys = 0;
    float* scores = nullptr;
};
using ScoreKeys = void (*)(const KeySelection&, std::span<const SelectingRow>, int64_t begin,
                           float* scratch);

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

// Keys of a page as rows of a form's words. `room`: for one of them as f32.
template <class Form>
void take_keys(const Tensor& cache, int64_t page, int64_t num_keys, float* room, float* to) {
    const int64_t width = cache.dim(2), words = Form::words(width);
    for (int64_t j = 0; j < num_keys; ++j, to += words) {
        const int64_t from = (page * kPageTokens + j) * width;
        float* const values = Form::kRounds ? room : to;
        if constexpr (Form::kRounds)
            if (cache.dtype() == DType::bf16 && width % 2 == 0) {
                Form::join(cache.as<uint16_t>() + from, width, to);
                continue;
            }
        if (cache.dtype() == DType::f32)
            std::copy_n(cache.as<float>() + from, width, values);
        else
            widen_bf16(cache.as<uint16_t>() + from, width, values);
        if constexpr (Form::kRounds) round_words<Form>(values, width, to);
    }
}

// sums[j][lane] = fma(weights[lane], relu(scores[j][lane]), sums[j][lane]).
HWY_INLINE void add_heads(const float* HWY_RESTRICT scores, const float* HWY_RESTRICT weights,
                          int64_t num_keys, float* HWY_RESTRICT sums) {
    const Floats d;
    for (int64_t lane = 0; lane < kLaneHeads; lane += kLanes) {
        const FloatVector weight = hn::Load(d, weights + lane);
        for (int64_t at = lane; at < num_keys * kLaneHeads; at += kLaneHeads) {
            const FloatVector score = hn::Max(hn::Load(d, scores + at), hn::Zero(d));
            hn::Store(fused_multiply_add(weight, score, hn::Load(d, sums + at)), d, sums + at);
        }
    }
}

// By halves.
HWY_INLINE float add_lanes(const float* HWY_RESTRICT lanes) {
#if HWY_TARGET == HWY_SCALAR
    float sums[kLaneHeads];
    std::copy_n(lanes, kLaneHeads, sums);
    for (int64_t width = kLaneHeads / 2; width >= 1; width /= 2)
        for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    return sums[0];
#else
    const hn::FixedTag<float, 4> d4;
    const auto low = hn::Add(hn::Load(d4, lanes), hn::Load(d4, lanes + 8));
    const auto high = hn::Add(hn::Load(d4, lanes + 4), hn::Load(d4, lanes + 12));
    HWY_ALIGN float sums[4];
    hn::Store(hn::Add(low, high), d4, sums);
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
#endif
}

// Queries and weights of the rows of a task.
template <class Form>
void pack_rows(const KeySelection& s, const SelectSizes& sizes, std::span<const SelectingRow> rows,
               float* scratch) {
    const int64_t words = Form::words(sizes.head_dim);
    for (size_t i = 0; i < rows.size(); ++i) {
        float* const queries = scratch + static_cast<int64_t>(i) * sizes.row_queries();
        float* const weights =
            scratch + sizes.weights_offset() + static_cast<int64_t>(i) * sizes.row_weights();
        std::fill(std::copy_n(s.weights.row<float>(rows[i].row), sizes.heads, weights),
                  weights + sizes.row_weights(), 0.0f);
        for (int64_t panel = 0; panel < sizes.panels; ++panel) {
            const int64_t head = panel * kLaneHeads;
            pack_words<Form>(s.q.row<float>(rows[i].row) + head * sizes.head_dim, sizes.head_dim,
                             std::min(kLaneHeads, sizes.heads - head), sizes.head_dim,
                             scratch + sizes.keys_offset(), queries + panel * words * kLaneHeads);
        }
    }
}

// Scores of some rows for the split of keys that begins at `begin`.
template <class Form>
void score_keys(const KeySelection& s, std::span<const SelectingRow> rows, int64_t begin,
                float* scratch) {
    const SelectSizes sizes(s);
    const int64_t words = Form::words(sizes.head_dim);
    float* const keys = scratch + sizes.keys_offset();
    float* const products = scratch + sizes.products_offset();
    float* const sums = scratch + sizes.sums_offset();
    pack_rows<Form>(s, sizes, rows, scratch);
    for (int64_t key = begin; key < begin + kDecodeSplitTokens; key += kPageTokens) {
        int64_t taken = -1, num_taken = 0;  // page of the cache, and how many of its keys
        for (size_t i = 0; i < rows.size(); ++i) {
            const int64_t num_keys = std::min(kPageTokens, rows[i].num_keys - key);
            if (num_keys <= 0) continue;
            const int64_t page = rows[i].sequence->pages[static_cast<size_t>(key / kPageTokens)];
            if (page != taken || num_keys > num_taken)
                take_keys<Form>(s.keys, taken = page, num_taken = num_keys, products, keys);
            const float* const queries = scratch + static_cast<int64_t>(i) * sizes.row_queries();
            const float* const weights =
                scratch + sizes.weights_offset() + static_cast<int64_t>(i) * sizes.row_weights();
            std::fill_n(sums, num_keys * kLaneHeads, 0.0f);
            for (int64_t panel = 0; panel < sizes.panels; ++panel) {
                Ahead nothing{.at = reinterpret_cast<const std::byte*>(keys), .step = 0};
                score_block<Form>(queries + panel * words * kLaneHeads, words, keys, words,
                                  num_keys, false, nothing, products);
                add_heads(products, weights + panel * kLaneHeads, num_keys, sums);
            }
            for (int64_t j = 0; j < num_keys; ++j)
                rows[i].scores[key + j] = add_lanes(sums + j * kLaneHeads);
        }
    }
}

ScoreKeys score_function(bool rounds, bool dots) {
    if (!rounds) return score_keys<Exact>;
    return dots ? score_keys<Dots> : score_keys<Pairs>;
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(score_function);

// take(position) of the `topk` highest scores, ascending.
template <typename Take>
void choose_highest(const float* scores, int64_t num_keys, int64_t topk, uint32_t* order,
                    Take&& take) {
    const std::span all(order, static_cast<size_t>(num_keys));
    std::transform(scores, scores + num_keys, all.begin(), rank_key);
    const auto last = all.begin() + topk - 1;
    std::nth_element(all.begin(), last, all.end(), std::greater<>());
    const uint32_t lowest = *last;
    const auto higher = [lowest](float score) { return rank_key(score) > lowest; };
    int64_t num_equal = topk - std::count_if(scores, scores + num_keys, higher);
    for (int64_t key = 0; key < num_keys; ++key) {
        const uint32_t rank = rank_key(scores[key]);
        if (rank > lowest || (rank == lowest && num_equal-- > 0)) take(key);
    }
}

// Writes what a row chose.
void choose(const KeySelection& s, const SelectingRow& row, uint32_t* order) {
    const auto to_each = [&](auto&& take) {
        if (row.num_keys > s.topk)
            return choose_highest(row.scores, row.num_keys, s.topk, order, take);
        for (int64_t key = 0; key < row.num_keys; ++key) take(key);
    };
    if (s.mask.count() > 0) {
        auto* const words = s.mask.row<uint32_t>(row.row);
        std::fill_n(words, ceil_div(row.num_keys, kPageTokens) * 2, 0u);
        to_each([&](int64_t key) { words[key / 32] |= 1u << key % 32; });
    } else {
        auto* to = s.chosen.row<int32_t>(row.row);
        to_each([&](int64_t key) { *to++ = static_cast<int32_t>(key); });
    }
}

// The index-th row of a call, counted through its sequences.
SelectingRow find_row(const KeySelection& s, int64_t index) {
    for (const SequenceRows& rows : s.sequences) {
        if (index < rows.num_rows)
            return {.sequence = &rows,
                    .row = rows.first_row - s.first_row + index,
                    .num_keys = rows.first_position + index + 1};
        index -= rows.num_rows;
    }
    return {};
}

}  // namespace

void CpuKernels::select_keys(const KeySelection& s) {
    const int64_t tokens = s.q.rows(), topk = s.topk;
    check_shape(s.q, "q", DType::f32, {tokens, s.q.dim(1), s.q.dim(2)});
    check_shape(s.weights, "weights", DType::f32, {tokens, s.q.dim(1)});
    check_shape(s.keys, "keys", s.keys.dtype(), {s.keys.dim(0), kPageTokens, s.q.dim(2)});
    if (s.mask.count() > 0)
        check_shape(s.mask, "mask", DType::i32, {tokens, s.mask.dim(1)});
    else
        check_shape(s.chosen, "chosen", DType::i32, {tokens, topk});
    const SelectSizes sizes(s);
    const int64_t at_once = s.scores.rows(), positions = s.scores.dim(1);
    const auto room = static_cast<int64_t>(threads_.scratch_bytes() / sizeof(float));
    FERRY_CHECK(at_once > 0 && std::max(sizes.floats(), positions) <= room,
                "{} bytes of scratch are too few for {} index heads of {} over {} positions",
                threads_.scratch_bytes(), sizes.heads, sizes.head_dim, positions);
    const ScoreKeys score =
        HWY_DYNAMIC_DISPATCH(score_function)(options_.bf16_activations, uses_bf16_dots());
    int64_t num_rows = 0;
    for (const SequenceRows& rows : s.sequences) num_rows += rows.num_rows;
    const int64_t splits = ceil_div(positions, kDecodeSplitTokens);
    for (int64_t begin = 0; begin < num_rows; begin += at_once) {
        const int64_t num = std::min(at_once, num_rows - begin);
        threads_.parallel_for(ceil_div(num, kRowsAtOnce) * splits, [&](int64_t task, int thread) {
            std::array<SelectingRow, kRowsAtOnce> rows;
            size_t num_rows_here = 0;
            const int64_t first = task % splits * kDecodeSplitTokens;
            const int64_t first_row = task / splits * kRowsAtOnce;
            for (int64_t i = first_row; i < std::min(first_row + kRowsAtOnce, num); ++i) {
                SelectingRow row = find_row(s, begin + i);
                row.scores = s.scores.row<float>(i);
                if (row.num_keys > topk && row.num_keys > first) rows[num_rows_here++] = row;
            }
            if (num_rows_here > 0)
                score(s, std::span(rows).first(num_rows_here), first,
                      reinterpret_cast<float*>(threads_.scratch(thread)));
        });
        threads_.parallel_for(num, [&](int64_t index, int thread) {
            SelectingRow row = find_row(s, begin + index);
            row.scores = s.scores.row<float>(index);
            FERRY_CHECK(
                s.mask.count() == 0 || ceil_div(row.num_keys, kPageTokens) * 2 <= s.mask.dim(1),
                "mask {} of {} keys", s.mask.describe(), row.num_keys);
            choose(s, row, reinterpret_cast<uint32_t*>(threads_.scratch(thread)));
        });
    }
}

}  // namespace ferry
#endif  // HWY_ONCE
