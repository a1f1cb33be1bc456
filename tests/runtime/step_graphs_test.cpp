// Decode steps that the emulated GPU repeats give the bits of those that are launched kernel by
// kernel, whatever comes in between, and are really repeated.
#include <gtest/gtest.h>

#include "layers/cuda/mla_launch.h"
#include "runtime/filled_step.h"
#include "tests/runtime/small_engine.h"
#include "tests/support/cuda_emulation/counts.h"

namespace ferry {
namespace {

TEST(FilledStep, SizesAreFewAndNotMuchLarger) {
    EXPECT_EQ(filled_rows(1), 1);
    EXPECT_EQ(filled_rows(3), 4);
    EXPECT_EQ(filled_rows(8), 8);
    EXPECT_EQ(filled_rows(9), 16);
    EXPECT_EQ(filled_rows(17), 24);
    EXPECT_EQ(filled_rows(129), 144);
    int64_t num_sizes = 0, last = 0;
    for (int64_t rows = 1; rows <= 512; ++rows) {
        const int64_t filled = filled_rows(rows);
        EXPECT_GE(filled, rows);
        EXPECT_LE(filled - rows, rows > 64 ? filled / 8 : 7) << rows;
        num_sizes += filled != last;
        last = filled;
    }
    EXPECT_EQ(num_sizes, 35);
}

TEST(FilledStep, RowsBehindTheBatchsBelongToNobody) {
    const std::vector<int32_t> tokens{7, 8, 9}, positions{70, 0, 5}, logit_rows{0, 1, 2};
    const std::vector<int64_t> slots{134, 64, 5};
    const std::vector<int32_t> pages{0, 2};
    std::vector<SequenceRows> generated;
    for (int64_t i = 0; i < 3; ++i)
        generated.push_back({.first_row = i,
                             .num_rows = 1,
                             .first_position = positions[static_cast<size_t>(i)],
                             .pages = pages});
    const StepBatch batch{.tokens = tokens,
                          .positions = positions,
                          .slots = slots,
                          .prompt = {},
                          .generated = generated,
                          .logit_rows = logit_rows};
    ASSERT_TRUE(is_decode_step(batch));
    FilledStep filled(6);
    filled.fill(batch, {.num_rows = 6, .num_keys = 1024});
    const StepBatch& step = filled.fill(batch, {.num_rows = 4, .num_keys = 2048});
    ASSERT_EQ(step.num_tokens(), 4);
    EXPECT_EQ(step.most_keys, 2048);
    EXPECT_TRUE(is_decode_step(step));
    EXPECT_TRUE(std::ranges::equal(step.tokens.first(3), tokens));
    EXPECT_TRUE(std::ranges::equal(step.positions.first(3), positions));
    EXPECT_TRUE(std::ranges::equal(step.slots.first(3), slots));
    EXPECT_EQ(step.generated[0].pages.data(), pages.data());
    EXPECT_EQ(step.slots[3], kNoSlot);
    EXPECT_EQ(step.generated[3].first_position + step.generated[3].num_rows, 0);
    EXPECT_EQ(step.logit_rows[3], 3);

    // A draft is a row of its own.
    generated.pop_back();
    generated[1].num_rows = 2;
    StepBatch other = batch;
    other.generated = generated;
    ASSERT_TRUE(is_decode_step(other));
    const StepBatch& split = filled.fill(other, {.num_rows = 4, .num_keys = 1024});
    ASSERT_EQ(split.generated.size(), 4u);
    EXPECT_EQ(split.generated[2].first_row, 2);
    EXPECT_EQ(split.generated[2].num_rows, 1);
    EXPECT_EQ(split.generated[2].first_position, 1);
    EXPECT_EQ(split.generated[2].pages.data(), pages.data());

    other = batch;
    other.prompt = std::span(generated).first(1);
    EXPECT_FALSE(is_decode_step(other));
    other = batch;
    other.logit_rows = std::span(logit_rows).first(2);
    EXPECT_FALSE(is_decode_step(other));
    EXPECT_FALSE(is_decode_step({}));
}

TEST(FilledStep, FormsAreFew) {
    EXPECT_EQ(form_of(3, 64, 5), (StepForm{4, 1024}));
    EXPECT_EQ(form_of(17, 20, 1025), (StepForm{20, 2048}));
    EXPECT_EQ(num_forms(8, 1024), 4);
    EXPECT_EQ(num_forms(32, 4096), 7 * 3);
}

// As the exchange makes one of what several ranks say.
Agreement joined(const std::vector<Agreement>& said) {
    Agreement agreed;
    for (const Agreement& one : said)
        agreed = {.any = agreed.any | one.any, .max = std::max(agreed.max, one.max)};
    return agreed;
}

TEST(FilledStep, RanksAgreeOnAFormThatHasRoomForAll) {
    const Agreement few = say_form({4, 8192}), many = say_form({24, 1024});
    EXPECT_EQ(agreed_form(few), (StepForm{4, 8192}));
    EXPECT_EQ(agreed_form(joined({few, many, {}})), (StepForm{24, 8192}));
    EXPECT_EQ(agreed_form(joined({few, {.any = 3, .max = 0}})), (StepForm{4, 8192}));
    EXPECT_EQ(agreed_form(joined({few, {.any = 0, .max = kAnyForm}})), StepForm{});
    EXPECT_EQ(agreed_form({.any = 1, .max = 0}), StepForm{});
    EXPECT_EQ(agreed_form(say_form({1, int64_t{1} << 30})), (StepForm{1, int64_t{1} << 30}));
}

struct Outcome {
    std::vector<Completion> completions;
    std::vector<std::vector<int64_t>> expert_load;  // by MoE layer
    StepGraphs::Counts steps;
    int64_t num_preemptions = 0, num_accepted_drafts = 0;
};

Request long_request(int64_t index, int64_t prompt, int64_t max_tokens) {
    Request made = request(index, {.temperature = index % 2 == 0 ? 0.0 : 0.8,
                                   .seed = 5,
                                   .max_tokens = max_tokens,
                                   .ignore_eos = true,
                                   .logprobs = 2});
    while (static_cast<int64_t>(made.prompt_tokens.size()) < prompt)
        made.prompt_tokens.push_back(static_cast<int32_t>(made.prompt_tokens.size() * 11 % 256));
    return made;
}

// Requests that end one by one, over the boundary of a page, when there is none left for all of
// them; and one that comes while they are running.
// With drafts, if given what came of them before.
Outcome run(const char* family, bool cuda_graphs, const std::vector<Completion>* before = nullptr) {
    SmallEngine engine(make_cuda_kernels(0), {.family = family,
                                              .num_pages = 3,
                                              .max_drafts = before != nullptr ? 2 : 0,
                                              .cuda_graphs = cuda_graphs});
    if (before != nullptr) engine->set_drafter(drafts_of(*before));
    for (int64_t i = 0; i < 2; ++i) engine->submit(long_request(i, 56 + i, 12));
    for (int step = 0; step < 3; ++step) engine->step();
    engine->submit(long_request(2, 4, 7));
    Outcome outcome{.completions = engine.run({}),
                    .expert_load = {},
                    .steps = engine->step_counts(),
                    .num_preemptions = engine->num_preemptions(),
                    .num_accepted_drafts = engine->num_accepted_drafts()};
    for (int64_t layer = 0; layer < engine.num_moe_layers(); ++layer) {
        const auto load =
            engine.exchange().expert_load(static_cast<int>(engine.first_moe_layer() + layer));
        outcome.expert_load.emplace_back(load.begin(), load.end());
    }
    return outcome;
}

// With dense attention, and where longer sequences choose their keys.
class FamilyGraphs : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, FamilyGraphs, ::testing::Values("v3", "glm52"));

TEST_P(FamilyGraphs, RepeatedStepsHaveTheBitsOfLaunchedOnes) {
    const Outcome launched = run(GetParam(), false), repeated = run(GetParam(), true);
    ASSERT_EQ(repeated.completions.size(), 3u);
    ASSERT_EQ(launched.completions.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
        SCOPED_TRACE(i);
        EXPECT_EQ(repeated.completions[i].tokens, launched.completions[i].tokens);
        EXPECT_EQ(repeated.completions[i].logprobs, launched.completions[i].logprobs);
        EXPECT_EQ(repeated.completions[i].finish_reason, launched.completions[i].finish_reason);
    }
    // Rows that fill a step up go to no expert.
    EXPECT_EQ(repeated.expert_load, launched.expert_load);
    EXPECT_EQ(launched.steps.repeated, 0);
    EXPECT_GT(repeated.num_preemptions, 0);
    // Sizes 1, 2 and 4.
    EXPECT_GE(repeated.steps.repeated, 4);
    EXPECT_GE(repeated.steps.recorded, 2);
    EXPECT_LE(repeated.steps.recorded, 4);
}

TEST_P(FamilyGraphs, RowsOfDraftsAreRepeatedLikeOthers) {
    const Outcome plain = run(GetParam(), false);
    const Outcome drafted = run(GetParam(), true, &plain.completions);
    ASSERT_EQ(drafted.completions.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
        SCOPED_TRACE(i);
        EXPECT_EQ(drafted.completions[i].tokens, plain.completions[i].tokens);
        EXPECT_EQ(drafted.completions[i].logprobs, plain.completions[i].logprobs);
    }
    EXPECT_GE(drafted.num_accepted_drafts, 8);
    EXPECT_GE(drafted.steps.repeated, 1);
}

// The model's own module drafts between steps that are repeated, what it does on the CPU.
TEST(StepGraphs, AModuleDraftsBetweenThem) {
    using Drafts = std::vector<std::vector<int32_t>>;
    const auto run = [](std::unique_ptr<Kernels> kernels, Drafts& drafts) {
        SmallEngine engine(std::move(kernels), {.max_drafts = 2, .mtp = true});
        engine->set_draft_hook([&](const Request& request, std::span<const int32_t> tokens,
                                   std::span<const int32_t> guesses) {
            drafts.push_back(
                {static_cast<int32_t>(request.index), static_cast<int32_t>(tokens.size())});
            drafts.back().insert(drafts.back().end(), guesses.begin(), guesses.end());
        });
        for (int64_t i = 0; i < 2; ++i) engine->submit(long_request(i, 60 + i, 9));
        std::vector<Completion> completions = engine.run({});
        return std::pair(std::move(completions), engine->step_counts());
    };
    Drafts expected_drafts, drafts;
    const auto [expected, none] = run(make_cpu_kernels(1), expected_drafts);
    const auto [got, steps] = run(make_cuda_kernels(0), drafts);
    EXPECT_EQ(drafts, expected_drafts);
    EXPECT_GT(drafts.size(), 8u);
    ASSERT_EQ(got.size(), 2u);
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(got[i].tokens, expected[i].tokens);
    EXPECT_GE(steps.repeated, 1);
}

// Those that were last in use are kept; the others begin again.
TEST(StepGraphs, AsManyFormsAreKeptAsWasSaid) {
    const auto kernels = make_cuda_kernels(0);
    ModelConfig model;
    model.n_heads = 2;
    model.kv_lora_rank = 16;
    const auto graphs = kernels->make_step_graphs(model);
    OwnedTensor sum(kernels->device(), DType::f32, {1, 1}),
        one(kernels->device(), DType::f32, {1, 1});
    const float value = 1;
    kernels->device().copy_from_host(one.view().data(), &value, sizeof value);
    int num_steps = 0;
    const auto step = [&](int64_t rows) {
        graphs->begin({rows, 1024});
        graphs->run([&] { kernels->add(one, sum); });
        ++num_steps;
    };
    constexpr auto kMost = static_cast<int64_t>(kMostStepGraphs);
    for (int time = 0; time < 3; ++time)
        for (int64_t rows = 1; rows <= kMost; ++rows) step(rows);
    EXPECT_EQ(graphs->counts().launched, kMost);
    EXPECT_EQ(graphs->counts().recorded, kMost);
    EXPECT_EQ(graphs->counts().repeated, kMost);
    step(kMost + 1);  // instead of 1
    step(2);
    EXPECT_EQ(graphs->counts().repeated, kMost + 1);
    step(1);  // instead of 3
    step(3);
    EXPECT_EQ(graphs->counts().launched, kMost + 3);
    float total = 0;
    kernels->device().copy_to_host(&total, sum.view().data(), sizeof total);
    EXPECT_EQ(total, num_steps);
    EXPECT_TRUE(graphs->takes(std::vector<int64_t>(1000, 1024)));
    EXPECT_FALSE(graphs->takes(std::vector<int64_t>(1 << 20, 1025)));
}

TEST(StepGraphs, ARepeatedStepIsOneLaunchOfTheHost) {
    SmallEngine engine(make_cuda_kernels(0));
    for (int64_t i = 0; i < 3; ++i)
        engine->submit(request(i, {.max_tokens = 12, .ignore_eos = true}));
    for (int step = 0; step < 5; ++step) engine->step();
    const StepGraphs::Counts before = engine->step_counts();
    const cuda_emulation::Counts launches_before = cuda_emulation::counts();
    constexpr int64_t kSteps = 4;
    for (int step = 0; step < kSteps; ++step) engine->step();
    const cuda_emulation::Counts launches = cuda_emulation::counts();
    EXPECT_EQ(engine->step_counts().repeated - before.repeated, kSteps);
    EXPECT_EQ(engine->step_counts().recorded, before.recorded);
    EXPECT_EQ(launches.graph_launches - launches_before.graph_launches, kSteps);
    // Beside them, what chooses tokens.
    EXPECT_LE(launches.kernel_launches - launches_before.kernel_launches, 3 * kSteps);
}

// Steps of sequences at given positions, over a cache of zeros.
class Decoding {
  public:
    explicit Decoding(bool cuda_graphs)
        : model_(make_cuda_kernels(0), "v3", kMaxRows),
          worker_(model_.kernels(), model_.rank().model(), model_.rank().fabric(),
                  model_.rank().experts(),
                  {.max_tokens = kMaxRows,
                   .max_sequences = kMaxRows,
                   .max_context = kContext,
                   .max_logit_rows = kMaxRows,
                   .num_pages = kPagesEach * 3,
                   .cuda_graphs = cuda_graphs}) {}

