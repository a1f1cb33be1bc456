// The exchange's kernels as the host sees them: what they are launched with. Messages have the
// format of wire.h in blocks of fixed size, so that nobody on the host has to know how many rows
// there are: sections stand where a full message has them, the header says what is in use.
#pragma once
#include <cstdint>

#include "comm/plan_item.h"
#include "comm/wire.h"

struct CUstream_st;

namespace ferry {

// Where the parts of a block are, and how many rows and entries fit.
struct BlockFormat {
    DType dtype = DType::bf16;
    int32_t dim = 0;
    int32_t max_rows = 0, max_entries = 0;
    int64_t entries_offset = 0, scales_offset = 0, rows_offset = 0, size_bytes = 0;
    int64_t row_bytes = 0, row_scales = 0;
};
inline BlockFormat block_format(DType dtype, int64_t dim, int64_t max_rows, int64_t max_entries) {
    const WireLayout layout = wire_layout(dtype, dim, max_rows, max_entries);
    return {.dtype = dtype,
            .dim = static_cast<int32_t>(dim),
            .max_rows = static_cast<int32_t>(max_rows),
            .max_entries = static_cast<int32_t>(max_entries),
            .entries_offset = static_cast<int64_t>(layout[WireSection::entries]),
            .scales_offset = static_cast<int64_t>(layout[WireSection::scales]),
            .rows_offset = static_cast<int64_t>(layout[WireSection::rows]),
            .size_bytes = static_cast<int64_t>(layout.size_bytes()),
            .row_bytes = wire_row_bytes(dtype, dim),
            .row_scales = wire_row_scales(dtype, dim)};
}

// A Placement on the device: copies of expert e are [first_copy[e], first_copy[e + 1]).
struct DevicePlacement {
    const int32_t* first_copy = nullptr;  // [experts + 1]
    const int32_t* copy_rank = nullptr;   // [copies]
    const int32_t* copy_slot = nullptr;   // [copies]
};

// What a step says where its launches are repeated as they were (AttentionSide::
// begin_repeated_step): in the device's memory, of one micro-batch.
struct RepeatedStep {
    int32_t num_tokens = 0;  // leading ones; the others take no part
    uint32_t agree_any = 0, agree_max = 0;
    uint32_t sequence = 0;  // before the step
};

// Dispatch: blocks [expert ranks], one after the other. Rows and entries are numbered as by
// ExchangePlan, and items [tokens, topk] say where they went.
struct PackParams {
    const float* x = nullptr;          // [tokens, dim]
    const int32_t* experts = nullptr;  // [tokens, topk]
    const float* weights = nullptr;    // [tokens, topk]
    int64_t x_stride = 0;
    int32_t num_tokens = 0, topk = 0, num_ranks = 0, attention_rank = 0;
    DevicePlacement placement{};
    MessageHeader header{};  // but for the counts
    // Not null: has the agreement and the number of tokens, header.sequence counts on from its own.
    const RepeatedStep* step = nullptr;
    BlockFormat format{};
    std::byte* blocks = nullptr;
    PlanItem* items = nullptr;
};
void launch_plan(const PackParams& params, CUstream_st* stream);
void launch_pack(const PackParams& params, CUstream_st* stream);  // after launch_plan

// Expert side: blocks [attention ranks], one after the other. Rows are ordered by (slot, source,
// entry), as ExpertBatch says.
struct UnpackParams {
    BlockFormat format{};
    const std::byte* blocks = nullptr;
    int32_t num_sources = 0, num_slots = 0;
    int64_t max_rows = 0;         // that fit into `rows`
    int32_t* counts = nullptr;    // [slots]
    int64_t* load = nullptr;      // [slots] += counts
    int64_t* offsets = nullptr;   // [slots + 1]
    int32_t* position = nullptr;  // [sources, format.max_entries]: row of each entry
    float* rows = nullptr;        // [max_rows, dim]
};
void launch_order(const UnpackParams& params, CUstream_st* stream);
void launch_unpack(const UnpackParams& params, CUstream_st* stream);  // after launch_order

// Replies: one block per source, in `reply` format (no entries). Row e of an exact reply is the
// output for entry e of the request; of a reduced one, row r is the weighted sum over row r's
// entries.
struct ReplyParams {
    UnpackParams request{};
    BlockFormat format{};
    bool reduced = false;
    const float* y = nullptr;  // [rows, dim]
    std::byte* blocks = nullptr;
};
void launch_reply(const ReplyParams& params, CUstream_st* stream);

// Combine: reply blocks [expert ranks], one after the other.
struct CombineParams {
    BlockFormat format{};
    const std::byte* blocks = nullptr;
    const PlanItem* items = nullptr;  // [tokens, topk]
    const float* weights = nullptr;   // [tokens, topk]
    int32_t num_tokens = 0, topk = 0, num_ranks = 0;
    bool reduced = false;
    float* out = nullptr;  // [tokens, dim]
    int64_t out_stride = 0;
    const RepeatedStep* step = nullptr;  // not null: tokens that take no part get zeros
};
void launch_combine(const CombineParams& params, CUstream_st* stream);

// Of the device's or of pinned host memory.
void launch_copy(void* to, const void* from, size_t size_bytes, CUstream_st* stream);
// Rows that begin `stride_bytes` apart, one after the other to `to`, which may be any host memory.
void launch_copy_rows(void* to, const void* from, size_t row_bytes, int64_t stride_bytes,
                      int64_t num_rows, CUstream_st* stream);

}  // namespace ferry
