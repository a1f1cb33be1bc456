// The kernels themselves, with device offsets; x and weights as the host lays them out.
#include <numeric>

#include "layers/cuda/cuda_kernels.h"
#include "layers/cuda/grouped_gemm_launch.h"
#include "layers/cuda/weight_layout.h"
#include "tests/layers/cuda/mla_support.h"
#include "tests/support/reference_linear.h"

namespace ferry {
namespace {

// Rows that begin on 16 bytes, zeros behind them.
template <typename T>
std::vector<T> padded_rows(const T* from, int64_t rows, int64_t columns, int64_t stride) {
    std::vector<T> to(static_cast<size_t>(rows * stride));
    for (int64_t row = 0; row < rows; ++row)
        std::copy_n(from + row * columns, columns, to.data() + row * stride);
    return to;
}

template <typename T>
Buffer on_device(const std::vector<T>& values) {
    Buffer buffer(cuda_device(0), std::max<size_t>(16, values.size() * sizeof(T)));
    cuda_device(0).copy_from_host(buffer.data(), values.data(), values.size() * sizeof(T));
    return buffer;
}

// The kernels that the GPU can run.
enum class Path { any_gpu, hopper };
std::vector<Path> paths() {
    if (cuda_device(0).info().capability == 90) return {Path::any_gpu, Path::hopper};
    return {Path::any_gpu};
}

// Hopper's fp8 products keep some 13 bits of a sum of 128, in terms of its largest value.
double fp8_error(Path path) {
    if (!on_gpu()) return kF32Error;
    return path == Path::hopper ? 1.0 / 1024 : kTensorCoreError;
}

// As the kernels take them: rows padded, int4 in tiles.
Buffer laid_out(const PlainWeight& plain) {
    const WeightSpec& spec = plain.spec;
    if (spec.dtype == DType::int4x2) {
        const int64_t bytes = weight_group_bytes(spec);
        std::vector<std::byte> tiles(static_cast<size_t>(spec.groups * bytes));
        for (int64_t group = 0; group < spec.groups; ++group)
            pack_int4_tiles(plain.group(group), plain.group_scales(group),
                            tiles.data() + group * bytes);
        return on_device(tiles);
    }
    const int64_t element = size_bytes(spec.dtype);
    return on_device(padded_rows(plain.data.data(), spec.groups * spec.out, spec.in * element,
                                 weight_row_stride(spec) * element));
}

// x is rounded to bf16, by at most 2^-9 of each value, and so are weights of int4; products are
// exact.
double rounding_error(DType weights) {
    return weights == DType::int4x2 ? kBf16Error : kBf16Error / 2;
}

struct Product {
    Product(const WeightSpec& weight_spec, const std::vector<int64_t>& counts, bool scaled = false)
        : Product(PlainWeight::random(weight_spec, 3), counts, scaled) {}
    Product(PlainWeight weights, const std::vector<int64_t>& counts, bool scaled = false)
        : spec(weights.spec),
          plain(std::move(weights)),
          offsets(counts.size() + 1),
          rows(std::accumulate(counts.begin(), counts.end(), int64_t{0})),
          x(rows, spec.in, 4),
          x_scales(rows, ceil_div(spec.in, kScaleBlock), 5),
          has_scales(scaled),
          blocks(ceil_div(spec.in, kScaleBlock)),
          w(laid_out(plain)),
          w_scales(on_device(plain.scales)),
          device_x_scales(on_device(x_scales.values)) {
        std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
        device_offsets = on_device(offsets);
        if (scaled) {
            codes.resize(x.values.size());
            for (size_t i = 0; i < codes.size(); ++i) {
                codes[i] = f32_to_fp8_e4m3(x.values[i]);
                x.values[i] = fp8_e4m3_to_f32(codes[i]);
            }
        }
        device_x = scaled ? on_device(codes) : on_device(x.values);
    }

    std::vector<float> expected() const {
        const Matrix y(rows, spec.out);
        reference_grouped_gemm(x.view, offsets, plain, y.view,
                               has_scales ? &x_scales.view : nullptr);
        return y.values;
    }

