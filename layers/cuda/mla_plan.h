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
    int64_t num_splits = 0;  // of the longest row that there may be
    int64_t num_slots = 0;

    bool operator==(const DecodeWave&) const = default;
};

struct DecodePlan {
    DecodeGrid grid;  // but for the rows and splits of each wave
    std::vector<DecodeRow> rows;
    // Of sparse attention, where some may have chosen their keys: the same rows, launched once more
    // with this grid. A row is computed by one of the two launches.
    DecodeGrid chosen_grid;
    std::vector<DecodeRow> chosen_rows;
    std::vector<int32_t> pages;
    std::vector<DecodeWave> waves;

    int64_t most_slots() const;
    std::string describe() const;
};

struct DecodeShape {
    int64_t heads = 0, kv_lora = 0, rope = 0;
    DType cache = DType::f32;
};

// Bytes of a slot's partial results: values, maximum and sum of all heads.
int64_t decode_slot_bytes(const DecodeShape& shape);
// Slots that there is room for; what does not fit is computed in waves.
int64_t decode_slot_limit(const DecodeShape& shape);
// Keys of a split of a row of so many: of the row alone, so that its bits depend on nothing else.
int64_t decode_split_keys(int64_t num_keys);
// Slots that rows of so many keys need in one wave.
int64_t decode_slots(std::span<const int64_t> num_keys);

// Shared memory of a block of the tensor-core kernels: of mma.sync, and of wgmma.
int64_t decode_shared_bytes(int row_tiles, int num_stages);
int64_t decode_wgmma_shared_bytes();

// What a plan is made for.
struct DecodeGpu {
    int64_t shared_limit = 0;  // bytes that a block may have: 227 KiB on sm_90, 163 KiB on sm_80
    int capability = 0;        // 90 for compute capability 9.0
};

// A row at position -1 has no keys, and its result is zeros: it fills a batch up. `first_row`: row
// of the batch that the tensors' row 0 is. `slot_limit`: partial results that the workspace holds;
// a row of more splits than that is a wave of its own. `most_keys`: not 0 where launches may depend
// on it and the number of rows only, and not on how many keys these have (StepForm); they fit one
// wave then. `topk`: keys that a row chooses of more than that; 0: it takes all.
DecodePlan plan_decode(const DecodeShape& shape, std::span<const SequenceRows> sequences,
                       int64_t first_row, const DecodeGpu& gpu, int64_t slot_limit,
                       int64_t most_keys = 0, int64_t topk = 0);

// bf16 keys and values for the tensor cores where heads are of the sizes that they take, else f32.
KvExpansion kv_expansion_of(int64_t nope, int64_t rope, int64_t v);

}  // namespace ferry
