// Expanded attention of one sequence's prompt rows. A task is a head and a tile of rows; blocks of
// kPageTokens keys at absolute positions are packed into scratch once per tile (heads lie far
// apart in kv) and serve its panels of 16 rows, which lie in vector lanes (attention-inl.h has the
// order of operations; the result is o_d / l). A row's operations are the same whatever tile or
// panel it falls into: keys beyond its position are skipped, not multiplied by zero.
#include <algorithm>
#include <limits>

#include "layers/cpu/cpu_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/cpu/mla_prefill.cpp"
#include "layers/cpu/vector_targets.h"
//
#include <hwy/foreach_target.h>
//
#include "layers/cpu/attention-inl.h"

#ifndef FERRY_LAYERS_CPU_MLA_PREFILL_ONCE
#define FERRY_LAYERS_CPU_MLA_PREFILL_ONCE
namespace ferry {
namespace {

constexpr int64_t kPanelRows = 16;
// Queries and outputs of a tile with a block of keys: 400 KiB of L2 at widths 192 and 128.
constexpr int64_t kTileRows = 256;
constexpr int64_t kWidestStrip = 32;  // columns are padded to the widest of all targets

// Where things lie in a thread's scratch, in floats.
struct PrefillSizes {
    int64_t depth, even_depth, out_width;

    explicit PrefillSizes(const PrefillAttention& a)
        : depth(a.nope_dim + a.rope_dim),
          even_depth(depth + depth % 2),
          out_width(ceil_div(a.v_dim, kWidestStrip) * kWidestStrip) {}

    int64_t scores() const { return 0; }  // [64][16], then corrections [16]
    int64_t keys() const { return (kPageTokens + 1) * kPanelRows; }  // [64][depth], then a row
    int64_t values() const { return keys() + (kPageTokens + 1) * ceil_div(even_depth, 16) * 16; }
    int64_t panels() const { return values() + kPageTokens * out_width; }  // values in strips
    // Of a panel: m, l, queries [depth][16], o [16][out_width].
    int64_t panel() const { return (2 + even_depth + out_width) * kPanelRows; }
    int64_t total() const { return panels() + kTileRows / kPanelRows * panel(); }
};

}  // namespace
}  // namespace ferry
#endif

