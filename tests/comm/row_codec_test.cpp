#include "comm/row_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"

namespace ferry {
namespace {

// Numbers of all magnitudes, ties, specials.
std::vector<float> samples() {
    std::vector<float> x{0.0f,
                         -0.0f,
                         1.0f,
                         -448.0f,
                         449.0f,
                         0x1p-9f,
                         0x1p-10f,
                         0x1.8p-9f,
                         std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(),
                         std::numeric_limits<float>::quiet_NaN()};
    Random random(7);
    for (int i = 0; i < 20000; ++i) x.push_back(std::bit_cast<float>(random.next_u32()));
    for (uint32_t code = 0; code < 0x10000; code += 7) {  // halfway between bf16 values
        x.push_back(std::bit_cast<float>((code << 16) | 0x8000u));
        x.push_back(std::bit_cast<float>((code << 16) | 0x7fffu));
    }
    return x;
}

TEST(RowCodec, Bf16AgreesWithTheDefinition) {
    const std::vector<float> x = samples();
    const auto dim = static_cast<int64_t>(x.size());
    std::vector<uint16_t> coded(x.size());
    std::vector<float> back(x.size());
    encode_row(DType::bf16, x.data(), dim, reinterpret_cast<std::byte*>(coded.data()), nullptr);
    decode_row(DType::bf16, reinterpret_cast<std::byte*>(coded.data()), nullptr, dim, back.data());
    for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(coded[i], f32_to_bf16(x[i])) << x[i];
        ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), uint32_t{coded[i]} << 16);
    }
}

TEST(RowCodec, StreamedStoresGiveTheSameBits) {
    const std::vector<float> x = samples();
    for (const int64_t dim : {1000, 7168, 5})
        for (const size_t offset : {size_t{0}, size_t{4}}) {  // unaligned rows are not streamed
            std::vector<std::byte> memory(2 * 65536, std::byte{0x5a});
            std::byte* base =
                memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
            auto* coded = reinterpret_cast<uint16_t*>(base + offset);
            encode_row(DType::bf16, x.data(), dim, reinterpret_cast<std::byte*>(coded), nullptr,
                       Stores::streamed);
            for (int64_t i = 0; i < dim; ++i) ASSERT_EQ(coded[i], f32_to_bf16(x[i]));
            ASSERT_EQ(coded[dim], 0x5a5a);
            auto* back = reinterpret_cast<float*>(base + 65536 + offset);
            decode_row(DType::bf16, reinterpret_cast<std::byte*>(coded), nullptr, dim, back,
                       Stores::streamed);
            for (int64_t i = 0; i < dim; ++i)
                ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), uint32_t{coded[i]} << 16);
        }
}

TEST(RowCodec, Fp8AgreesWithTheDefinitionPerBlock) {
    Random random(3);
    for (int64_t dim : {1, 127, 128, 129, 300, 7168}) {
        std::vector<float> x(dim);
        for (float& value : x)
            value =
                random.next_normal() * std::exp2(static_cast<float>(random.next_u32() % 40) - 20);
        if (dim >= 128) std::fill_n(x.begin(), 128, 0.0f);
        std::vector<uint8_t> coded(dim);
        std::vector<float> scales((dim + 127) / 128), back(dim);
        encode_row(DType::fp8_e4m3, x.data(), dim, reinterpret_cast<std::byte*>(coded.data()),
                   scales.data());
        decode_row(DType::fp8_e4m3, reinterpret_cast<std::byte*>(coded.data()), scales.data(), dim,
                   back.data());
        for (int64_t block = 0; block < dim; block += 128) {
            float largest = 1e-4f;
            for (int64_t i = block; i < std::min(dim, block + 128); ++i)
                largest = std::max(largest, std::abs(x[i]));
            const float scale = largest / 448.0f;
            ASSERT_EQ(scales[block / 128], scale);
            for (int64_t i = block; i < std::min(dim, block + 128); ++i) {
                ASSERT_EQ(coded[i], f32_to_fp8_e4m3(x[i] / scale)) << x[i] << " / " << scale;
                ASSERT_EQ(back[i], fp8_e4m3_to_f32(coded[i]) * scale);
            }
        }
    }
}

TEST(RowCodec, EveryFp8CodeDecodes) {
    std::vector<uint8_t> codes(256);
    for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
    std::vector<float> scales{1.0f, 1.0f}, x(256);
    decode_row(DType::fp8_e4m3, reinterpret_cast<std::byte*>(codes.data()), scales.data(), 256,
               x.data());
    for (int i = 0; i < 256; ++i) {
        if ((i & 0x7f) == 0x7f)
            EXPECT_TRUE(std::isnan(x[i]));
        else
            EXPECT_EQ(std::bit_cast<uint32_t>(x[i]),
                      std::bit_cast<uint32_t>(fp8_e4m3_to_f32(codes[i])));
    }
}

const std::byte* bytes_of(const void* row) {
    return static_cast<const std::byte*>(row);
}

TEST(RowCodec, SumsWithAProductAndASum) {
    const std::vector<float> x{1.0f, 3.0f, -2.0f};
    std::vector<float> out(3, 99.0f);
    sum_rows(DType::f32, std::vector<WeightedRow>{{bytes_of(x.data()), 0.5f}}, 3, out.data());
    EXPECT_EQ(out, (std::vector<float>{0.5f, 1.5f, -1.0f}));
    sum_rows(DType::f32,
             std::vector<WeightedRow>{{bytes_of(x.data()), 0.5f}, {bytes_of(x.data()), 2.0f}}, 3,
             out.data());
    EXPECT_EQ(out, (std::vector<float>{2.5f, 7.5f, -5.0f}));
    // Two roundings: with a fused multiply-add the low bits would survive.
    const float a = 1.0f + 0x1p-23f;
    const float minus_one = -1.0f;
    sum_rows(DType::f32, std::vector<WeightedRow>{{bytes_of(&minus_one), 1}, {bytes_of(&a), a}}, 1,
             out.data());
    const volatile float product = a * a;
    EXPECT_EQ(out[0], product - 1.0f);
}

// Blocks of columns, tails, any number of rows: the sum of every column is a loop over rows.
TEST(RowCodec, SumsManyRowsInTheirOrder) {
    Random random(11);
    for (const int64_t dim : {1, 7, 511, 512, 513, 1500})
        for (const size_t num : {1, 2, 9, 17}) {
            std::vector<std::vector<uint16_t>> rows(num);
            std::vector<WeightedRow> terms;
            for (std::vector<uint16_t>& row : rows) {
                for (int64_t i = 0; i < dim; ++i) row.push_back(f32_to_bf16(random.next_normal()));
                terms.push_back({bytes_of(row.data()), random.next_normal()});
            }
            std::vector<float> out(static_cast<size_t>(dim) + 1, 99.0f);
            sum_rows(DType::bf16, terms, dim, out.data());
            for (size_t i = 0; i < static_cast<size_t>(dim); ++i) {
                float expected = terms[0].weight * bf16_to_f32(rows[0][i]);
                for (size_t k = 1; k < num; ++k) {
                    const float product = terms[k].weight * bf16_to_f32(rows[k][i]);
                    expected = expected + product;
                }
                ASSERT_EQ(out[i], expected);
            }
            ASSERT_EQ(out.back(), 99.0f);
        }
}

}  // namespace
}  // namespace ferry
