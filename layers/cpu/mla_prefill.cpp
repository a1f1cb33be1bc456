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
    int64_t depth, out_width;

    explicit PrefillSizes(const PrefillAttention& a)
        : depth(a.nope_dim + a.rope_dim),
          out_width(ceil_div(a.v_dim, kWidestStrip) * kWidestStrip) {}

    int64_t scores() const { return 0; }  // [64][16], then corrections [16]
    int64_t keys() const { return (kPageTokens + 1) * kPanelRows; }  // [64][depth]
    int64_t values() const { return keys() + ceil_div(kPageTokens * depth, 16) * 16; }  // strips
    int64_t panels() const { return values() + kPageTokens * out_width; }
    // Of a panel: m, l, queries [depth][16], o [16][out_width].
    int64_t panel() const { return (2 + depth + out_width) * kPanelRows; }
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

// keys[j] = (k_nope, k_rope) of key `begin` + j; values in strips of kStrip columns, [64][kStrip]
// each.
void pack_block(const PrefillAttention& a, const PrefillSizes& sizes, int64_t head, int64_t begin,
                int64_t num_keys, float* HWY_RESTRICT keys, float* HWY_RESTRICT values) {
    for (int64_t j = 0; j < num_keys; ++j) {
        const float* kv = a.kv.row<float>(begin + j) + head * (a.nope_dim + a.v_dim);
        const float* v = kv + a.nope_dim;
        copy(kv, a.nope_dim, keys + j * sizes.depth);
        copy(a.rope.row<float>(begin + j), a.rope_dim, keys + j * sizes.depth + a.nope_dim);
        float* to = values + j * kStrip;
        int64_t column = 0;
        for (; column + kStrip <= a.v_dim; column += kStrip, to += kPageTokens * kStrip)
            copy(v + column, kStrip, to);
        for (; column < sizes.out_width; column += kStrip, to += kPageTokens * kStrip) {
            const int64_t left = std::max<int64_t>(0, a.v_dim - column);
            copy(v + column, left, to);
            std::fill(to + left, to + kStrip, 0.0f);
        }
    }
}

// Rows [first_row, first_row + num_rows) of the sequence's rows, at most kTileRows.
void attend_tile(const PrefillAttention& a, int64_t head, int64_t first_row, int64_t num_rows,
                 float* scratch) {
    const PrefillSizes sizes(a);
    float* scores = scratch + sizes.scores();
    float* corrections = scores + kPageTokens * kPanelRows;
    float* keys = scratch + sizes.keys();
    float* values = scratch + sizes.values();
    const int64_t batch_row = a.rows.first_row + first_row;
    const int64_t first_position = a.rows.first_position + first_row;
    const int64_t num_panels = ceil_div(num_rows, kPanelRows);
    const auto panel_rows = [&](int64_t panel) {
        return std::min(kPanelRows, num_rows - panel * kPanelRows);
    };

    for (int64_t panel = 0; panel < num_panels; ++panel) {
        float* maxima = scratch + sizes.panels() + panel * sizes.panel();
        std::fill_n(maxima, kPanelRows, -std::numeric_limits<float>::infinity());
        std::fill_n(maxima + kPanelRows, kPanelRows, 0.0f);
        pack_queries(a.q.row<float>(batch_row + panel * kPanelRows) + head * sizes.depth,
                     a.q.row_stride(), panel_rows(panel), sizes.depth, maxima + 2 * kPanelRows);
    }
    const int64_t end_key = first_position + num_rows;
    for (int64_t begin = 0; begin < end_key; begin += kPageTokens) {
        const int64_t block_keys = std::min(kPageTokens, end_key - begin);
        pack_block(a, sizes, head, begin, block_keys, keys, values);
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
            const int32_t* limits = first_keys < num_keys ? lane_keys : nullptr;

            float* maxima = scratch + sizes.panels() + panel * sizes.panel();
            float* sums = maxima + kPanelRows;
            float* queries = sums + kPanelRows;
            score_block(queries, sizes.depth, keys, sizes.depth, num_keys, false, scores);
            softmax_block(scores, num_keys, a.scale, limits, maxima, sums, corrections);
            value_block(scores, num_keys, limits, values, kStrip, kPageTokens * kStrip, corrections,
                        begin == 0, panel_rows(panel), sizes.out_width,
                        queries + sizes.depth * kPanelRows);
        }
    }
    for (int64_t panel = 0; panel < num_panels; ++panel) {
        const float* sums = scratch + sizes.panels() + panel * sizes.panel() + kPanelRows;
        const float* o = sums + kPanelRows + sizes.depth * kPanelRows;
        for (int64_t lane = 0; lane < panel_rows(panel); ++lane) {
            float* out = a.out.row<float>(batch_row + panel * kPanelRows + lane) + head * a.v_dim;
            for (int64_t i = 0; i < a.v_dim; ++i)
                out[i] = o[lane * sizes.out_width + i] / sums[lane];
        }
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace ferry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ferry {
namespace {

HWY_EXPORT(attend_tile);

}  // namespace

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
    const PrefillSizes sizes(a);
    FERRY_CHECK(threads_.scratch_bytes() >= static_cast<size_t>(sizes.total()) * sizeof(float),
                "{} bytes of scratch are too few for heads of {} and {}", threads_.scratch_bytes(),
                sizes.depth, a.v_dim);
    const auto attend = &HWY_DYNAMIC_DISPATCH(attend_tile);
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