    // Result for a buffer of `capacity` rows, NaN where nothing is written.
    std::vector<float> on_cuda(Path path, int num_blocks, int64_t capacity) const {
        const bool fp8 = spec.dtype == DType::fp8_e4m3, int4 = spec.dtype == DType::int4x2;
        const CudaTensor y(DType::f32, {capacity, spec.out});
        GroupedGemmParams params{.x = device_x.data(),
                                 .x_scales = has_scales ? device_x_scales.as<float>() : nullptr,
                                 .w = w.data(),
                                 .w_scales = w_scales.as<float>(),
                                 .y = y.view().as<float>(),
                                 .offsets = device_offsets.as<int64_t>(),
                                 .x_stride = spec.in,
                                 .x_scales_stride = blocks,
                                 .w_stride = weight_row_stride(spec),
                                 .w_scales_stride = blocks,
                                 .y_stride = spec.out,
                                 .groups = static_cast<int>(spec.groups),
                                 .out = static_cast<int>(spec.out),
                                 .in = static_cast<int>(spec.in)};
        const auto stream = cuda_device(0).stream();
        Buffer rounded;
        const bool hopper = path == Path::hopper && spec.dtype != DType::f32;
        const bool fp8_by_fp8 = hopper && has_scales && spec.in % 16 == 0;
        if (spec.dtype != DType::f32 && !fp8_by_fp8) {
            params.x_stride = ceil_div(spec.in, 16) * 16;
            rounded = on_device(
                std::vector<uint16_t>(static_cast<size_t>(capacity * params.x_stride), 0x7fc0));
            launch_round_rows(params,
                              {.x = device_x.data(),
                               .x_stride = spec.in,
                               .x_fp8 = has_scales,
                               .to = rounded.as<uint16_t>(),
                               .max_rows = capacity,
                               .permute = fp8},
                              stream);
            params.x = rounded.data();
        }
        if (hopper)
            launch_grouped_gemm_wgmma(params,
                                      fp8_by_fp8 ? GemmInputs::fp8
                                      : fp8      ? GemmInputs::widened_fp8
                                      : int4     ? GemmInputs::widened_int4
                                                 : GemmInputs::bf16,
                                      num_blocks, stream);
        else
            launch_grouped_gemm(params,
                                fp8                         ? GroupedWeights::fp8
                                : int4                      ? GroupedWeights::int4
                                : spec.dtype == DType::bf16 ? GroupedWeights::bf16
                                                            : GroupedWeights::f32,
                                num_blocks, stream);
        return y.values();
    }
    std::vector<float> on_cuda(Path path, int num_blocks = 3) const {
        return on_cuda(path, num_blocks, rows);
    }

