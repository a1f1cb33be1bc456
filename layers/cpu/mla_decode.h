// What absorbed attention (mla_decode.cpp) is cut into, and where that lies in scratch.
#pragma once
#include <algorithm>

#include "layers/kernels.h"

namespace ferry {

constexpr int64_t kPanelHeads = 16;
constexpr int64_t kWidestStrip = 32;  // columns are padded to the widest of all targets
constexpr int64_t kSplitPages = kDecodeSplitTokens / kPageTokens;

// What one task reads and writes: some panels of consecutive rows of a sequence, or of one row that
// chose its keys, over one split. A panel is (row, 16 heads); panels count through the heads of a
// row, then the next row.
struct DecodeTask {
    const SequenceRows* sequence = nullptr;
    int64_t first_panel = 0, num_panels = 0;
    int64_t split = 0, num_splits = 0;  // the last row's

    int64_t first_key() const { return split * kDecodeSplitTokens; }
};

// Of what several threads share, one's part.
struct Part {
    int64_t index = 0, count = 1;

    int64_t begin(int64_t whole) const { return whole * index / count; }
    int64_t end(int64_t whole) const { return whole * (index + 1) / count; }
};

// Sizes of a call, in floats where nothing else is said.
struct DecodeSizes {
    int64_t heads = 0, kv_lora = 0, rope = 0;
    int64_t row_panels = 0;     // panels of a row
    int64_t group_panels = 0;   // panels of a task at most
    int64_t out_width = 0;      // kv_lora, padded
    int64_t panel_queries = 0;  // packed queries of a panel
    int64_t panel_state = 0;    // m, l, o of a panel; if shared, also scores and corrections
    bool rounds = false;        // to bf16: pages become words of pairs (attention-inl.h)
    bool direct = false;        // pages are read where they lie, not widened into scratch
    bool shared = false;        // tasks are, by several threads

    DecodeSizes(const DecodeAttention& a, int64_t group, bool rounds_factors, bool is_shared)
        : heads(a.q_latent.dim(1)),
          kv_lora(a.q_latent.dim(2)),
          rope(a.q_rope.dim(2)),
          row_panels(ceil_div(heads, kPanelHeads)),
          group_panels(group),
          out_width(ceil_div(kv_lora, kWidestStrip) * kWidestStrip),
          panel_queries((even(kv_lora) + even(rope)) * kPanelHeads),
          panel_state(split_scores_offset() +
                      (is_shared ? (kDecodeSplitTokens + kSplitPages) * kPanelHeads : 0)),
          rounds(rounds_factors),
          direct(a.cache.dtype() == DType::f32 && out_width == kv_lora && !rounds &&
                 !a.is_sparse()),
          shared(is_shared) {}

    static int64_t even(int64_t num) { return num + num % 2; }
    int64_t page_stride() const { return out_width + rope; }
    // Where they are rounded: keys [64][latent, rope], then three rows of bf16, then values in
    // strips.
    int64_t key_floats() const { return even(kv_lora) + even(rope); }
    int64_t bf16_row() const { return out_width + even(rope); }  // in values
    int64_t rows_offset() const { return kPageTokens * key_floats(); }
    int64_t values_offset() const { return rows_offset() + ceil_div(3 * bf16_row(), 32) * 16; }
    int64_t scores_offset() const {
        if (rounds) return values_offset() + kPageTokens * out_width;
        return direct ? 0 : kPageTokens * page_stride();
    }
    int64_t queries_offset() const { return scores_offset() + (kPageTokens + 1) * kPanelHeads; }
    // In the state of a panel that is shared: scores of all pages, then what each page corrects.
    int64_t split_scores_offset() const { return (2 + out_width) * kPanelHeads; }
    int64_t split_corrections_offset() const {
        return split_scores_offset() + kDecodeSplitTokens * kPanelHeads;
    }
    int64_t work_floats() const { return queries_offset() + group_panels * panel_queries; }
    int64_t slot_floats() const { return group_panels * panel_state; }
};

inline bool chooses(const DecodeAttention& a, const SequenceRows& rows, int64_t row) {
    return a.is_sparse() && rows.first_position + row + 1 > a.chosen.dim(1);
}
inline int64_t num_keys(const DecodeAttention& a, const SequenceRows& rows, int64_t row) {
    return chooses(a, rows, row) ? a.chosen.dim(1) : rows.first_position + row + 1;
}
// Of a split's keys, where those from `key` on lie.
struct KeyRows {
    std::span<const int32_t> pages;
    const int32_t* positions;  // of the keys that a row chose; null: of all, from `first` on
    int64_t first;

    KeyRows(const DecodeAttention& a, const SequenceRows& rows, int64_t row, int64_t key)
        : pages(rows.pages),
          positions(chooses(a, rows, row)
                        ? a.chosen.row<int32_t>(rows.first_row - a.first_row + row) + key
                        : nullptr),
          first(key) {}
    // Row of the cache, counted through its pages, of the j-th.
    int64_t operator[](int64_t j) const {
        const int64_t position = positions != nullptr ? positions[j] : first + j;
        return pages[static_cast<size_t>(position / kPageTokens)] * kPageTokens +
               position % kPageTokens;
    }
};
inline int64_t num_splits(int64_t keys) {
    return ceil_div(keys, kDecodeSplitTokens);
}

}  // namespace ferry
