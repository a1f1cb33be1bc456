// Ranks that exchange rows over NCCL repeat decode steps together, on every layout, with
// tensor-parallel groups and without: the bits of steps that are launched kernel by kernel, and the
// CPU's tokens. NCCL and the GPUs are emulated
// (tests/support/nccl_emulation ends the process when ranks do not record and launch alike).
#include <gtest/gtest.h>

#include <numeric>

#include "tests/runtime/small_engine.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

constexpr EngineOptions kOptions{
    .scheduler = {.max_batch = 8, .max_batch_tokens = 32}, .num_pages = 8, .max_context = 128};

std::string describe(const LayoutOptions& layout) {
    return fmt::format("{}, tensor-parallel groups of {}",
                       layout.mode == LayoutMode::colocated
                           ? "colocated"
                           : fmt::format("{} attention and {} expert ranks", layout.attention_ranks,
                                         layout.expert_ranks),
                       layout.tp_size);
}

int num_attention(const LayoutOptions& layout, int num_ranks) {
    return layout.mode == LayoutMode::colocated ? num_ranks : layout.attention_ranks;
}

// Colocated on two ranks only: more of them say nothing new. With all attention ranks in one
// tensor-parallel group after the same without.
std::vector<LayoutOptions> layouts(int num_ranks) {
    std::vector<LayoutOptions> roles, all;
    if (num_ranks == 2) roles.push_back({.mode = LayoutMode::colocated});
    for (int attention = 1; attention < num_ranks; ++attention)
        roles.push_back({.mode = LayoutMode::disaggregated,
                         .attention_ranks = attention,
                         .expert_ranks = num_ranks - attention});
    for (LayoutOptions layout : roles)
        for (const int tp_size : {1, num_attention(layout, num_ranks)}) {
            if (layout.tp_size == tp_size) continue;
            layout.tp_size = tp_size;
            all.push_back(layout);
        }
    return all;
}

// This rank of a small model, over NCCL.
class Rank {
  public:
    Rank(const char* family, const LayoutOptions& layout, bool cuda_graphs, int64_t max_drafts = 0)
        : source_(testing::golden_folder("models/") + family),
          device_(cuda_device(test_world().rank())),
          kernels_(make_cuda_kernels(test_world().rank())),
          transport_(make_transport("mpi", test_world(), nullptr)),
          layout_(make_layout(layout, test_world().node_of_rank())),
          blocks_(make_nccl_blocks(test_world(), device_, group())),
          rank_(source_, *kernels_, {}, fabric(), *transport_) {
        EngineOptions options = kOptions;
        options.cuda_graphs = cuda_graphs;
        options.scheduler.max_drafts = max_drafts;
        if (rank_.fabric().attention_rank() >= 0)
            engine_.emplace(*kernels_, rank_.model(), rank_.fabric(), rank_.experts(), options,
                            std::vector<int32_t>{}, std::nullopt);
    }
    ~Rank() { test_world().barrier(); }

    Engine* engine() { return engine_ ? &*engine_ : nullptr; }
    RankModel& model() { return rank_; }
    void close() {
        if (!engine_) return;
        engine_->settle();
        Exchange& exchange = rank_.fabric().exchange();
        exchange.attention()->close();
        if (ExpertSide* experts = exchange.experts())
            while (!experts->closed()) experts->receive();
    }
    StepGraphs::Counts step_counts() {
        return engine_ ? engine_->step_counts() : rank_.experts()->step_counts();
    }

  private:
    std::vector<int> group() const {
        const int attention = layout_.attention_rank(test_world().rank());
        return attention >= 0 ? layout_.tp_members(attention) : std::vector<int>{};
    }
    FabricOptions fabric() {
        FabricOptions options = single_rank_fabric(
            source_.config(), kOptions.scheduler.max_batch_tokens, kMicroBatches);
        options.layout = layout_;
        options.placements = {contiguous_placement(
            static_cast<int>(source_.config().n_routed_experts), options.layout.num_expert())};
        options.exchange.stall_timeout_s = 600;  // an emulated GPU under a sanitizer is slow
        options.blocks = blocks_.get();
        return options;
    }

    HfModel source_;
    CudaDevice& device_;
    std::unique_ptr<Kernels> kernels_;
    std::unique_ptr<Transport> transport_;
    Layout layout_;
    std::unique_ptr<BlockTransport> blocks_;
    RankModel rank_;
    std::optional<Engine> engine_;
};

// Of an attention rank: more and longer ones on later ranks.
std::vector<Request> requests_of(int attention_rank) {
    std::vector<Request> requests;
    for (int64_t i = 0; i < 2 + attention_rank; ++i)
        requests.push_back(request(10 * attention_rank + i, {.temperature = i % 2 == 0 ? 0.0 : 0.8,
                                                             .seed = 5,
                                                             .max_tokens = 8 + i,
                                                             .ignore_eos = true,
                                                             .logprobs = 2}));
    return requests;
}

