// Whole models against what Hugging Face Transformers computes (tests/golden/README.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "layers/cpu/cpu_kernels.h"
#include "runtime/hf_model.h"
#include "tests/support/golden_models.h"
#include "tests/support/int4_models.h"
#include "tests/support/mtp_model.h"
#include "tests/support/one_rank_model.h"

namespace ferry {
namespace {

using testing::golden_folder;
using testing::GoldenRows;
using testing::largest_difference;

struct GoldenPrompt {
    std::vector<int32_t> prompt, continuation;
    std::vector<int64_t> positions;
    int64_t first_row;
    double max_abs_logit;

    std::vector<int32_t> tokens() const {
        std::vector<int32_t> all = prompt;
        all.insert(all.end(), continuation.begin(), continuation.end());
        return all;
    }
};

struct Golden {
    nlohmann::json json;
    GoldenRows rows;
    std::vector<GoldenPrompt> prompts;
};

std::string model_folder(const std::string& family) {
    return golden_folder("models/" + family);
}

Golden read_golden(const std::string& folder) {
    const nlohmann::json json = testing::read_golden_json(folder);
    Golden golden{json, GoldenRows(folder + "/golden_logits.bin", json.at("vocab_size")), {}};
    for (const auto& entry : json.at("prompts"))
        golden.prompts.push_back({entry.at("prompt"), entry.at("continuation"),
                                  entry.at("logits_positions"), entry.at("logits_row"),
                                  entry.at("max_abs_logit")});
    return golden;
}

// Largest difference over all golden positions of a prompt, relative to its largest logit.
double relative_error(OneRankModel& model, const Golden& golden, const GoldenPrompt& prompt,
                      int64_t chunk) {
    const auto logits =
        model.logits(prompt.tokens(), static_cast<int64_t>(prompt.prompt.size()), chunk);
    double largest = 0;
    for (size_t j = 0; j < prompt.positions.size(); ++j)
        largest = std::max(
            largest,
            largest_difference(logits[static_cast<size_t>(prompt.positions[j])],
                               golden.rows.row(prompt.first_row + static_cast<int64_t>(j))));
    return largest / prompt.max_abs_logit;
}

// A model with another rms_norm_eps.
class OtherEps final : public WeightSource {
  public:
    OtherEps(WeightSource& source, double norm_eps) : source_(source), config_(source.config()) {
        config_.norm_eps = norm_eps;
    }
    const ModelConfig& config() const override { return config_; }
    std::optional<TensorInfo> find(const std::string& name) const override {
        return source_.find(name);
    }
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override {
        source_.read(name, ranges, dst);
    }

  private:
    WeightSource& source_;
    ModelConfig config_;
};

// Notes with which eps norms of which width are computed.
class NotedEps final : public CpuKernels {
  public:
    explicit NotedEps(std::map<int64_t, std::set<float>>& eps_of)
        : CpuKernels(1), eps_of_(eps_of) {}
    void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) override {
        eps_of_[x.dim(1)].insert(eps);
        CpuKernels::rms_norm(x, weight, eps, y);
    }
    void add_rms_norm(const Tensor& x, const Tensor& h, const Tensor& weight, float eps,
                      const Tensor& y) override {
        eps_of_[x.dim(1)].insert(eps);
        CpuKernels::add_rms_norm(x, h, weight, eps, y);
    }

