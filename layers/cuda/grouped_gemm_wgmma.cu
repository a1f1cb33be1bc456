// Grouped products on Hopper's warpgroup tensor cores, which take both sides from shared memory.
// As in grouped_gemm.cu persistent blocks walk over all tiles, of 128 or 256 rows of W, which are A
// and lie along the 64 rows of a product, by 16 to 256 rows of x, which are B. A block's copies run
// ahead of its products across tiles: while the last stages of a tile are multiplied and its
// results are written, the next tile's are on their way.
//
// Of each stage of fp8, 128 of `in`, the sums stay apart and are then added times its scales, as
// kernels.h says. int4 weights are multiplied by theirs in registers and rounded to bf16, and have
// the bits of bf16 weights. The order of an element's sums depends on `in` only.
#include "base/cuda_launch.h"
#include "layers/cuda/grouped_gemm_tiles.h"
#include "layers/cuda/tiles.h"
#include "layers/cuda/wgmma.h"

namespace ferry {
namespace {

#ifdef FERRY_WGMMA

constexpr int kPitch = 128;       // bytes of a row of a panel, of W or x
constexpr int kRowsAtOnce = 32;   // that the threads copy together, 16 bytes each
constexpr int kPartBytes = 8192;  // 64 rows of W in a stage
static_assert(kGemmThreads == kRowsAtOnce * kPitch / 16);

template <GemmInputs kInputs, int kMostRows>
struct Ring {
    static constexpr bool kInt4 = kInputs == GemmInputs::widened_int4;
    static constexpr bool kScaled =
        kInputs == GemmInputs::fp8 || kInputs == GemmInputs::widened_fp8;
    static constexpr int kColumns = gemm_wgmma_columns(kInputs, kMostRows);
    static constexpr int kParts = kColumns / 128;         // of 64 columns, of a warpgroup
    static constexpr int kWeightBytes = kScaled ? 1 : 2;  // but for int4
    static constexpr int kXBytes = kInputs == GemmInputs::fp8 ? 1 : 2;
    static constexpr int kValues =
        kInt4 ? kInt4TileValues : kPitch / kWeightBytes;  // of `in`, in a stage
    static constexpr int kXPanels = kValues * kXBytes / kPitch;
    static constexpr int kXPanelBytes = kMostRows * kPitch;
    static constexpr int kXAt = kInt4 ? kInt4TileBytes : kColumns * kPitch;
    static constexpr int kStageBytes = gemm_wgmma_stage_bytes(kInputs, kMostRows);
    static constexpr int kStages = gemm_wgmma_num_stages(kInputs, kMostRows);
    // Products without scales stay on their way while the next stage begins, so that their stage is
    // filled again only then.
    static constexpr int kAhead = kStages - (kScaled ? 1 : 2);

    std::byte* stages;
    __device__ std::byte* stage(int index) const { return stages + index * kStageBytes; }
    __device__ float* scales(int index) const {
        return reinterpret_cast<float*>(stages + kStages * kStageBytes) +
               index * (kMostRows + 4);  // of the rows of x, then of each 128 of W
    }
    static __device__ int next(int index) { return index + 1 == kStages ? 0 : index + 1; }
};

// Copies the stages of the block's tiles, one after the other.
template <GemmInputs kInputs, int kMostRows>
struct Loader {
    using Stages = Ring<kInputs, kMostRows>;

    const GroupedGemmParams& p;
    const int* first_tile;
    Stages ring;
    int index, group = 0, stage = 0, step = 0;
    // What this thread copies of the next stage: of every 32nd row of W (int4: every 256 chunks of
    // the tile) and x 16 bytes, and a scale.
    const std::byte *w = nullptr, *x = nullptr;
    const float* scale = nullptr;
    // Bits of its rows: [0, 8) rows of W that exist, [8, 16) rows of x in the tile, [16, 24) those
    // that exist. Bit 24: it copies a scale; 25: that exists.
    uint32_t rows = 0;

    __device__ Loader(const GroupedGemmParams& params, const int* first, Stages to)
        : p(params), first_tile(first), ring(to), index(blockIdx.x) {
        begin_tile();
    }

