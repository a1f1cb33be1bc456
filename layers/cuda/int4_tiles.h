// Weights of 4 bits on the GPU: as tiles of 128 rows (of `out`) by 128 values, in the order in
// which tensor cores take them, so that a product copies whole tiles and widens them in registers.
//
// Tiles follow each other along `in`, then along `out`; what is missing at the edges has a scale of
// zero. A tile has 64 bytes of codes for each row, then four bf16 scales for each row, one for
// every 32 values. A code is its value + 8. Bytes 16 t to 16 t + 15 of a row are what lane t of the
// four that have the row's fragments takes (mma.h), a word for each 32 values: of them it has 2t +
// 8 i and 2t + 8 i + 1 (i < 4), in bits [4 i, 4 i + 4) of the word's lower and upper half. Two
// products of 16 values use 0 and 1 of i, and 2 and 3.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ferry {

class Tensor;

constexpr int kInt4TileRows = 128, kInt4TileValues = 128;
constexpr int kInt4RowBytes = kInt4TileValues / 2;  // of codes
constexpr int kInt4ScalesAt = kInt4TileRows * kInt4RowBytes;
constexpr int kInt4RowScales = kInt4TileValues / 32;  // one for each kInt4Group values
constexpr int kInt4TileBytes = kInt4ScalesAt + kInt4TileRows * kInt4RowScales * 2;

constexpr int64_t int4_tiles(int64_t out, int64_t in) {
    return (out + kInt4TileRows - 1) / kInt4TileRows *
           ((in + kInt4TileValues - 1) / kInt4TileValues);
}

// w: int4x2 [rows, in / 2], scales: bf16 [rows, in / 32]; `to`: int4_tiles(rows, in) tiles.
void pack_int4_tiles(const Tensor& w, const Tensor& scales, std::byte* to);
// The weights, code * scale, w_f32 [rows, in].
void unpack_int4_tiles(const std::byte* tiles, const Tensor& w_f32);

}  // namespace ferry
