// Products of bf16 by AMX, the tile instructions of Intel's processors from Sapphire Rapids on.
//
// tdpbf16ps multiplies up to 16 rows by a panel over up to 32 values of k. Its sums (Intel's
// manual, "TDPBF16PS"; f32, to nearest, values below the normal numbers are zeros):
//   e = 0, o = 0
//   for the pairs (k, k + 1) ascending: e = fma(x_k, w_k, e), o = fma(x_k+1, w_k+1, o)
//   y = y + (e + o)
// A product is cut into such stretches at multiples of 32, so these are its bits on any processor
// (Bf16AmxPanels).
#pragma once
#include <cstddef>
#include <cstdint>

namespace ferry {

constexpr int64_t kAmxSteps = 32;  // of k, of one instruction
constexpr int64_t kAmxRows = 32;   // at once: two tiles
constexpr int64_t kAmxPanels = 2;  // at once

// Rows times panels of bf16 in pairs of k (panel.h), over a stretch of k.
struct AmxBlock {
    const std::byte* x;  // rows of bf16
    int64_t x_stride;    // bytes
    int64_t num_rows;
    const std::byte* panels;
    int64_t panel_stride;  // bytes
    int64_t num_panels;    // at most kAmxPanels
    int64_t num_k;         // a multiple of kAmxSteps, or less than that and even
    float* y;
    int64_t y_stride;
    int64_t num_columns;  // of y; the last panel may have more
    bool resume;          // y holds the sum of the k before
    // What is prefetched on the way, of num_panels panels; null: nothing.
    const std::byte* next;
    int64_t next_stride;
};

// Whether this build, the processor and the kernel have those instructions.
bool has_amx();

// What has_amx() says from now on, for tests that execute the instructions themselves. False where
// the build has none.
bool pretend_amx(bool has);

// Only where has_amx().
void multiply_by_amx(const AmxBlock& block);

// Gives the tiles' registers back: a thread that has used them is slower to switch to.
void release_amx();

}  // namespace ferry