    __device__ bool has_more() const { return index < num_tiles(p, Stages::kColumns, first_tile); }

    __device__ void begin_tile() {
        if (!has_more()) return;
        constexpr int kMost = gemm_wgmma_most_rows(kInputs);
        const GemmTile tile = find_tile<true>(p, index, Stages::kColumns, kMost, first_tile, group);
        const int tile_rows = gemm_tile_rows(tile.num_rows, kMost);
        const int row = threadIdx.x / 8, at = threadIdx.x % 8 * 16;
        if constexpr (Stages::kInt4)
            w = int4_tile(p, tile) + 16 * threadIdx.x;
        else
            w = static_cast<const std::byte*>(p.w) + at +
                (static_cast<int64_t>(tile.group) * p.out + tile.first_column + row) * p.w_stride *
                    Stages::kWeightBytes;
        x = static_cast<const std::byte*>(p.x) + at +
            (tile.first_row + row) * p.x_stride * Stages::kXBytes;
        rows = rows_before(p.out - tile.first_column - row) | rows_before(tile_rows - row) << 8 |
               rows_before(tile.num_rows - row) << 16;
        step = 0;
        if constexpr (Stages::kScaled) begin_scales(tile, tile_rows);
    }
    // Bit i: the i-th of this thread's rows is one of the next `left`.
    static __device__ uint32_t rows_before(int left) {
        const int count = min(max((left + kRowsAtOnce - 1) / kRowsAtOnce, 0), 8);
        return (1u << count) - 1;
    }
    // The first threads have the rows' scales, the last ones those of W.
    static __device__ int part_of_w() { return kGemmThreads - 1 - static_cast<int>(threadIdx.x); }
    __device__ void begin_scales(const GemmTile& tile, int tile_rows) {
        const int thread = threadIdx.x, column = tile.first_column + 128 * part_of_w();
        if (part_of_w() < Stages::kParts) {
            const int64_t row =
                static_cast<int64_t>(tile.group) * ceil_div(p.out, 128) + column / 128;
            scale = p.w_scales + row * p.w_scales_stride;
            rows |= column < p.out ? 3u << 24 : 1u << 24;
        } else if (p.x_scales != nullptr && thread < tile_rows) {
            scale = p.x_scales + (tile.first_row + thread) * p.x_scales_stride;
            rows |= thread < tile.num_rows ? 3u << 24 : 1u << 24;
        }
    }

    // Commits also where nothing is left to copy.
    __device__ void load_next() {
        if (has_more()) {
            load_values(ring.stage(stage));
            if (rows >> 24 & 1) {
                const int to = part_of_w() < Stages::kParts ? kMostRows + part_of_w()
                                                            : static_cast<int>(threadIdx.x);
                copy_word_async(ring.scales(stage) + to, scale + step, rows >> 25 & 1);
            }
            stage = Stages::next(stage);
            if (++step * Stages::kValues >= p.in) {
                index += gridDim.x;
                begin_tile();
            }
        }
        commit_copies();
    }

