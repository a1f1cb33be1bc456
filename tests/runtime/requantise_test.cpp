#include "runtime/requantise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "base/random.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::TempDir;

// A tensor in a file of its own.
class FileTensor {
  public:
    FileTensor(DType dtype, std::vector<int64_t> shape, const std::string& bytes) {
        testing::write_file(dir_ / "t", bytes);
        file_.emplace(dir_ / "t");
        tensor.info.dtype = dtype;
        tensor.info.shape = std::move(shape);
        tensor.parts.push_back({0, tensor.info.shape[0], &*file_, 0});
    }
    StoredTensor tensor;

  private:
    TempDir dir_;
    std::optional<InputFile> file_;
};

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
template <typename T>
std::vector<T> values_of(const std::string& bytes) {
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

struct Result {
    std::string weight, scales;
};
Result run(const StoredTensor& tensor, const StoredTensor* scales, DType dtype, int64_t first = 0,
           int64_t num = -1) {
    Result result;
    const auto append = [](std::string& to) {
        return [&to](const void* data, size_t n) { to.append(static_cast<const char*>(data), n); };
    };
    requantise(tensor, scales, first, num < 0 ? tensor.info.shape[0] : num, dtype,
               {append(result.weight), append(result.scales)});
    return result;
}

TEST(Requantise, F32ToBf16RoundsToNearestEven) {
    const FileTensor t(DType::f32, {4}, bytes_of<float>({1.0f, 1.00390625f, 1.01171875f, -3.5f}));
    // 1 + 2^-8 lies between 1 and 1 + 2^-7: even is 1. 1 + 3 * 2^-8 lies between 1 + 2^-7, odd, and
    // 1 + 2^-6.
    EXPECT_EQ(values_of<uint16_t>(run(t.tensor, nullptr, DType::bf16).weight),
              (std::vector<uint16_t>{0x3f80, 0x3f80, 0x3f82, 0xc060}));
}

TEST(Requantise, Bf16ToF32IsExact) {
    const FileTensor t(DType::bf16, {1, 2}, bytes_of<uint16_t>({0x3f80, 0xc060}));
    EXPECT_EQ(values_of<float>(run(t.tensor, nullptr, DType::f32).weight),
              (std::vector<float>{1.0f, -3.5f}));
}

TEST(Requantise, Fp8IsWidenedWithItsBlocksScales) {
    // [129, 130]: four blocks; code 0x38 is 1.
    const FileTensor t(DType::fp8_e4m3, {129, 130}, std::string(129 * 130, '\x38'));
    const FileTensor scales(DType::f32, {2, 2}, bytes_of<float>({2, 3, 4, 5}));
    const auto values = values_of<float>(run(t.tensor, &scales.tensor, DType::f32).weight);
    EXPECT_EQ(values[0], 2);
    EXPECT_EQ(values[127], 2);
    EXPECT_EQ(values[128], 3);
    EXPECT_EQ(values[127 * 130 + 129], 3);
    EXPECT_EQ(values[128 * 130], 4);
    EXPECT_EQ(values[128 * 130 + 129], 5);
}

TEST(Requantise, ToFp8ScalesEachBlockByItsLargestValue) {
    std::vector<float> values(130 * 129, 0.0f);
    values[0] = 448;             // block (0, 0): scale 1
    values[1] = -224;            // 0x76 is 224
    values[128] = 1;             // block (0, 1): scale 1/448, code 448
    values[129 * 129] = -0.875;  // block (1, 0): scale 0.875/448
    const FileTensor t(DType::f32, {130, 129}, bytes_of(values));
    const Result result = run(t.tensor, nullptr, DType::fp8_e4m3);
    EXPECT_EQ(values_of<float>(result.scales),
              (std::vector<float>{1.0f, 1.0f / 448, 0.875f / 448, 1.0f}));
    const auto code = [&](size_t i) { return static_cast<uint8_t>(result.weight[i]); };
    EXPECT_EQ(code(0), 0x7e);
    EXPECT_EQ(code(1), 0xf6);
    EXPECT_EQ(code(2), 0x00);
    EXPECT_EQ(code(128), 0x7e);
    EXPECT_EQ(code(129 * 129), 0xfe);
}

TEST(Requantise, ThereAndBackIsWithinHalfAStep) {
    Random random(7);
    std::vector<float> values(300 * 200);
    for (float& value : values) value = random.next_normal();
    const FileTensor t(DType::f32, {300, 200}, bytes_of(values));
    const Result fp8 = run(t.tensor, nullptr, DType::fp8_e4m3);
    const FileTensor codes(DType::fp8_e4m3, {300, 200}, fp8.weight);
    const FileTensor scales(DType::f32, {3, 2}, fp8.scales);
    const auto back = values_of<float>(run(codes.tensor, &scales.tensor, DType::f32).weight);
    for (size_t i = 0; i < values.size(); ++i)  // 3 bits of mantissa; the scale is about 4/448
        ASSERT_NEAR(back[i], values[i], std::fabs(values[i]) / 16 + 1e-5) << i;
}

// Codes of (k 0, k 1), (k 2, k 3), ...; of a row of 64, two scales.
TEST(Requantise, Int4IsWidenedWithItsGroupsScales) {
    std::string codes(2 * 32, '\x88');  // zeros
    codes[0] = '\xf0';                  // -8, 7
    codes[16] = '\x09';                 // k 32: 1, k 33: -8
    codes[63] = '\x68';                 // row 1, k 62: 0, k 63: -2
    const FileTensor t(DType::int4x2, {1, 2, 32}, codes);
    const FileTensor scales(DType::bf16, {1, 2, 2},
                            bytes_of<uint16_t>({0x3f00, 0xc000, 0x3f80, 0x4040}));
    std::vector<float> expected(128, 0.0f);
    expected[0] = -4;
    expected[1] = 3.5f;
    for (size_t k = 32; k < 64; ++k) expected[k] = 0;
    expected[32] = -2;
    expected[33] = 16;
    expected[127] = -6;
    EXPECT_EQ(values_of<float>(run(t.tensor, &scales.tensor, DType::f32).weight), expected);
    const Result same = run(t.tensor, &scales.tensor, DType::int4x2);
    EXPECT_EQ(same.weight, codes);
    EXPECT_EQ(same.scales, bytes_of<uint16_t>({0x3f00, 0xc000, 0x3f80, 0x4040}));
}

TEST(Requantise, ToInt4TheLargestValueIsMinusEightSteps) {
    std::vector<float> values(64, 0.0f);
    values[3] = 4;       // largest: scale -0.5
    values[4] = -3.6f;   // 7.2 steps: 7
    values[5] = 0.75f;   // -1.5: to even, -2
    values[31] = -0.7f;  // 1.4: 1
    const FileTensor t(DType::f32, {1, 64}, bytes_of(values));
    const Result result = run(t.tensor, nullptr, DType::int4x2);
    EXPECT_EQ(values_of<uint16_t>(result.scales), (std::vector<uint16_t>{0xbf00, 0x8000}));
    std::string codes(32, '\x88');
    codes[1] = '\x08';   // k 2: 0, k 3: -8
    codes[2] = '\x6f';   // k 4: 7, k 5: -2
    codes[15] = '\x98';  // k 30: 0, k 31: 1
    EXPECT_EQ(result.weight, codes);
}

TEST(Requantise, ToInt4IsWithinAStep) {
    Random random(9);
    std::vector<float> values(5 * 700 * 64);
    for (float& value : values) value = random.next_normal();
    const FileTensor t(DType::f32, {5, 700, 64}, bytes_of(values));
    const Result int4 = run(t.tensor, nullptr, DType::int4x2, 1, 3);
    ASSERT_EQ(int4.weight.size(), 3 * 700 * 32u);
    const FileTensor codes(DType::int4x2, {3, 700, 32}, int4.weight);
    const FileTensor scales(DType::bf16, {3, 700, 2}, int4.scales);
    const auto back = values_of<float>(run(codes.tensor, &scales.tensor, DType::f32).weight);
    const auto steps = values_of<uint16_t>(int4.scales);
    double error = 0;
    for (size_t i = 0; i < back.size(); ++i) {
        const float value = values[700 * 64 + i], step = bf16_to_f32(steps[i / 32]);
        // The scale is rounded, and what lies beyond 7 steps is cut off.
        ASSERT_NEAR(back[i], value, std::fabs(step) * 1.05f) << i;
        error += std::pow(back[i] - value, 2);
    }
    EXPECT_LT(std::sqrt(error / static_cast<double>(back.size())), 0.1);  // of a deviation of 1
}

TEST(Requantise, Int4OfWhatIsNoNumberIsRefused) {
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
        std::vector<float> values(32, 1.0f);
        values[7] = bad;
        const FileTensor t(DType::f32, {1, 32}, bytes_of(values));
        EXPECT_ERROR(run(t.tensor, nullptr, DType::int4x2), ErrorKind::checkpoint,
                     "not a finite number");
    }
}