std::vector<Completion> sorted(std::vector<Completion> completions) {
    std::ranges::sort(completions, {}, &Completion::index);
    return completions;
}

struct Outcome {
    std::vector<Completion> completions;
    StepGraphs::Counts steps;
    int64_t num_accepted_drafts = 0;
};

// With drafts, if given what came of the requests before.
Outcome run(const char* family, const LayoutOptions& layout, bool cuda_graphs,
            const std::vector<Completion>* before = nullptr) {
    Rank rank(family, layout, cuda_graphs, before != nullptr ? 2 : 0);
    Outcome outcome;
    if (Engine* engine = rank.engine()) {
        if (before != nullptr) engine->set_drafter(drafts_of(*before));
        EXPECT_EQ(engine->why_no_step_is_repeated(), "");
        const RankFabric& fabric = rank.model().fabric();
        const std::vector<Request> requests = requests_of(fabric.attention_rank());
        const auto submit = [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end; ++i) engine->submit(requests[i]);
        };
        // On the first rank they come while others run, whose steps it takes with no rows.
        const bool first = fabric.attention_rank() == 0;
        const size_t alone = fabric.layout().num_attention() == 1 ? 1 : 0;
        const size_t num_early = first ? alone : requests.size();
        submit(0, num_early);
        bool come = false;
        for (int step = 0; engine->step(!come) || !come; ++step) {
            if (step == 6) submit(num_early, requests.size());
            come = come || step == 6;
        }
        EXPECT_EQ(engine->num_unfinished(), 0);
        outcome.completions = sorted(engine->take_finished());
        outcome.num_accepted_drafts = engine->num_accepted_drafts();
    } else {
        rank.model().experts()->run();
    }
    rank.close();
    outcome.steps = rank.step_counts();
    return outcome;
}

void expect_same_bits(const std::vector<Completion>& got, const std::vector<Completion>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ(got[i].tokens, expected[i].tokens) << i;
        EXPECT_EQ(got[i].logprobs, expected[i].logprobs) << i;
    }
}

class NcclGraphs : public ::testing::TestWithParam<const char*> {};

TEST_P(NcclGraphs, RepeatedStepsHaveTheBitsOfLaunchedOnes) {
    World& world = test_world();
    Outcome one_by_one;  // without a tensor-parallel group
    for (const LayoutOptions& layout : layouts(world.size())) {
        SCOPED_TRACE(describe(layout));
        const Outcome launched = run(GetParam(), layout, false);
        if (layout.tp_size == 1) one_by_one = launched;
        expect_same_bits(launched.completions, one_by_one.completions);
        const bool drafts = layout.tp_size > 1;
        const Outcome repeated =
            run(GetParam(), layout, true, drafts ? &one_by_one.completions : nullptr);
        EXPECT_EQ(world.all_sum(repeated.num_accepted_drafts) > 5, drafts);
        // All ranks alike.
        EXPECT_EQ(launched.steps.recorded, 0);
        for (const int64_t count :
             {repeated.steps.launched, repeated.steps.recorded, repeated.steps.repeated})
            EXPECT_EQ(world.all_max(count), count);
        EXPECT_GE(repeated.steps.recorded, 1);
        EXPECT_GE(repeated.steps.repeated, drafts ? 1 : 3);
        expect_same_bits(repeated.completions, launched.completions);
        if (launched.completions.empty() || layout.tp_size > 1) continue;
        SmallEngine cpu(make_cpu_kernels(1), {.family = GetParam()});
        const std::vector<Completion> expected = cpu.run(requests_of(world.rank()));
        ASSERT_EQ(expected.size(), launched.completions.size());
        for (size_t i = 0; i < expected.size(); ++i)
            EXPECT_EQ(repeated.completions[i].tokens, expected[i].tokens) << i;
    }
}

// What others count on is taken, though nothing is left to compute.
TEST(NcclGraphs, RequestsThatAreDroppedLeaveNobodyWaiting) {
    for (const LayoutOptions& layout : layouts(test_world().size())) {
        if (layout.tp_size < num_attention(layout, test_world().size())) continue;
        SCOPED_TRACE(describe(layout));
        Rank rank("v3", layout, true);
        if (Engine* engine = rank.engine()) {
            const bool alone = rank.model().fabric().layout().num_attention() == 1;
            for (Request& each : requests_of(rank.model().fabric().attention_rank()))
                engine->submit(std::move(each));
            for (int step = 0; step < 5; ++step) engine->step();
            engine->cancel_all();
            while (!alone && engine->step()) {
            }
        } else {
            rank.model().experts()->run();
        }
        rank.close();
        EXPECT_GE(rank.step_counts().launched + rank.step_counts().recorded, 1);
    }
}

INSTANTIATE_TEST_SUITE_P(Families, NcclGraphs, ::testing::Values("v3"));

}  // namespace
}  // namespace ferry
