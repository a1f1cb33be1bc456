// Whole models on the CUDA backend against what Transformers computes and against the CPU: with the
// exchange of GPUs and with rows that go through the host.
#include <gtest/gtest.h>

#include "base/device_cuda.h"
#include "runtime/hf_model.h"
#include "tests/support/golden_models.h"
#include "tests/support/one_rank_model.h"

namespace ferry {
namespace {

using testing::golden_folder;
using testing::GoldenRows;
using testing::largest_difference;

struct Family {
    const char* name;
    // Of the largest logit. f32 weights: products of f32. bf16 and fp8 weights: inputs of products
    // are rounded to bf16, 2^-9 each.
    double tolerance;
};

class CudaModel : public ::testing::TestWithParam<Family> {
  protected:
    const std::string folder_ = golden_folder("models/") + GetParam().name;
    const nlohmann::json golden_ = testing::read_golden_json(folder_);
    const GoldenRows rows_{folder_ + "/golden_logits.bin", golden_.at("vocab_size")};
    HfModel source_{folder_};

    // The shortest: an emulated GPU is slow.
    const nlohmann::json& prompt() const {
        const nlohmann::json* shortest = &golden_.at("prompts").at(0);
        for (const nlohmann::json& entry : golden_.at("prompts"))
            if (entry.at("prompt").size() < shortest->at("prompt").size()) shortest = &entry;
        return *shortest;
    }
    double relative_error(OneRankModel& model) const {
        const std::vector<int32_t> tokens = prompt().at("prompt");
        const auto logits = model.logits(tokens, static_cast<int64_t>(tokens.size()));
        const std::vector<int64_t> positions = prompt().at("logits_positions");
        double largest = 0;
        for (size_t j = 0; j < positions.size(); ++j) {
            if (positions[j] >= static_cast<int64_t>(tokens.size())) continue;
            const int64_t row = prompt().at("logits_row").get<int64_t>() + static_cast<int64_t>(j);
            largest = std::max(
                largest,
                largest_difference(logits[static_cast<size_t>(positions[j])], rows_.row(row)));
        }
        return largest / prompt().at("max_abs_logit").get<double>();
    }
};

TEST_P(CudaModel, LogitsAreWithinBoundsAndGreedyTokensAreThoseOfTheCpu) {
    constexpr int64_t kTokens = 4;
    const std::vector<int32_t> tokens = prompt().at("prompt");
    const std::vector<int32_t> expected = OneRankModel(source_).greedy(tokens, kTokens);
    for (const bool through_host : {false, true}) {
        const std::unique_ptr<BlockTransport> blocks =
            through_host ? nullptr : make_self_blocks(cuda_device(0));
        OneRankModel model(source_, make_cuda_kernels(0), {}, 2, blocks.get());
        EXPECT_LT(relative_error(model), GetParam().tolerance) << "through host " << through_host;
        const std::vector<int32_t> greedy = model.greedy(tokens, kTokens);
        EXPECT_EQ(greedy, expected) << "through host " << through_host;
        EXPECT_EQ(model.greedy(tokens, kTokens), greedy) << "a second run";
    }
}

INSTANTIATE_TEST_SUITE_P(Families, CudaModel,
                         ::testing::Values(Family{"v2-lite", 2e-4}, Family{"v3", 2e-4},
                                           Family{"v3-bf16", 2e-2}, Family{"v3-fp8", 3e-2}),
                         [](const auto& family) {
                             std::string name = family.param.name;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

}  // namespace
}  // namespace ferry
