#include "tests/layers/cpu/attention_support.h"
#include "tests/support/golden_units.h"
#include "tests/support/vector_targets.h"

namespace ferry {
namespace {

constexpr int64_t kWidth = 37;  // whole vectors and a rest

// One row of any length through the cache and back as its bf16 bits.
std::vector<uint16_t> stored_bits(Kernels& kernels, const std::vector<float>& values) {
    const auto width = static_cast<int64_t>(values.size());
    const OwnedTensor cache(cpu_device(), DType::bf16, {1, kPageTokens, width});
    const int64_t slot = 3;
    kernels.write_cache(Tensor(values.data(), DType::f32, {1, width}), std::span(&slot, 1), cache);
    const uint16_t* row = cache.view().as<uint16_t>() + slot * width;
    return {row, row + width};
}

TEST(LatentCache, RoundsAsGoldenData) {
    const GoldenUnits golden("bf16");
    auto kernels = make_cpu_kernels(1);
    EXPECT_EQ(stored_bits(*kernels, golden.values<float>("x")), golden.values<uint16_t>("bf16"));
}

TEST(LatentCache, HasTheBitsOfBaseDtype) {
    std::vector<float> values;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521 * 7)
        values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    for (uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7fc00000u, 0x3f808000u,
                          0x3f818000u, 0x7f7fffffu, 0x00008000u, 0x80018000u})
        values.push_back(std::bit_cast<float>(bits));
    for_each_vector_target([&] {
        const std::vector<uint16_t> stored = stored_bits(*make_cpu_kernels(1), values);
        for (size_t i = 0; i < values.size(); ++i)
            ASSERT_EQ(stored[i], f32_to_bf16(values[i]))
                << std::hex << std::bit_cast<uint32_t>(values[i]);
    });
}

TEST(LatentCache, ReadsBackWhatWasWrittenThroughShuffledPages) {
    const std::vector<int32_t> pages{4, 0, 3, 1};
    for (DType dtype : {DType::f32, DType::bf16})
        for (int64_t positions : {0, 1, 63, 64, 65, 250})
            for_each_vector_target([&] {
                auto kernels = make_cpu_kernels(2);
                const OwnedTensor cache(cpu_device(), dtype, {5, kPageTokens, kWidth});
                const OwnedTensor rows = random_tensor({positions, kWidth}, 3);
                std::vector<int64_t> slots;
                for (int64_t i = 0; i < positions; ++i)
                    slots.push_back(pages[static_cast<size_t>(i / kPageTokens)] * kPageTokens +
                                    i % kPageTokens);
                kernels->write_cache(rows, slots, cache);
                const OwnedTensor back = zeros({positions, kWidth});
                for (const int64_t first : {int64_t{0}, positions / 3, positions})
                    kernels->read_cache(cache, pages, first,
                                        back.view().slice_rows(first, positions - first));
                if (dtype == DType::bf16)
                    for (int64_t i = 0; i < rows.view().count(); ++i) {
                        float& value = rows.view().as<float>()[i];
                        value = bf16_to_f32(f32_to_bf16(value));
                    }
                EXPECT_EQ(different_rows(back, rows), std::vector<int64_t>());
            });
}

}  // namespace
}  // namespace ferry