HWY_BEFORE_NAMESPACE();
namespace ferry {
namespace HWY_NAMESPACE {

HWY_INLINE void copy(const float* HWY_RESTRICT from, int64_t count, float* HWY_RESTRICT to) {
    const Floats d;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
    for (; i < count; ++i) to[i] = from[i];
}

// Columns [column, column + kStrip) of the values of a pair of keys as words; what lies beyond the
// width, or the second key if it is not there, is zero.
template <class Form>
HWY_INLINE void join_values(const float* first, const float* second, int64_t num,
                            float* HWY_RESTRICT to) {
    uint16_t rounded[2][kStrip] = {};
    narrow_bf16(first, num, rounded[0]);
    if (second != nullptr) narrow_bf16(second, num, rounded[1]);
    Form::join_rows(rounded[0], rounded[1], kStrip, to, kStrip);
}

// keys[j] = (k_nope, k_rope) of key `begin` + j; values in strips of kStrip columns, [64][kStrip]
// each.
template <class Form>
void pack_block(const PrefillAttention& a, const PrefillSizes& sizes, int64_t head, int64_t begin,
                int64_t num_keys, float* HWY_RESTRICT keys, float* HWY_RESTRICT values) {
    const int64_t key_words = Form::words(sizes.depth);
    float* const row = keys + kPageTokens * sizes.even_depth;
    const auto kv_of = [&](int64_t j) {
        return a.kv.row<float>(begin + j) + head * (a.nope_dim + a.v_dim);
    };
    for (int64_t j = 0; j < num_keys; ++j) {
        float* const key = Form::kRounds ? row : keys + j * key_words;
        copy(kv_of(j), a.nope_dim, key);
        copy(a.rope.row<float>(begin + j), a.rope_dim, key + a.nope_dim);
        if constexpr (Form::kRounds) round_words<Form>(row, sizes.depth, keys + j * key_words);
    }
    constexpr int64_t kKeys = Form::kRounds ? 2 : 1;
    for (int64_t j = 0; j < num_keys; j += kKeys) {
        const float* v = kv_of(j) + a.nope_dim;
        float* to = values + Form::words(j) * kStrip;
        for (int64_t column = 0; column < sizes.out_width;
             column += kStrip, to += kPageTokens * kStrip) {
            const int64_t num = std::clamp<int64_t>(a.v_dim - column, 0, kStrip);
            if constexpr (Form::kRounds) {
                const float* second =
                    j + 1 < num_keys ? kv_of(j + 1) + a.nope_dim + column : nullptr;
                join_values<Form>(v + column, second, num, to);
            } else {
                copy(v + column, num, to);
                std::fill(to + num, to + kStrip, 0.0f);
            }
        }
    }
}

// Rows [first_row, first_row + num_rows) of the sequence's rows, at most kTileRows.
template <class Form>
void attend_tile(const PrefillAttention& a, int64_t head, int64_t first_row, int64_t num_rows,
                 float* scratch) {
    const PrefillSizes sizes(a);
    const int64_t depth_words = Form::words(sizes.depth);
    float* scores = scratch + sizes.scores();
    float* corrections = scores + kPageTokens * kPanelRows;
    float* keys = scratch + sizes.keys();
    float* values = scratch + sizes.values();
    const int64_t batch_row = a.rows.first_row + first_row;
    const int64_t first_position = a.rows.first_position + first_row;
    const int64_t num_panels = ceil_div(num_rows, kPanelRows);
    const bool masked = a.mask.count() > 0;
    const auto panel_rows = [&](int64_t panel) {
        return std::min(kPanelRows, num_rows - panel * kPanelRows);
    };

    for (int64_t panel = 0; panel < num_panels; ++panel) {
        float* maxima = scratch + sizes.panels() + panel * sizes.panel();
        std::fill_n(maxima, kPanelRows, -std::numeric_limits<float>::infinity());
        std::fill_n(maxima + kPanelRows, kPanelRows, 0.0f);
        pack_words<Form>(a.q.row<float>(batch_row + panel * kPanelRows) + head * sizes.depth,
                         a.q.row_stride(), panel_rows(panel), sizes.depth, keys,
                         maxima + 2 * kPanelRows);
    }
    const int64_t end_key = first_position + num_rows;
    for (int64_t begin = 0; begin < end_key; begin += kPageTokens) {
        const int64_t block_keys = std::min(kPageTokens, end_key - begin);
        pack_block<Form>(a, sizes, head, begin, block_keys, keys, values);
        for (int64_t panel = 0; panel < num_panels; ++panel) {
            // Keys of this block that the panel's first and last row see.
            const int64_t first_keys = first_position + panel * kPanelRows + 1 - begin;
            const int64_t last_keys = first_keys + panel_rows(panel) - 1;
            if (last_keys <= 0) continue;
            const int64_t num_keys = std::min(kPageTokens, last_keys);
            HWY_ALIGN int32_t lane_keys[kPanelRows];
            for (int64_t lane = 0; lane < kPanelRows; ++lane)
                lane_keys[lane] = static_cast<int32_t>(
                    std::clamp<int64_t>(std::min(first_keys + lane, last_keys), 0, kPageTokens));
            const bool all_see = first_keys >= num_keys && (!Form::kRounds || num_keys % 2 == 0);
            const int32_t* limits = all_see ? nullptr : lane_keys;

            float* maxima = scratch + sizes.panels() + panel * sizes.panel();
            float* sums = maxima + kPanelRows;
            float* queries = sums + kPanelRows;
            Ahead nothing{.at = reinterpret_cast<const std::byte*>(keys)};
            score_block<Form>(queries, depth_words, keys, depth_words, num_keys, false, nothing,
                              scores);
            HWY_ALIGN uint32_t masks[2 * kPanelRows] = {};
            if (masked)
                for (int64_t lane = 0; lane < panel_rows(panel); ++lane) {
                    const int64_t row = panel * kPanelRows + lane;
                    const bool takes_all = first_position + row < a.topk;
                    const auto* words = a.mask.row<uint32_t>(batch_row + row) + begin / 32;
                    masks[lane] = takes_all ? ~0u : words[0];
                    masks[kPanelRows + lane] = takes_all ? ~0u : words[1];
                }
            softmax_block(scores, num_keys, a.scale, limits, masked ? masks : nullptr, maxima, sums,
                          corrections);
            if constexpr (Form::kRounds) round_p<Form>(scores, num_keys);
            value_block<Form>(scores, num_keys, limits, values, kStrip, kPageTokens * kStrip,
                              corrections, begin == 0, panel_rows(panel), sizes.out_width,
                              queries + sizes.even_depth * kPanelRows, sizes.out_width);
        }
    }
    for (int64_t panel = 0; panel < num_panels; ++panel) {
        const float* sums = scratch + sizes.panels() + panel * sizes.panel() + kPanelRows;
        const float* o = sums + kPanelRows + sizes.even_depth * kPanelRows;
        for (int64_t lane = 0; lane < panel_rows(panel); ++lane) {
            float* out = a.out.row<float>(batch_row + panel * kPanelRows + lane) + head * a.v_dim;
            for (int64_t i = 0; i < a.v_dim; ++i)
                out[i] = o[lane * sizes.out_width + i] / sums[lane];
        }
    }
}

void attend_exact(const PrefillAttention& a, int64_t head, int64_t first_row, int64_t num_rows,
                  float* scratch) {
    attend_tile<Exact>(a, head, first_row, num_rows, scratch);
}
void attend_pairs(const PrefillAttention& a, int64_t head, int64_t first_row, int64_t num_rows,
                  float* scratch) {
    attend_tile<Pairs>(a, head, first_row, num_rows, scratch);
}
void attend_dots(const PrefillAttention& a, int64_t head, int64_t first_row, int64_t num_rows,
                 float* scratch) {
    attend_tile<Dots>(a, head, first_row, num_rows, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(attend_exact);
HWY_EXPORT(attend_pairs);
HWY_EXPORT(attend_dots);

}  // namespace

// Of sparse attention, as long as all keys of the expanded form cost less than those chosen of the
// absorbed form.
KvExpansion CpuKernels::kv_expansion(const ModelConfig& c) const {
    KvExpansion expansion;
    if (c.index_topk > 0)
        expansion.positions =
            std::max(c.index_topk, c.index_topk * (c.kv_lora_rank + c.latent_dim()) /
                                       (c.qk_head_dim() + c.v_head_dim));
    return expansion;
}

void CpuKernels::mla_prefill(const PrefillAttention& a) {
    const int64_t heads = a.q.dim(1), positions = a.rows.end_position();
    check_shape(a.q, "q", DType::f32, {a.q.rows(), heads, a.nope_dim + a.rope_dim});
    check_shape(a.kv, "kv", DType::f32, {a.kv.rows(), heads, a.nope_dim + a.v_dim});
    check_shape(a.rope, "rope", DType::f32, {a.rope.rows(), a.rope_dim});
    check_shape(a.out, "out", DType::f32, {a.q.rows(), heads, a.v_dim});
    FERRY_CHECK(a.kv.rows() >= positions && a.rope.rows() >= positions,
                "{} keys and {} rotated parts for {} positions", a.kv.rows(), a.rope.rows(),
                positions);
    FERRY_CHECK(a.rows.first_row + a.rows.num_rows <= a.q.rows(), "rows {}+{} of {}",
                a.rows.first_row, a.rows.num_rows, a.q.rows());
    if (a.mask.count() > 0)
        FERRY_CHECK(a.mask.dtype() == DType::i32 && a.mask.rows() == a.q.rows() &&
                        ceil_div(positions, kPageTokens) * 2 <= a.mask.dim(1),
                    "mask {} for {} rows of {} positions", a.mask.describe(), a.q.rows(),
                    positions);
    const PrefillSizes sizes(a);
    FERRY_CHECK(threads_.scratch_bytes() >= static_cast<size_t>(sizes.total()) * sizeof(float),
                "{} bytes of scratch are too few for heads of {} and {}", threads_.scratch_bytes(),
                sizes.depth, a.v_dim);
    auto* attend = &HWY_DYNAMIC_DISPATCH(attend_exact);
    if (options_.bf16_activations) attend = &HWY_DYNAMIC_DISPATCH(attend_pairs);
    if (options_.bf16_activations && uses_bf16_dots()) attend = &HWY_DYNAMIC_DISPATCH(attend_dots);
    // The longest tasks first: the last rows see the most keys.
    const int64_t tiles = ceil_div(a.rows.num_rows, kTileRows);
    threads_.parallel_for(heads * tiles, [&](int64_t task, int thread) {
        const int64_t head = task / tiles, first_row = (tiles - 1 - task % tiles) * kTileRows;
        attend(a, head, first_row, std::min(kTileRows, a.rows.num_rows - first_row),
               reinterpret_cast<float*>(threads_.scratch(thread)));
    });
}

}  // namespace ferry
#endif  // HWY_ONCE