  private:
    std::map<int64_t, std::set<float>>& eps_of_;
};

// Transformers gives rms_norm_eps to the norms of blocks and to the last one, not to those of
// latents (Moonlight has 1e-5).
TEST(GoldenNorms, OfLatentsHaveAnEpsOfTheirOwn) {
    HfModel published(model_folder("v3"));
    OtherEps source(published, 1e-5);
    std::map<int64_t, std::set<float>> eps_of;
    OneRankModel model(source, std::make_unique<NotedEps>(eps_of));
    model.greedy({1, 2, 3}, 2);
    const ModelConfig& c = source.config();
    const std::map<int64_t, std::set<float>> expected{
        {c.dim, {1e-5f}}, {c.q_lora_rank, {1e-6f}}, {c.kv_lora_rank, {1e-6f}}};
    EXPECT_EQ(eps_of, expected);
}

// The multi-token-prediction module, and rounds of drafts that go on from its own.
class GoldenMtp : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenMtp, LogitsAndDraftsAgree) {
    const std::string folder = model_folder(GetParam());
    MtpModel source(folder, true);
    const Golden golden = read_golden(folder);
    const auto& mtp = golden.json.at("mtp");
    const GoldenRows expected(folder + "/" + mtp.at("file").get<std::string>(),
                              golden.json.at("vocab_size"));
    const std::vector<int64_t> positions = mtp.at("positions");
    const std::vector<int32_t> golden_drafts = mtp.at("drafts");
    const GoldenPrompt& prompt = golden.prompts.at(mtp.at("prompt_index").get<size_t>());
    const auto num_more = std::ssize(golden_drafts) - 1;
    for (const int micro_batches : {1, 2})
        for (const int64_t chunk : {3, 512}) {
            SCOPED_TRACE(fmt::format("chunks of {}, {} micro-batches", chunk, micro_batches));
            OneRankModel model(source, {}, 1, micro_batches);
            std::vector<int32_t> drafts;
            const auto logits =
                model.mtp_logits(prompt.tokens(), static_cast<int64_t>(prompt.prompt.size()), chunk,
                                 num_more, drafts);
            EXPECT_EQ(drafts, golden_drafts);
            ASSERT_EQ(std::ssize(logits), positions.back() + 1);
            double largest = 0;
            for (size_t i = 0; i < positions.size(); ++i)
                largest =
                    std::max(largest, largest_difference(logits[static_cast<size_t>(positions[i])],
                                                         expected.row(static_cast<int64_t>(i))));
            EXPECT_LT(largest / mtp.at("max_abs_logit").get<double>(), 2e-4);
        }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenMtp, ::testing::Values("v3", "v32"));

class GoldenLogits : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenLogits, AgreeInEveryForm) {
    HfModel source(model_folder(GetParam()));
    OneRankModel model(source);
    const Golden golden = read_golden(model_folder(GetParam()));
    ASSERT_FALSE(golden.prompts.empty());
    for (MlaForm form : {MlaForm::by_row, MlaForm::naive, MlaForm::absorb}) {
        model.set_form(form);
        for (const GoldenPrompt& prompt : golden.prompts)
            EXPECT_LT(relative_error(model, golden, prompt, 512), 2e-4)
                << "form " << static_cast<int>(form) << ", prompt of " << prompt.prompt.size();
    }
}

TEST_P(GoldenLogits, GreedyContinuationsAreIdentical) {
    HfModel source(model_folder(GetParam()));
    OneRankModel model(source);
    for (const GoldenPrompt& prompt : read_golden(model_folder(GetParam())).prompts)
        EXPECT_EQ(model.greedy(prompt.prompt, static_cast<int64_t>(prompt.continuation.size())),
                  prompt.continuation);
}

TEST_P(GoldenLogits, ChunksThreadsAndMicroBatchesGiveTheSameBits) {
    HfModel source(model_folder(GetParam()));
    OneRankModel one(source), three(source, {}, 3, 3);
    const GoldenPrompt prompt = read_golden(model_folder(GetParam())).prompts.back();
    std::vector<int32_t> tokens = prompt.prompt;
    tokens.insert(tokens.end(), prompt.continuation.begin(), prompt.continuation.begin() + 8);
    const int64_t prompt_length = static_cast<int64_t>(prompt.prompt.size());
    const auto expected = one.logits(tokens, prompt_length);
    for (int64_t chunk : {1, 7, 64}) EXPECT_EQ(one.logits(tokens, prompt_length, chunk), expected);
    EXPECT_EQ(three.logits(tokens, prompt_length, 13), expected);
}

// The last layer computes rows whose logits are wanted, and latents alone of the others.
TEST_P(GoldenLogits, OfSomeRowsAreTheBitsOfAllRows) {
    HfModel source(model_folder(GetParam()));
    OneRankModel one(source), three(source, {}, 3, 3);
    const GoldenPrompt prompt = read_golden(model_folder(GetParam())).prompts.back();
    const std::vector<int32_t> tokens = prompt.tokens();
    const int64_t prompt_length = static_cast<int64_t>(prompt.prompt.size());
    auto expected = one.logits(tokens, prompt_length);
    for (size_t i = 0; i < expected.size(); ++i)
        if ((i + 1) % 5 != 0) expected[i].clear();
    EXPECT_EQ(one.logits(tokens, prompt_length, 512, 5), expected);
    EXPECT_EQ(three.logits(tokens, prompt_length, 23, 5), expected);
}

