// The MLA kernels as the host sees them: constants, parameters, launches. Includes neither CUDA's
// headers nor heavy ones of the host.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace ferry {

constexpr int kTileKeys = 64;  // keys that attention sums at once; a page of the latent cache

// Keys that a block of decode sums on its own, of a row that has no more than kDecodeSplits times
// as many; rows of more have splits of twice or four times as many. Longer than on the CPU: a
// block's result, 512 f32 per head, is worth 1.8 keys of bf16 in bytes, and is written and read
// once.
constexpr int kCudaDecodeSplitTokens = 16 * kTileKeys;
constexpr int kMostDecodeSplitTokens = 4 * kCudaDecodeSplitTokens;
constexpr int kDecodeSplits = 8;

constexpr int kDecodeThreads = 256;
// The decode kernel of wgmma: heads of a block; latents and rotated parts of pages in shared
// memory, and panels of 64 columns of the queries.
constexpr int kWgmmaHeads = 64, kWgmmaLatentStages = 3, kWgmmaRopeStages = 2, kWgmmaQueryPanels = 2;
constexpr int kWgmmaMostTiles = kMostDecodeSplitTokens / kTileKeys;  // of a split
constexpr int kPlainThreads = 128;  // of the f32 kernels, decode and prefill
constexpr int kMergeThreads = 128;
constexpr int kPrefillThreads = 256;
constexpr int kPrefillQueries = 128;  // rows of a block
// Heads whose keys and values are expanded at a time: enough blocks for every multiprocessor from a
// few hundred rows on, at 32 KiB a position.
constexpr int kPrefillHeads = 64;

// The sizes of which the tensor-core kernels are made.
constexpr int kMlaLatent = 512, kMlaRope = 64, kMlaNope = 128, kMlaValue = 128;

constexpr float kLog2E = 1.4426950408889634f;  // exp(x) = exp2(x * kLog2E)

// One row of decode.
struct DecodeRow {
    int32_t batch_row = 0;
    int32_t num_keys = 0;    // positions [0, num_keys)
    int32_t first_page = 0;  // into the pages of all rows
    int32_t num_splits = 0;  // 0: no keys, the result is zeros; -1: another launch's
    int32_t first_slot = 0;  // of the partial results; a row of one split has none
    int32_t split_keys = kCudaDecodeSplitTokens;  // split i begins at position i * split_keys

    bool operator==(const DecodeRow&) const = default;
};

// One row that chooses its keys (select_keys.cu).
struct SelectRow {
    int32_t batch_row = 0;
    int32_t num_keys = 0;    // that it chooses among: positions [0, num_keys)
    int32_t first_page = 0;  // into the pages of all rows
};

struct DecodeParams {
    const float* q_latent = nullptr;  // [rows, heads, kv_lora]
    const float* q_rope = nullptr;    // [rows, heads, rope]
    const void* cache = nullptr;
    float* out = nullptr;             // [rows, heads, kv_lora]
    const DecodeRow* rows = nullptr;  // of this launch
    const int32_t* pages = nullptr;   // of all rows, DecodeRow::first_page
    const int32_t* chosen = nullptr;  // [rows, ...]: positions of a row's keys; null: all, in order
    float* partial_out = nullptr;     // [slot, heads, kv_lora]
    float* partial_sums = nullptr;    // [slot, heads, 2]: maximum (of log2 units) and sum
    int heads = 0, kv_lora = 0, rope = 0;
    int64_t num_pages = 0;                                           // of the cache
    int64_t q_latent_stride = 0, q_rope_stride = 0, out_stride = 0;  // elements between rows
    int64_t chosen_stride = 0;
    float scale_log2 = 1;  // softmax scale * log2(e)
};

struct DecodeGrid {
    int num_rows = 0, num_splits = 0;  // of the longest row
    int head_blocks = 0;
    int row_tiles = 0;  // tensor cores: a block has 16 * row_tiles heads; 0: the f32 kernel
    int num_stages = 0;
    bool bf16_cache = false;
    bool wgmma = false;  // Hopper's tensor cores: a block has 64 heads
    int64_t shared_bytes = 0;
};
void launch_decode(const DecodeParams& params, const DecodeGrid& grid, CUstream_st* stream);
void launch_attend_wgmma(const DecodeParams& params, const DecodeGrid& grid, CUstream_st* stream);

// bf16 keys and values of 128 + 64 and 128; rows from the first of the call.
struct PrefillParams {
    const float* q = nullptr;        // [rows, heads, 192]
    float* out = nullptr;            // [rows, heads, 128]
    const uint16_t* kv = nullptr;    // [positions, heads, 256]
    const uint16_t* rope = nullptr;  // [positions, 64]
    int64_t q_stride = 0, out_stride = 0, kv_stride = 0, rope_stride = 0;
    int num_rows = 0, first_position = 0;
    float scale_log2 = 1;
    int heads = 0;
    bool paired = false;  // set by launch_prefill_hopper
};
void launch_prefill(const PrefillParams& params, CUstream_st* stream);
// Compute capability 9.0, on so many multiprocessors.
void launch_prefill_hopper(PrefillParams params, int multiprocessors, CUstream_st* stream);

// f32, any sizes.
struct PlainPrefillParams {
    const float* q = nullptr;
    const float* kv = nullptr;
    const float* rope = nullptr;
    float* out = nullptr;
    int64_t q_stride = 0, kv_stride = 0, rope_stride = 0, out_stride = 0;
    int nope_dim = 0, rope_dim = 0, v_dim = 0;
    int num_rows = 0, first_position = 0;
    float scale_log2 = 1;
};
void launch_prefill_plain(const PlainPrefillParams& params, int heads, CUstream_st* stream);

}  // namespace ferry
