// Whole models on the CUDA backend: logits against what Transformers computes, tokens against the
// CPU's, the same bits from run to run; with the exchange of GPUs and with rows that go through the
// host.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/device_cuda.h"
#include "runtime/hf_model.h"
#include "tests/support/golden_models.h"
#include "tests/support/int4_models.h"
#include "tests/support/one_rank_model.h"
#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

using testing::golden_folder;
using testing::GoldenRows;

constexpr int kMicroBatches = 2;

// A model on the first GPU.
struct CudaModel {
    explicit CudaModel(WeightSource& source, bool through_host = false)
        : blocks(through_host ? nullptr : make_self_blocks(cuda_device(0))),
          model(source, make_cuda_kernels(0), {}, kMicroBatches, blocks.get()) {}
    std::unique_ptr<BlockTransport> blocks;
    OneRankModel model;
};

// A prompt of 5 tokens and the beginning of its golden continuation, all of whose logits are
// golden: in one step that has rows of both forms of attention.
struct GoldenStart {
    explicit GoldenStart(const std::string& family)
        : folder(golden_folder("models/") + family),
          golden(testing::read_golden_json(folder)),
          rows(folder + "/golden_logits.bin", golden.at("vocab_size")) {
        for (const nlohmann::json& entry : golden.at("prompts")) {
            if (entry.at("prompt").size() != 5) continue;
            tokens = entry.at("prompt").get<std::vector<int32_t>>();
            prompt_length = static_cast<int64_t>(tokens.size());
            continuation = entry.at("continuation").get<std::vector<int32_t>>();
            tokens.insert(tokens.end(), continuation.begin(), continuation.begin() + 6);
            first_row = entry.at("logits_row");
            max_abs_logit = entry.at("max_abs_logit");
        }
    }
    // Over all tokens, of the largest logit.
    double relative_error(const std::vector<std::vector<float>>& logits) const {
        double largest = 0;
        for (size_t i = 0; i < tokens.size(); ++i)
            largest =
                std::max(largest, testing::largest_difference(
                                      logits[i], rows.row(first_row + static_cast<int64_t>(i))));
        return largest / max_abs_logit;
    }

    std::string folder;
    nlohmann::json golden;
    GoldenRows rows;
    std::vector<int32_t> tokens, continuation;
    int64_t prompt_length = 0, first_row = 0;
    double max_abs_logit = 0;
};

struct Family {
    const char* name;
    // f32 weights: sums of f32 in another order. bf16 and fp8 weights: inputs of products are
    // rounded to bf16, 2^-9 each.
    double tolerance;
};

class CudaGolden : public ::testing::TestWithParam<Family> {};

TEST_P(CudaGolden, LogitsAreWithinBounds) {
    const GoldenStart start(GetParam().name);
    ASSERT_EQ(start.prompt_length, 5);
    HfModel source(start.folder);
    for (const bool through_host : {false, true}) {
        SCOPED_TRACE(through_host ? "through the host" : "from GPU to GPU");
        CudaModel cuda(source, through_host);
        const auto logits = cuda.model.logits(start.tokens, start.prompt_length);
        EXPECT_LT(start.relative_error(logits), GetParam().tolerance);
    }
}

INSTANTIATE_TEST_SUITE_P(Families, CudaGolden,
                         ::testing::Values(Family{"v2-lite", 2e-2}, Family{"v3", 2e-4},
                                           Family{"v3-bf16", 2e-2}, Family{"v3-fp8", 3e-2},
                                           Family{"k2-int4", 2e-2}, Family{"v32", 2e-4},
                                           Family{"glm5", 2e-2}, Family{"glm52", 2e-2}),
                         [](const auto& family) {
                             std::string name = family.param.name;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

// Of int4 in all linear layers, which become bf16.
TEST(CudaInt4, LogitsAreThoseOfTheCpu) {
    const auto source = testing::int4_model();
    const std::vector<int32_t> tokens = {3, 80, 41, 7, 19, 55, 2, 66, 30, 12};
    const auto expected =
        OneRankModel(*source, make_cpu_kernels(2, {.bf16_activations = true})).logits(tokens, 6);
    double largest = 0, difference = 0;
    CudaModel cuda(*source);
    const auto logits = cuda.model.logits(tokens, 6);
    for (size_t i = 0; i < tokens.size(); ++i) {
        for (const float logit : expected[i]) largest = std::max(largest, std::abs(double{logit}));
        difference = std::max(difference, testing::largest_difference(logits[i], expected[i]));
    }
    EXPECT_GT(largest, 0.1);
    EXPECT_LT(difference, 3e-2 * largest);
}

TEST(CudaDemoModel, GreedyContinuationIsThatOfTheCpu) {
    constexpr size_t kNumTokens = 6;
    const nlohmann::json entry =
        testing::read_golden_json(golden_folder("demo")).at("prompts").at(0);
    const std::vector<int32_t> prompt = entry.at("prompt");
    std::vector<int32_t> golden = entry.at("continuation");
    golden.resize(kNumTokens);
    HfModel source(testing::source_folder() + "/configs/demo");
    const std::vector<int32_t> cpu = OneRankModel(source).greedy(prompt, kNumTokens);
    EXPECT_EQ(cpu, golden);
    CudaModel cuda(source);
    EXPECT_EQ(cuda.model.greedy(prompt, kNumTokens), cpu);
    EXPECT_GT(cuda.model.step_counts().repeated, 0);  // as CUDA graphs
}

std::string logits_as_bytes(const std::vector<std::vector<float>>& logits) {
    std::string bytes;
    for (const std::vector<float>& row : logits)
        bytes.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(float));
    return bytes;
}

// A second process, on the emulated GPU with threads, blocks and streams in another order.
TEST(CudaRuns, HaveTheSameBits) {
    constexpr const char* kFile = "FERRY_TEST_LOGITS_FILE";
    std::string bytes;
    for (const char* family : {"v3", "v3-fp8"}) {
        const GoldenStart start(family);
        HfModel source(start.folder);
        CudaModel cuda(source);
        bytes += logits_as_bytes(cuda.model.logits(start.tokens, start.prompt_length));
        EXPECT_EQ(bytes.size() % sizeof(float), 0u);
    }
    if (const char* path = std::getenv(kFile)) return testing::write_file(path, bytes);
    const testing::TempDir dir;
    const std::string file = dir / "logits";
    const auto second =
        testing::run_process({"/proc/self/exe", "--gtest_filter=CudaRuns.HaveTheSameBits"},
                             {.environment = {std::string(kFile) + "=" + file,
                                              "CUDA_EMULATION_SEED=7", "CUDA_EMULATION_LATE=1"}});
    ASSERT_EQ(second.exit_code, 0) << second.out << second.err;
    EXPECT_EQ(testing::read_file(file), bytes);
}

}  // namespace
}  // namespace ferry