std::vector<std::string> families() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(model_folder("")))
        names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenLogits, ::testing::ValuesIn(families()),
                         [](const auto& family) {
                             std::string name = family.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

// At the golden positions, of the largest logit; in rising order.
std::vector<double> errors_of(const std::vector<std::vector<float>>& logits,
                              const GoldenPrompt& prompt, const Golden& golden) {
    std::vector<double> errors;
    for (size_t i = 0; i < prompt.positions.size(); ++i)
        errors.push_back(
            largest_difference(logits[static_cast<size_t>(prompt.positions[i])],
                               golden.rows.row(prompt.first_row + static_cast<int64_t>(i))) /
            prompt.max_abs_logit);
    std::ranges::sort(errors);
    return errors;
}

// Inputs of bf16 weights rounded to bf16, 2^-9 of each value at most: the middle position is off by
// that, and few are by more, where another expert was chosen.
TEST(GoldenBf16Activations, StayWithinTheRoundingAndKeepTheirBits) {
    HfModel source(model_folder("v3-bf16"));
    OneRankModel one(source, make_cpu_kernels(1, {.bf16_activations = true})),
        three(source, make_cpu_kernels(3, {.bf16_activations = true}), {}, 3, nullptr, true);
    const Golden golden = read_golden(model_folder("v3-bf16"));
    for (MlaForm form : {MlaForm::by_row, MlaForm::naive, MlaForm::absorb}) {
        one.set_form(form);
        three.set_form(form);
        for (const GoldenPrompt& prompt : golden.prompts) {
            const auto length = static_cast<int64_t>(prompt.prompt.size());
            const auto logits = one.logits(prompt.tokens(), length);
            EXPECT_EQ(three.logits(prompt.tokens(), length, 13), logits);
            const std::vector<double> errors = errors_of(logits, prompt, golden);
            EXPECT_LT(errors[errors.size() / 2], 0.02);
            EXPECT_GT(errors[0], 2e-4);  // they are rounded
        }
    }
}

// Inputs of int4 weights rounded to int8, up to 1 / 254 of the largest of 32.
TEST(GoldenInt8Activations, StayWithinTheRoundingAndKeepTheirBits) {
    HfModel source(model_folder("k2-int4"));
    for (const bool to_bf16 : {false, true}) {
        const CpuOptions options{.bf16_activations = to_bf16, .int8_activations = true};
        OneRankModel one(source, make_cpu_kernels(1, options)),
            three(source, make_cpu_kernels(3, options), {}, 3, nullptr, true);
        const Golden golden = read_golden(model_folder("k2-int4"));
        for (const GoldenPrompt& prompt : golden.prompts) {
            const auto length = static_cast<int64_t>(prompt.prompt.size());
            const auto logits = one.logits(prompt.tokens(), length);
            EXPECT_EQ(three.logits(prompt.tokens(), length, 13), logits);
            const std::vector<double> errors = errors_of(logits, prompt, golden);
            EXPECT_LT(errors[errors.size() / 2], 0.05);
            EXPECT_GT(errors[0], 2e-4);  // they are rounded
        }
    }
}

// Linear layers of int4 in all of a model: as the same weights in f32 but for the order of sums.
TEST(Int4Layers, ComputeWhatTheirValuesAre) {
    const auto source = testing::int4_model();
    testing::WidenedInt4 widened(*source);
    std::vector<int32_t> tokens(40);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 90);
    const auto expected = OneRankModel(widened).logits(tokens, 33, 512);
    double largest = 0;
    for (const auto& row : expected)
        for (const float logit : row) largest = std::max(largest, std::abs(double{logit}));
    EXPECT_GT(largest, 0.1);
    OneRankModel exact(*source);
    const auto logits = exact.logits(tokens, 33, 512);
    for (size_t i = 0; i < tokens.size(); ++i)
        EXPECT_LT(testing::largest_difference(logits[i], expected[i]), 2e-5 * largest) << i;
    for (const CpuOptions& options :
         {CpuOptions{}, CpuOptions{.bf16_activations = true},
          CpuOptions{.bf16_activations = true, .int8_activations = true}}) {
        OneRankModel one(*source, make_cpu_kernels(1, options)),
            three(*source, make_cpu_kernels(3, options), {}, 3);
        EXPECT_EQ(three.logits(tokens, 33, 7), one.logits(tokens, 33, 512));
    }
}

