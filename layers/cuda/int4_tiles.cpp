#include "layers/cuda/int4_tiles.h"

#include <algorithm>
#include <cstring>

#include "base/tensor.h"
#include "layers/stored_weights.h"

namespace ferry {
namespace {

static_assert(kInt4TileValues == kInt4RowScales * kInt4Group);
constexpr int kWordBytes =
    static_cast<int>(kInt4Group) / 2;  // of stored codes, a word of each lane

// 32 codes as they are stored to a word of each of four lanes, 16 bytes apart. Byte `lane` of
// stored word i has the values 2 lane + 8 i and the next.
void pack_group(const uint8_t* codes, std::byte* to) {
    constexpr uint32_t kLow = 0x0f0f0f0f, kHigh = 0xf0f0f0f0;
    uint32_t pairs[4];
    std::memcpy(pairs, codes, sizeof(pairs));
    // Byte `lane` of each is a byte of the lane's word.
    const uint32_t bytes[4] = {
        (pairs[0] & kLow) | (pairs[1] & kLow) << 4, (pairs[2] & kLow) | (pairs[3] & kLow) << 4,
        (pairs[0] & kHigh) >> 4 | (pairs[1] & kHigh), (pairs[2] & kHigh) >> 4 | (pairs[3] & kHigh)};
    for (int lane = 0; lane < 4; ++lane) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= (bytes[i] >> 8 * lane & 255) << 8 * i;
        std::memcpy(to + 16 * lane, &word, sizeof(word));
    }
}

}  // namespace

void pack_int4_tiles(const Tensor& w, const Tensor& scales, std::byte* to) {
    const int64_t groups = scales.dim(1);
    std::memset(to, 0, static_cast<size_t>(int4_tiles(w.rows(), 2 * w.dim(1)) * kInt4TileBytes));
    const int64_t tiles_in = int4_tiles(1, 2 * w.dim(1));
    for (int64_t row = 0; row < w.rows(); ++row) {
        const auto* const codes = w.row<uint8_t>(row);
        const auto* const row_scales = scales.row<uint16_t>(row);
        const int64_t in_tile = row % kInt4TileRows;
        std::byte* tile = to + row / kInt4TileRows * tiles_in * kInt4TileBytes;
        for (int64_t first = 0; first < groups; first += kInt4RowScales, tile += kInt4TileBytes) {
            const int64_t num = std::min<int64_t>(kInt4RowScales, groups - first);
            std::byte* const words = tile + in_tile * kInt4RowBytes;
            for (int64_t i = 0; i < num; ++i)
                pack_group(codes + (first + i) * kWordBytes, words + 4 * i);
            std::memcpy(tile + kInt4ScalesAt + in_tile * kInt4RowScales * 2, row_scales + first,
                        static_cast<size_t>(num) * 2);
        }
    }
}

void unpack_int4_tiles(const std::byte* tiles, const Tensor& w_f32) {
    const int64_t in = w_f32.dim(1), tiles_in = int4_tiles(1, in);
    for (int64_t row = 0; row < w_f32.rows(); ++row)
        for (int64_t k = 0; k < in; ++k) {
            const std::byte* const tile =
                tiles + (row / kInt4TileRows * tiles_in + k / kInt4TileValues) * kInt4TileBytes;
            const int64_t in_tile = row % kInt4TileRows, group = k % kInt4TileValues / kInt4Group;
            const int64_t lane = k % 8 / 2, i = k % kInt4Group / 8;
            uint32_t word;
            std::memcpy(&word, tile + in_tile * kInt4RowBytes + 16 * lane + 4 * group,
                        sizeof(word));
            uint16_t scale;
            std::memcpy(&scale, tile + kInt4ScalesAt + (in_tile * kInt4RowScales + group) * 2,
                        sizeof(scale));
            const auto code = static_cast<float>(word >> (4 * i + k % 2 * 16) & 15);
            w_f32.row<float>(row)[k] = (code - 8) * bf16_to_f32(scale);
        }
}

}  // namespace ferry