    WeightSpec spec;
    PlainWeight plain;
    std::vector<int64_t> offsets;
    int64_t rows;
    Matrix x, x_scales;
    bool has_scales;
    int64_t blocks;
    std::vector<uint8_t> codes;
    Buffer w, w_scales, device_x, device_x_scales, device_offsets;
};

TEST(CudaGroupedGemm, F32HasTheBitsOfTheCpu) {
    for (int64_t in : {1, 33, 64, 100}) {
        const Product product({.groups = 4, .out = 35, .in = in}, {3, 0, 17, 1});
        expect_same_bits(product.on_cuda(Path::any_gpu), product.expected());
    }
}

TEST(CudaGroupedGemm, Bf16AgreesWithTheCpu) {
    for (Path path : paths())
        for (int64_t in : {8, 60, 64, 200, 520})
            for (int64_t out : {5, 128, 150}) {
                const Product product({.dtype = DType::bf16, .groups = 5, .out = out, .in = in},
                                      {1, 0, 16, 17, 40});
                EXPECT_LT(relative_error(product.on_cuda(path), product.expected()), kBf16Error / 2)
                    << out << " x " << in;
            }
}

TEST(CudaGroupedGemm, Fp8AgreesWithTheCpu) {
    for (Path path : paths())
        for (int64_t in : {16, 100, 128, 304, 528})
            for (int64_t out : {5, 200}) {
                const WeightSpec spec{.dtype = DType::fp8_e4m3, .groups = 4, .out = out, .in = in};
                const Product weights_only(spec, {1, 0, 20, 3});
                EXPECT_LT(relative_error(weights_only.on_cuda(path), weights_only.expected()),
                          kBf16Error / 2)
                    << out << " x " << in;
                // fp8 by fp8 is exact but for the sums.
                const Product both(spec, {1, 0, 20, 3}, true);
                EXPECT_LT(relative_error(both.on_cuda(path), both.expected()), fp8_error(path))
                    << out << " x " << in;
            }
}

// The same with its weights, code * scale, rounded to bf16.
PlainWeight as_bf16(const PlainWeight& int4) {
    PlainWeight wide{.spec = int4.spec, .data = {}, .scales = {}};
    wide.spec.dtype = DType::bf16;
    wide.data.resize(static_cast<size_t>(wide.spec.groups * wide.spec.out * wide.spec.in * 2));
    auto* to = reinterpret_cast<uint16_t*>(wide.data.data());
    for (int64_t group = 0; group < wide.spec.groups; ++group)
        for (int64_t out = 0; out < wide.spec.out; ++out)
            for (int64_t k = 0; k < wide.spec.in; ++k)
                *to++ = f32_to_bf16(
                    int4.value(group, out, k) *
                    bf16_to_f32(int4.group_scales(group).row<uint16_t>(out)[k / kInt4Group]));
    return wide;
}

TEST(CudaGroupedGemm, Int4HasTheBitsOfBf16) {
    for (Path path : paths())
        for (int64_t in : {32, 96, 128, 160, 544})
            for (int64_t out : {5, 128, 150, 260}) {
                const Product product({.dtype = DType::int4x2, .groups = 4, .out = out, .in = in},
                                      {1, 0, 70, 17});
                const std::vector<float> y = product.on_cuda(path);
                EXPECT_LT(relative_error(y, product.expected()), rounding_error(DType::int4x2))
                    << out << " x " << in;
                expect_same_bits(y, Product(as_bf16(product.plain), {1, 0, 70, 17}).on_cuda(path));
            }
}

TEST(CudaGroupedGemm, Int4IsPackedAPieceAtATime) {
    const PlainWeight plain =
        PlainWeight::random({.dtype = DType::int4x2, .groups = 3, .out = 300, .in = 224}, 7);
    for (int64_t rows_at_once : {128, 256, 384}) {
        const Weight weight = plain.packed(cuda_kernels(), rows_at_once);
        EXPECT_EQ(weight.size_bytes(), 3 * 3 * 2 * kInt4TileBytes);
        for (int64_t group = 0; group < 3; ++group) {
            const Matrix w(300, 224);
            cuda_kernels().unpack(weight, group, w.view);
            for (int64_t out = 0; out < 300; ++out)
                for (int64_t k = 0; k < 224; ++k)
                    ASSERT_EQ(w.view.row<float>(out)[k],
                              plain.value(group, out, k) *
                                  bf16_to_f32(
                                      plain.group_scales(group).row<uint16_t>(out)[k / kInt4Group]))
                        << group << ", " << out << ", " << k;
        }
    }
}

TEST(CudaGroupedGemm, TilesOfEveryHeight) {
    for (Path path : paths())
        for (int64_t rows : {15, 31, 63, 65, 130, 260})
            for (DType dtype : {DType::bf16, DType::fp8_e4m3, DType::int4x2})
                for (bool scaled : {false, true}) {
                    if (scaled && dtype != DType::fp8_e4m3) continue;
                    const Product product(
                        {.dtype = dtype, .groups = 2, .out = rows > 63 ? 300 : 130, .in = 160},
                        {rows, 2}, scaled);
                    EXPECT_LT(relative_error(product.on_cuda(path), product.expected()), kBf16Error)
                        << rows << " rows of " << to_string(dtype);
                }
}

// Neither do other groups, nor the number of blocks, nor the tile that a row falls into.
TEST(CudaGroupedGemm, RowsHaveTheSameBitsInEveryGroupSize) {
    for (Path path : paths())
        for (DType dtype : {DType::bf16, DType::fp8_e4m3, DType::int4x2, DType::f32})
            for (bool scaled : {false, true}) {
                if (scaled && dtype != DType::fp8_e4m3) continue;
                const WeightSpec spec{.dtype = dtype, .groups = 1, .out = 40, .in = 416};
                const Product all(spec, {150}, scaled);
                const std::vector<float> together = all.on_cuda(path, 1);
                expect_same_bits(all.on_cuda(path, 7), together);
                for (int64_t rows : {1, 16, 20, 40, 100}) {
                    Product few(spec, {150}, scaled);
                    few.offsets[1] = rows;
                    few.device_offsets = on_device(few.offsets);
                    const std::vector<float> part = few.on_cuda(path);
                    expect_same_bits({part.begin(), part.begin() + rows * 40},
                                     {together.begin(), together.begin() + rows * 40});
                }
            }
}

// Buffers are for the worst case; only the device knows how many rows there are.
TEST(CudaGroupedGemm, RowsBehindTheLastOffsetStayAsTheyAre) {
    for (Path path : paths())
        for (DType dtype : {DType::bf16, DType::fp8_e4m3, DType::int4x2, DType::f32}) {
            const Product product({.dtype = dtype, .groups = 3, .out = 20, .in = 64}, {2, 0, 3});
            const std::vector<float> padded = product.on_cuda(path, 2, 40);
            expect_same_bits({padded.begin(), padded.begin() + 5 * 20}, product.on_cuda(path));
            for (size_t i = 5 * 20; i < padded.size(); ++i) ASSERT_TRUE(std::isnan(padded[i])) << i;
            const Product none({.dtype = dtype, .groups = 3, .out = 20, .in = 64}, {0, 0, 0});
            for (float value : none.on_cuda(path, 2, 4)) ASSERT_TRUE(std::isnan(value));
        }
}

TEST(CudaGroupedGemm, MoreGroupsThanAWarp) {
    std::vector<int64_t> counts(70, 0);
    for (size_t i = 0; i < counts.size(); i += 3) counts[i] = static_cast<int64_t>(i % 4);
    const Product product({.dtype = DType::bf16, .groups = 70, .out = 16, .in = 32}, counts);
    for (Path path : paths())
        EXPECT_LT(relative_error(product.on_cuda(path, 5), product.expected()), kBf16Error / 2);
}

TEST(CudaGroupedGemm, AsAMethodWithOffsetsOnEitherSide) {
    auto& kernels = dynamic_cast<CudaKernels&>(cuda_kernels());
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3, DType::int4x2})
        for (bool scaled : {false, true}) {
            if (scaled && dtype != DType::fp8_e4m3) continue;
            const Product product({.dtype = dtype, .groups = 3, .out = 150, .in = 160}, {2, 0, 19},
                                  scaled);
            const CudaTensor y(DType::f32, {product.rows, 150});
            const Weight weight = product.plain.packed(kernels);
            const Tensor x(product.device_x.data(), scaled ? DType::fp8_e4m3 : DType::f32,
                           {product.rows, 160});
            const Tensor x_scales(product.device_x_scales.data(), DType::f32, {product.rows, 2});
            kernels.grouped_gemm(x, product.device_offsets.as<int64_t>(), weight, y,
                                 scaled ? &x_scales : nullptr);
            const std::vector<float> expected = product.expected();
            EXPECT_LT(relative_error(y.values(), expected), rounding_error(dtype))
                << to_string(dtype);
            const CudaTensor again(DType::f32, {product.rows, 150});
            kernels.grouped_gemm(x, product.offsets, weight, again, scaled ? &x_scales : nullptr);
            if (dtype != DType::f32) {
                expect_same_bits(again.values(), y.values());
            } else {
                EXPECT_LT(relative_error(again.values(), expected), kF32Error);
            }
        }
}