// What is read of the latent cache is rounded in any case.
TEST(GoldenBf16Activations, DoNotDependOnTheCache) {
    HfModel source(model_folder("v3-bf16"));
    const auto kernels = [](int threads) {
        return make_cpu_kernels(threads, {.bf16_activations = true});
    };
    OneRankModel exact(source, kernels(1)),
        stored(source, kernels(1), {.cache_dtype = DType::bf16}),
        three(source, kernels(3), {.cache_dtype = DType::bf16}, 3);
    const GoldenPrompt prompt = read_golden(model_folder("v3-bf16")).prompts.back();
    const auto length = static_cast<int64_t>(prompt.prompt.size());
    for (MlaForm form : {MlaForm::by_row, MlaForm::naive, MlaForm::absorb}) {
        for (OneRankModel* model : {&exact, &stored, &three}) model->set_form(form);
        const auto logits = exact.logits(prompt.tokens(), length, 23);
        EXPECT_EQ(stored.logits(prompt.tokens(), length, 23), logits);
        EXPECT_EQ(three.logits(prompt.tokens(), length, 13), logits);
    }
}

// With quantised activations two right implementations agree almost exactly or, once a value falls
// on the other side of a rounding boundary, to the noise of the quantisation only.
class GoldenFp8Activations : public ::testing::Test {
  protected:
    const std::string folder_ = model_folder("v3-fp8");
    Golden golden_ = read_golden(folder_);
    const nlohmann::json fp8_ = golden_.json.at("fp8_activations");
    GoldenRows rows_{folder_ + "/golden_fp8_logits.bin", golden_.json.at("vocab_size")};
    HfModel source_{folder_};
};

TEST_F(GoldenFp8Activations, PromptsClearOfBoundariesAgree) {
    OneRankModel quantised(source_, {.fp8_activations = true}), widened(source_);
    const auto& prompts = fp8_.at("clear_prompts");
    ASSERT_EQ(prompts.size(), 2u);
    for (const auto& entry : prompts) {
        const std::vector<int32_t> prompt = entry.at("prompt");
        const auto error = [&](OneRankModel& model, MlaForm form, const char* first_row) {
            model.set_form(form);
            const auto logits = model.logits(prompt, static_cast<int64_t>(prompt.size()));
            double largest = 0;
            for (size_t t = 0; t < prompt.size(); ++t)
                largest = std::max(
                    largest,
                    largest_difference(logits[t], rows_.row(entry.at(first_row).get<int64_t>() +
                                                            static_cast<int64_t>(t))));
            return largest / entry.at("max_abs_logit").get<double>();
        };
        const double tolerance = entry.at("tolerance");
        EXPECT_EQ(tolerance, 2e-4);
        EXPECT_LT(error(quantised, MlaForm::naive, "logits_row"), tolerance);
        EXPECT_LT(error(quantised, MlaForm::absorb, "absorb_logits_row"), tolerance);
        // The test can tell: other forms and plain activations are far away.
        EXPECT_GT(error(quantised, MlaForm::naive, "absorb_logits_row"), 10 * tolerance);
        EXPECT_GT(error(widened, MlaForm::naive, "logits_row"), 10 * tolerance);
    }
}

TEST_F(GoldenFp8Activations, LongPromptsStayWithinTheNoise) {
    OneRankModel model(source_, {.fp8_activations = true});
    const auto& prompts = fp8_.at("long_prompts");
    ASSERT_EQ(prompts.size(), 2u);
    for (MlaForm form : {MlaForm::by_row, MlaForm::naive, MlaForm::absorb}) {
        model.set_form(form);
        for (const auto& entry : prompts) {
            const GoldenPrompt& prompt = golden_.prompts[entry.at("prompt_index").get<size_t>()];
            const auto logits =
                model.logits(prompt.tokens(), static_cast<int64_t>(prompt.prompt.size()));
            double difference = 0, size = 0;
            int64_t row = entry.at("logits_row");
            for (const int64_t position : prompt.positions) {
                const std::span<const float> expected = rows_.row(row++);
                for (size_t i = 0; i < expected.size(); ++i) {
                    difference +=
                        std::pow(logits[static_cast<size_t>(position)][i] - expected[i], 2);
                    size += std::pow(expected[i], 2);
                }
            }
            const double bound = entry.at("relative_rms_bound");
            EXPECT_LE(bound, 0.305);  // as justified in tests/golden/README.md
            EXPECT_LT(std::sqrt(difference / size), bound) << "form " << static_cast<int>(form);
        }
    }
}

}  // namespace
}  // namespace ferry