    __device__ void load_int4_tile(std::byte* to) {
        constexpr int kAtOnce = 16 * kGemmThreads;
        const int own = 16 * static_cast<int>(threadIdx.x);
#pragma unroll
        for (int at = 0; at < kInt4TileBytes; at += kAtOnce)
            if (at + kAtOnce <= kInt4TileBytes || own < kInt4TileBytes - at)
                copy_async(to + own + at, w + at);
        w += kInt4TileBytes;
    }
    __device__ void load_weights(std::byte* to, int chunk, int values_left) {
        const int64_t w_rows = kRowsAtOnce * p.w_stride * Stages::kWeightBytes;
        const bool w_valid = chunk * 16 < values_left * Stages::kWeightBytes;
#pragma unroll
        for (int i = 0; i < Stages::kColumns / kRowsAtOnce; ++i)
            copy_async(to + i * kRowsAtOnce * kPitch, w + i * w_rows, w_valid && rows >> i & 1);
        w += kPitch;
    }
    __device__ void load_values(std::byte* to) {
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
        const int values_left = p.in - step * Stages::kValues;
        if constexpr (Stages::kInt4)
            load_int4_tile(to);
        else
            load_weights(to + tile_offset(row, chunk, kPitch), chunk, values_left);
        to += Stages::kXAt + tile_offset(row, chunk, kPitch);
        const int64_t x_rows = kRowsAtOnce * p.x_stride * Stages::kXBytes;
        // round_rows pads rows, and permutes what was padded.
        const int x_left = kInputs == GemmInputs::fp8
                               ? values_left
                               : static_cast<int>(p.x_stride) - step * Stages::kValues;
#pragma unroll
        for (int panel = 0; panel < Stages::kXPanels; ++panel) {
            const bool x_valid = chunk * 16 + panel * kPitch < x_left * Stages::kXBytes;
#pragma unroll
            for (int i = 0; i < kMostRows / kRowsAtOnce; ++i)
                if (rows >> (8 + i) & 1)
                    copy_async(to + i * kRowsAtOnce * kPitch, x + i * x_rows,
                               x_valid && rows >> (16 + i) & 1);
            x += kPitch;
            to += Stages::kXPanelBytes;
        }
    }
};

// sums += block times the scales of its rows and columns.
template <int kRows>
__device__ void add_scaled(const float (&block)[kRows / 2], const float* scales, float w_scale,
                           bool x_scaled, float (&sums)[kRows / 2]) {
    const int t = threadIdx.x % 4;
    float scale[2] = {w_scale, w_scale};
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
        if (x_scaled) {
            const float2 x = *reinterpret_cast<const float2*>(scales + 8 * j + 2 * t);
            scale[0] = w_scale * x.x;
            scale[1] = w_scale * x.y;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            sums[4 * j + i] = fmaf(block[4 * j + i], scale[i % 2], sums[4 * j + i]);
    }
}

// Half of the weights of a stage as A fragments of 4 products: rows of the warp, widened.
__device__ __forceinline__ void widen_half(const std::byte* rows, int half, uint32_t (&a)[4][4]) {
#pragma unroll
    for (int chunk = 0; chunk < 4; chunk += 2) {
        uint32_t codes[4];
        load_a(codes, rows, 0, 4 * half + chunk, kPitch, threadIdx.x % 32);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            widen_e4m3(codes[2 * i], a[chunk + i][0], a[chunk + i][2]);
            widen_e4m3(codes[2 * i + 1], a[chunk + i][1], a[chunk + i][3]);
        }
    }
}

// The same of int4, from the row of the tile on that is the warp's first.
__device__ __forceinline__ void widen_int4_half(const Int4Row& low, const Int4Row& high, int half,
                                                uint32_t (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        uint32_t rows[2][4];
        low.widen(2 * half + i, rows[0]);
        high.widen(2 * half + i, rows[1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {  // a[..][0, 2] of rows g, [1, 3] of g + 8
            a[2 * i + j / 2][j % 2 * 2] = rows[0][j];
            a[2 * i + j / 2][j % 2 * 2 + 1] = rows[1][j];
        }
    }
}

template <GemmInputs kInputs, int kMostRows, int kRows>
struct Multiplier {
    using Stages = Ring<kInputs, kMostRows>;

    const GroupedGemmParams& p;
    Loader<kInputs, kMostRows>& loader;
    int& stage;  // the next to be multiplied
    int num_steps;
    float sums[Stages::kParts][kRows / 2];

    // The next stage is there, and the one that is filled next has been multiplied.
    __device__ void begin_stage() {
        wait_for_copies<Stages::kAhead - 1>();
        fence_async_proxy();
        __syncthreads();
    }
    __device__ static int first_part() { return threadIdx.x / 128 * Stages::kParts; }
    // Rows of W of one of the warpgroup's parts.
    __device__ const std::byte* w(int part) const {
        return loader.ring.stage(stage) + (first_part() + part) * kPartBytes;
    }
    __device__ const std::byte* x() const { return loader.ring.stage(stage) + Stages::kXAt; }
    __device__ void add(const float (&block)[kRows / 2], int part) {
        const float* const scales = loader.ring.scales(stage);
        add_scaled<kRows>(block, scales, scales[kMostRows + first_part() / 2],
                          p.x_scales != nullptr, sums[part]);
    }

    __device__ void multiply_bf16() {
        for (int step = 0; step < num_steps; ++step) {
            begin_stage();
            const SharedTile a = tile_by_rows(w(0)), b = tile_by_rows(x());
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; ++i)
                wgmma_bf16<kRows>(sums[0], a.plus(32 * i), b.plus(32 * i), step > 0 || i > 0);
            wgmma_commit();
            loader.load_next();
            wgmma_wait<1>();
            stage = Stages::next(stage);
        }
        wgmma_wait<0>();
    }

    __device__ void clear() {
#pragma unroll
        for (int part = 0; part < Stages::kParts; ++part)
#pragma unroll
            for (int i = 0; i < kRows / 2; ++i) sums[part][i] = 0;
    }
    // The second warpgroup copies first and multiplies then, so that from there on one warpgroup
    // adds while the other's products keep the tensor cores busy.
    template <bool kSecond>
    __device__ void multiply_fp8() {
        clear();
#pragma unroll 1
        for (int step = 0; step < num_steps; ++step) {
            begin_stage();
            if constexpr (kSecond) loader.load_next();
#pragma unroll
            for (int part = 0; part < Stages::kParts; ++part) {
                float block[kRows / 2];
                const SharedTile a = tile_by_rows(w(part)), b = tile_by_rows(x());
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    wgmma_e4m3<kRows>(block, a.plus(32 * i), b.plus(32 * i), i > 0);
                wgmma_commit();
                if (!kSecond && part == 0) loader.load_next();
                wgmma_wait<0>();
                add(block, part);
            }
            stage = Stages::next(stage);
        }
    }
    __device__ void multiply_widened() {
        clear();
        for (int step = 0; step < num_steps; ++step) {
            float block[kRows / 2];
            begin_stage();
            // The products of one half are on their way while the other half is widened.
            uint32_t a[2][4][4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                widen_half(w(0) + threadIdx.x / 32 % 4 * 16 * kPitch, half, a[half]);
                const SharedTile b = tile_by_rows(x() + half * Stages::kXPanelBytes);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    wgmma_bf16<kRows>(block, a[half][i], b.plus(32 * i), half > 0 || i > 0);
                wgmma_commit();
            }
            loader.load_next();
            wgmma_wait<0>();
            add(block, 0);
            stage = Stages::next(stage);
        }
    }
    // Both halves' products are on their way while the next is widened.
    __device__ void multiply_int4() {
        const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        uint32_t a[2][4][4];
        for (int step = 0; step < num_steps; ++step) {
            begin_stage();
            const std::byte* const tile = loader.ring.stage(stage);
            const Int4Row low = load_int4_row(tile, row, t);
            const Int4Row high = load_int4_row(tile, row + 8, t);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                wgmma_wait<1>();  // the products that a[half] was for
                widen_int4_half(low, high, half, a[half]);
                const SharedTile b = tile_by_rows(x() + half * Stages::kXPanelBytes);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    wgmma_bf16<kRows>(sums[0], a[half][i], b.plus(32 * i),
                                      step > 0 || half > 0 || i > 0);
                wgmma_commit();
            }
            loader.load_next();
            stage = Stages::next(stage);
        }
        wgmma_wait<0>();
    }

    __device__ void store(const GemmTile& tile) const {
        const int warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const int column = tile.first_column + first_part() * 64 + warp * 16 + g;
        float* y = p.y + (tile.first_row + 2 * t) * p.y_stride + column;
        int rows_left = tile.num_rows - 2 * t;
#pragma unroll
        for (int j = 0; j < kRows / 2; j += 4) {
#pragma unroll
            for (int row = 0; row < 2; ++row)
#pragma unroll
                for (int part = 0; part < 2 * Stages::kParts; ++part) {  // of 8 columns
                    const int further = part / 2 * 64 + part % 2 * 8;
                    if (row < rows_left && column + further < p.out)
                        y[row * p.y_stride + further] = sums[part / 2][j + part % 2 * 2 + row];
                }
            y += 8 * p.y_stride;
            rows_left -= 8;
        }
    }
};

template <GemmInputs kInputs, int kMostRows, int kRows>
__device__ void multiply_tile(const GroupedGemmParams& p, const GemmTile& tile,
                              Loader<kInputs, kMostRows>& loader, int& stage) {
    if constexpr (kRows <= kMostRows) {
        Multiplier<kInputs, kMostRows, kRows> multiplier{
            p, loader, stage, ceil_div(p.in, Ring<kInputs, kMostRows>::kValues), {}};
        if constexpr (kInputs == GemmInputs::bf16) multiplier.multiply_bf16();
        if constexpr (kInputs == GemmInputs::widened_fp8) multiplier.multiply_widened();
        if constexpr (kInputs == GemmInputs::widened_int4) multiplier.multiply_int4();
        if constexpr (kInputs == GemmInputs::fp8) {
            if (threadIdx.x >= 128) {
                multiplier.template multiply_fp8<true>();
                return multiplier.store(tile);
            }
            multiplier.template multiply_fp8<false>();
        }
        multiplier.store(tile);
    }
}

template <GemmInputs kInputs, int kMostRows>
__device__ void multiply_tiles(const GroupedGemmParams& p, const int* first_tile,
                               std::byte* stages) {
    using Stages = Ring<kInputs, kMostRows>;
    Loader<kInputs, kMostRows> loader(p, first_tile, Stages{stages});
#pragma unroll 1
    for (int i = 0; i < Stages::kAhead; ++i) loader.load_next();
    constexpr int kMost = gemm_wgmma_most_rows(kInputs);
    int group = 0, stage = 0;
    for (int index = blockIdx.x; index < num_tiles(p, Stages::kColumns, first_tile);
         index += gridDim.x) {
        const GemmTile tile = find_tile<true>(p, index, Stages::kColumns, kMost, first_tile, group);
        switch (gemm_tile_rows(tile.num_rows, kMost)) {
            case 16:
                multiply_tile<kInputs, kMostRows, 16>(p, tile, loader, stage);
                break;
            case 32:
                multiply_tile<kInputs, kMostRows, 32>(p, tile, loader, stage);
                break;
            case 64:
                multiply_tile<kInputs, kMostRows, 64>(p, tile, loader, stage);
                break;
            case 128:
                multiply_tile<kInputs, kMostRows, 128>(p, tile, loader, stage);
                break;
            default:
                if constexpr (kMost == 256)
                    multiply_tile<kInputs, kMostRows, 256>(p, tile, loader, stage);
                break;
        }
    }
    wait_for_copies<0>();
}

#endif

template <GemmInputs kInputs>
__global__ __launch_bounds__(kGemmThreads, 1) void grouped_gemm_wgmma(GroupedGemmParams p) {
#ifdef FERRY_WGMMA
    FERRY_DYNAMIC_SHARED(memory);
    int* const first_tile = reinterpret_cast<int*>(memory);
    std::byte* const stages = memory + gemm_first_tile_bytes(p.groups, 1024);
    count_tiles(p, gemm_wgmma_most_rows(kInputs), first_tile);
    if (first_tile[p.groups + 1] <= kGemmFewRows)
        multiply_tiles<kInputs, kGemmFewRows>(p, first_tile, stages);
    else
        multiply_tiles<kInputs, gemm_wgmma_most_rows(kInputs)>(p, first_tile, stages);
#endif
}

}  // namespace

void launch_grouped_gemm_wgmma(const GroupedGemmParams& params, GemmInputs inputs, int num_blocks,
                               CUstream_st* stream) {
    const auto kernel = [&] {
        switch (inputs) {
            case GemmInputs::fp8:
                return grouped_gemm_wgmma<GemmInputs::fp8>;
            case GemmInputs::widened_fp8:
                return grouped_gemm_wgmma<GemmInputs::widened_fp8>;
            case GemmInputs::widened_int4:
                return grouped_gemm_wgmma<GemmInputs::widened_int4>;
            case GemmInputs::bf16:
                break;
        }
        return grouped_gemm_wgmma<GemmInputs::bf16>;
    };
    launch(kernel(),
           {.grid = {static_cast<unsigned>(num_blocks)},
            .block = {kGemmThreads},
            .shared_bytes = static_cast<size_t>(gemm_wgmma_shared_bytes(params.groups, inputs))},
           stream, params);
}

}  // namespace ferry
