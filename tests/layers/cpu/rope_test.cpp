#include <cmath>

#include "tests/layers/cpu/attention_support.h"
#include "tests/support/golden_units.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

TEST(Rope, AgreesWithGoldenData) {
    const GoldenUnits golden("rope");
    auto kernels = make_cpu_kernels(2);
    ASSERT_GE(golden.cases().size(), 9u);
    for (const auto& [name, settings] : golden.cases().items()) {
        const int64_t r = settings.at("r");
        const auto cos = golden.values<float>(name + ".cos");
        const auto sin = golden.values<float>(name + ".sin");
        const OwnedTensor table = zeros({10, r});
        for (int64_t i = 0; i < 10 * r / 2; ++i) {
            table.view().as<float>()[2 * i] = cos[static_cast<size_t>(i)];
            table.view().as<float>()[2 * i + 1] = sin[static_cast<size_t>(i)];
        }
        const std::vector<int32_t> rows{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
        for (bool interleave : {true, false}) {
            auto x = golden.values<float>(name + ".x");
            const auto expected =
                golden.values<float>(name + (interleave ? ".interleaved" : ".halves"));
            kernels->rope(Tensor(x.data(), DType::f32, {10, 2, r}), 0, rows, table, interleave);
            for (size_t i = 0; i < x.size(); ++i)
                ASSERT_NEAR(x[i], expected[i], 2e-6f) << name << " " << interleave << " " << i;
        }
    }
}

TEST(Rope, RotatesSomeColumnsOfEachHead) {
    for (const auto& [r, first] :
         {std::pair(2, 5), {6, 0}, {6, 5}, {16, 2}, {16, 5}, {50, 1}, {64, 0}, {64, 5}})
        for (bool interleave : {true, false}) {
            constexpr int64_t kRows = 37, kHeads = 3, kOther = 5;
            const OwnedTensor table = random_tensor({50, r}, 1);
            std::vector<int32_t> positions;
            for (int i = 0; i < kRows; ++i) positions.push_back(i * 7 % 50);
            const OwnedTensor expected = random_tensor({kRows, kHeads, kOther + r}, 2);
            for (int64_t row = 0; row < kRows; ++row)
                for (int64_t head = 0; head < kHeads; ++head)
                    for (int64_t i = 0; i < r / 2; ++i) {
                        float* v = expected.view().row<float>(row) + head * (kOther + r) + first;
                        const float* angles = table.view().row<float>(positions[row]) + 2 * i;
                        float& a = interleave ? v[2 * i] : v[i];
                        float& b = interleave ? v[2 * i + 1] : v[i + r / 2];
                        const float turned = a * angles[0] - b * angles[1];
                        b = a * angles[1] + b * angles[0];
                        a = turned;
                    }
            for_each_vector_target([&] {
                for (int threads : {1, 2, 3}) {
                    const OwnedTensor x = random_tensor({kRows, kHeads, kOther + r}, 2);
                    make_cpu_kernels(threads)->rope(x, first, positions, table, interleave);
                    EXPECT_EQ(different_rows(x, expected), std::vector<int64_t>())
                        << r << " " << interleave;
                }
            });
        }
}

TEST(Rope, ZeroRows) {
    const OwnedTensor x = zeros({0, 2, 8}), table = zeros({4, 8});
    make_cpu_kernels(2)->rope(x, 0, {}, table, true);
}

}  // namespace
}  // namespace ferry
