// What the MLA kernels are launched with: plain values, made without a GPU.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/cuda/mla_launch.h"
#include "layers/kernels.h"

namespace ferry {

// Rows [first_row, first_row + num_rows) of the plan are launched together: their partial results
// fit into the workspace.
struct DecodeWave {
    int64_t first_row = 0, num_rows = 0;
    int64_t num_splits = 0;  // of the longest row
    int64_t num_slots = 0;

    // Splits that are launched, most of them without keys: a power of two, so that contexts may
    // grow while launches stay as they are.
    int64_t launch_splits() const;

    bool operator==(const DecodeWave&) const = default;
};

struct DecodePlan {
    DecodeGrid grid;  // but for the rows and splits of each wave
    std::vector<DecodeRow> rows;
    std::vector<int32_t> pages;
    std::vector<DecodeWave> waves;
    int64_t slot_limit = 0;  // as plan_decode was told

    int64_t most_slots() const;
    int64_t launch_slots() const;  // to make room for: a power of two within the limit, or none
    // Equal for plans of as many rows that are launched alike (StepKey).
    uint64_t launch_key() const;
    std::string describe() const;
};

struct DecodeShape {
    int64_t heads = 0, kv_lora = 0, rope = 0;
    DType cache = DType::f32;
};

// Bytes of a slot's partial results: values, maximum and sum of all heads.
int64_t decode_slot_bytes(const DecodeShape& shape);

// Shared memory of a block of the tensor-core kernel.
int64_t decode_shared_bytes(int row_tiles, int num_stages);

// A row at position -1 has no keys, and its result is zeros: it fills a batch up. `first_row`: row
// of the batch that the tensors' row 0 is. `shared_limit`: bytes that a block may have (227 KiB on
// sm_90, 163 KiB on sm_80). `slot_limit`: partial results that the workspace holds; a row of more
// splits than that is a wave of its own.
DecodePlan plan_decode(const DecodeShape& shape, std::span<const SequenceRows> sequences,
                       int64_t first_row, int64_t shared_limit, int64_t slot_limit);

// Whether the tensor-core kernel takes these heads; else the f32 kernel does.
bool prefill_on_tensor_cores(const PrefillAttention& attention);

}  // namespace ferry