TEST(CudaGroupedGemm, PublishedShapesOnAGpu) {
    if (!on_gpu()) GTEST_SKIP() << "too long for the emulation";
    for (DType dtype : {DType::bf16, DType::fp8_e4m3, DType::int4x2})
        for (bool scaled : {false, true}) {
            if (scaled && dtype != DType::fp8_e4m3) continue;
            // Few columns: the reference takes seconds.
            const Product product({.dtype = dtype, .groups = 4, .out = 128, .in = 7168},
                                  {1, 33, 0, 70}, scaled);
            const std::vector<float> expected = product.expected();
            for (Path path : paths()) {
                const std::vector<float> first = product.on_cuda(path, 264);
                EXPECT_LT(relative_error(first, expected),
                          scaled ? fp8_error(path) : rounding_error(dtype));
                for (int i = 0; i < 10; ++i) expect_same_bits(product.on_cuda(path, 264), first);
            }
            const Product whole({.dtype = dtype, .groups = 4, .out = 2048, .in = 2048},
                                {300, 33, 0, 1}, scaled);
            const std::vector<float> plain = whole.on_cuda(Path::any_gpu, 264);
            for (Path path : paths()) {
                const std::vector<float> first = whole.on_cuda(path, 132);
                EXPECT_LT(relative_error(first, plain),
                          scaled ? fp8_error(path) : kTensorCoreError);
                for (int i = 0; i < 10; ++i) expect_same_bits(whole.on_cuda(path, 132), first);
            }
        }
}