TEST(Requantise, ExpertsAreCutOutAndLargeMatricesAreChunked) {
    // Two rows of blocks per chunk would be 8 MiB: 4 experts of 700 x 5000 are many chunks.
    Random random(3);
    std::vector<uint16_t> values(4 * 700 * 5000);
    for (uint16_t& value : values) value = f32_to_bf16(random.next_uniform());
    const FileTensor t(DType::bf16, {4, 700, 5000}, bytes_of(values));
    const size_t expert = 700 * 5000;
    EXPECT_EQ(run(t.tensor, nullptr, DType::bf16, 1, 2).weight,
              bytes_of(values).substr(expert * 2, 2 * expert * 2));
    const auto widened = values_of<float>(run(t.tensor, nullptr, DType::f32, 3, 1).weight);
    ASSERT_EQ(widened.size(), expert);
    for (size_t i = 0; i < expert; i += 101)
        ASSERT_EQ(widened[i], bf16_to_f32(values[3 * expert + i]));
    const Result fp8 = run(t.tensor, nullptr, DType::fp8_e4m3, 2, 2);
    EXPECT_EQ(fp8.weight.size(), 2 * expert);
    EXPECT_EQ(fp8.scales.size(), 2 * 6 * 40 * sizeof(float));
}

}  // namespace
}  // namespace ferry