    std::vector<float> step(const std::vector<int64_t>& at) {
        std::vector<int32_t> tokens, positions, logit_rows;
        std::vector<int64_t> slots;
        std::vector<std::vector<int32_t>> pages(at.size());
        std::vector<SequenceRows> generated;
        for (size_t i = 0; i < at.size(); ++i) {
            for (int64_t page = 0; page <= at[i] / kPageTokens; ++page)
                pages[i].push_back(
                    static_cast<int32_t>(static_cast<int64_t>(i) * kPagesEach + page));
            tokens.push_back(static_cast<int32_t>(20 + i));
            positions.push_back(static_cast<int32_t>(at[i]));
            logit_rows.push_back(static_cast<int32_t>(i));
            slots.push_back(pages[i].back() * kPageTokens + at[i] % kPageTokens);
            generated.push_back({.first_row = static_cast<int64_t>(i),
                                 .num_rows = 1,
                                 .first_position = at[i],
                                 .pages = pages[i]});
        }
        const Tensor logits = worker_
                                  .step({.tokens = tokens,
                                         .positions = positions,
                                         .slots = slots,
                                         .prompt = {},
                                         .generated = generated,
                                         .logit_rows = logit_rows})
                                  .logits;
        std::vector<float> values(static_cast<size_t>(logits.count()));
        model_.kernels().device().copy_to_host(values.data(), logits.data(),
                                               values.size() * sizeof(float));
        return values;
    }
    StepGraphs::Counts counts() const { return worker_.step_counts(); }

  private:
    static constexpr int64_t kMaxRows = 8, kContext = 1100, kPagesEach = 18;

    SmallModel model_;
    AttentionWorker worker_;
};

// From a whole row of keys to two splits, and over the boundary of a page.
TEST(StepGraphs, ContextsGrowOverTheBoundaryOfASplit) {
    Decoding launched(false), repeated(true);
    constexpr int64_t kSteps = 7;
    for (int64_t i = 0; i < kSteps; ++i) {
        const std::vector<int64_t> at{kCudaDecodeSplitTokens - 3 + i, 3 + i, 62 + i};
        EXPECT_EQ(repeated.step(at), launched.step(at)) << i;
    }
    EXPECT_EQ(launched.counts().repeated, 0);
    const StepGraphs::Counts counts = repeated.counts();
    EXPECT_EQ(counts.launched + counts.recorded + counts.repeated, kSteps);
    EXPECT_EQ(counts.recorded, 2);
    EXPECT_EQ(counts.repeated, 3);
}

}  // namespace
}  // namespace ferry
