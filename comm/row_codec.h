// Rows of f32 to and from their form on the wire, and weighted sums of wire rows. Vectorised; the
// scalar definitions in base/dtype.h are what every path agrees with, bit for bit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace ferry {

// Blocks of rows larger than the caches are written past them ("streamed"): the next reader finds
// them in memory either way, and nothing is read only to be overwritten. Same bits.
enum class Stores : uint8_t { cached, streamed };
constexpr int64_t kStreamBytes = int64_t{4} << 20;
constexpr Stores stores_for(int64_t total_bytes) {
    return total_bytes > kStreamBytes ? Stores::streamed : Stores::cached;
}

// dtype: f32, bf16, or fp8_e4m3 with one scale per 128 values (the last block may be partial):
// scale = max(|x|, 1e-4) / 448, q = e4m3(x / scale), as MODEL.md "Quantisation".
void encode_row(DType dtype, const float* x, int64_t dim, std::byte* out, float* scales,
                Stores stores = Stores::cached);
// fp8: x = q * scale.
void decode_row(DType dtype, const std::byte* in, const float* scales, int64_t dim, float* out,
                Stores stores = Stores::cached);
struct WeightedRow {
    const std::byte* row = nullptr;  // [dim] f32 or bf16
    float weight = 0;
};
// out = w_0 row_0, then out = out + w_k row_k in order, product and sum rounded separately. dtype:
// f32 or bf16. At least one row.
void sum_rows(DType dtype, std::span<const WeightedRow> rows, int64_t dim, float* out);

}  // namespace ferry