TEST(CudaGroupedGemm, PlansByHand) {
    // An upper bound: a row more in each group, and every 16 rows.
    EXPECT_EQ(gemm_most_tiles(20, 3, 130, kGemmColumns), 2 * (1 + 3));
    EXPECT_EQ(gemm_most_tiles(2, 256, 128, kGemmColumns), 2);
    EXPECT_EQ(gemm_most_tiles(4096, 256, 2048, kGemmColumns), 16 * (256 + 256));
    EXPECT_EQ(gemm_tile_rows(0, 128), 16);
    EXPECT_EQ(gemm_tile_rows(16, 128), 16);
    EXPECT_EQ(gemm_tile_rows(17, 128), 32);
    EXPECT_EQ(gemm_tile_rows(33, 128), 64);
    EXPECT_EQ(gemm_tile_rows(65, 128), 128);
    EXPECT_EQ(gemm_tile_rows(1000, 64), 64);
    EXPECT_EQ(gemm_tile_rows(40, kGemmPlainTile), kGemmPlainTile);
    EXPECT_EQ(gemm_tile_bytes(128, GroupedWeights::bf16), 3 * (16384 + 16384));
    EXPECT_EQ(gemm_tile_bytes(16, GroupedWeights::fp8), 6 * (16384 + 4096));
    EXPECT_EQ(gemm_tile_bytes(128, GroupedWeights::fp8), 3 * (16384 + 32768));
    EXPECT_EQ(gemm_tile_bytes(16, GroupedWeights::int4), 6 * (9216 + 4096));
    // Two blocks of bf16 on sm_90, one of fp8 on sm_80; 1 KiB of each is CUDA's own.
    EXPECT_LE(2 * (gemm_shared_bytes(kGemmMostGroups, GroupedWeights::bf16) + 1024), 228 << 10);
    EXPECT_LE(gemm_shared_bytes(kGemmMostGroups, GroupedWeights::fp8), 163 << 10);
    EXPECT_LE(gemm_shared_bytes(kGemmMostGroups, GroupedWeights::int4), 163 << 10);
    EXPECT_EQ(gemm_first_tile_bytes(30, 128), 128);
    EXPECT_EQ(gemm_first_tile_bytes(31, 128), 256);
    EXPECT_EQ(gemm_wgmma_stage_bytes(GemmInputs::bf16, 256), 16384 + 32768);
    EXPECT_EQ(gemm_wgmma_stage_bytes(GemmInputs::fp8, 64), 16384 + 8192);
    EXPECT_EQ(gemm_wgmma_stage_bytes(GemmInputs::widened_fp8, 64), 16384 + 16384);
    EXPECT_EQ(gemm_wgmma_stage_bytes(GemmInputs::widened_int4, 64), 9216 + 16384);
    EXPECT_EQ(gemm_wgmma_num_stages(GemmInputs::widened_int4, 64), 8);
    EXPECT_EQ(gemm_wgmma_num_stages(GemmInputs::widened_int4, 128), 5);
    EXPECT_EQ(gemm_wgmma_num_stages(GemmInputs::bf16, 256), 4);
    EXPECT_EQ(gemm_wgmma_stage_bytes(GemmInputs::fp8, 128), 32768 + 16384);
    EXPECT_EQ(gemm_wgmma_num_stages(GemmInputs::fp8, 64), 9);
    EXPECT_EQ(gemm_wgmma_num_stages(GemmInputs::fp8, 128), 4);
    for (GemmInputs inputs :
         {GemmInputs::bf16, GemmInputs::fp8, GemmInputs::widened_fp8, GemmInputs::widened_int4})
        EXPECT_LE(gemm_wgmma_shared_bytes(kGemmMostGroups, inputs), 227 << 10);
}

}  // namespace
}  // namespace ferry
