// Layers and workers on a device whose memory the host cannot touch
// (tests/support/guarded_device.h) give the bits of the CPU, on every layout: rows, sums and logits
// go through the host and back.
#include <gtest/gtest.h>

#include "runtime/hf_model.h"
#include "tests/support/golden_models.h"
#include "tests/support/guarded_device.h"
#include "tests/support/mpi_main.h"
#include "tests/support/one_rank_model.h"

namespace ferry {
namespace {

const std::vector<int32_t> kPrompt{3, 14, 15, 92, 65, 35, 89, 79, 32, 38};
constexpr int64_t kNumTokens = 6;
constexpr WorkerLimits kLimits{
    .max_tokens = 32, .max_context = 128, .max_logit_rows = 4, .num_pages = 4};

std::string folder(const char* family) {
    return testing::golden_folder("models/") + family;
}

class DeviceMemory : public ::testing::TestWithParam<const char*> {};

TEST_P(DeviceMemory, IsTouchedByKernelsAndCopiesOnly) {
    if (test_world().size() > 1) GTEST_SKIP();
    HfModel source(folder(GetParam()));
    OneRankModel cpu(source), guarded(source, make_guarded_kernels(2), {}, 2);
    const auto tokens = cpu.greedy(kPrompt, kNumTokens);
    EXPECT_EQ(guarded.greedy(kPrompt, kNumTokens, 7), tokens);
    for (const MlaForm form : {MlaForm::naive, MlaForm::absorb}) {
        cpu.set_form(form);
        guarded.set_form(form);
        EXPECT_EQ(guarded.logits(kPrompt, 6), cpu.logits(kPrompt, 6));
    }
}

// Every attention rank continues the prompt, without its last `rank` tokens.
TEST_P(DeviceMemory, GivesTheSameTokensOnEveryLayout) {
    World& world = test_world();
    HfModel source(folder(GetParam()));
    std::vector<LayoutOptions> layouts;
    for (int tp = 1; tp <= world.size(); ++tp)
        if (world.size() % tp == 0 && Numerics{}.tp_slices % tp == 0)
            layouts.push_back({.mode = LayoutMode::colocated, .tp_size = tp});
    for (int attention = 1; attention < world.size(); ++attention)
        layouts.push_back({.mode = LayoutMode::disaggregated,
                           .attention_ranks = attention,
                           .expert_ranks = world.size() - attention,
                           .tp_size = attention % 2 == 0 ? 2 : 1});
    for (const LayoutOptions& request : layouts) {
        FabricOptions options = single_rank_fabric(source.config(), kLimits.max_tokens);
        options.layout = make_layout(request, world.node_of_rank());
        options.placements = {contiguous_placement(
            static_cast<int>(source.config().n_routed_experts), options.layout.num_expert())};
        const std::unique_ptr<Transport> transport =
            world.size() == 1 ? make_self_transport() : make_transport("mpi", world, nullptr);
        const std::unique_ptr<Kernels> kernels = make_guarded_kernels(1);
        RankModel rank(source, *kernels, {}, options, *transport);
        if (rank.fabric().attention_rank() < 0) {
            rank.experts()->run();
            continue;
        }
        AttentionWorker worker(*kernels, rank.model(), rank.fabric(), rank.experts(), kLimits);
        std::vector<int32_t> prompt = kPrompt;
        prompt.resize(prompt.size() - static_cast<size_t>(rank.fabric().attention_rank()));
        const auto tokens =
            greedy_tokens(worker, kernels->device(), prompt, kNumTokens, kLimits.num_pages);
        rank.fabric().exchange().attention()->close();
        EXPECT_EQ(tokens, OneRankModel(source).greedy(prompt, kNumTokens));
    }
}

INSTANTIATE_TEST_SUITE_P(Families, DeviceMemory, ::testing::Values("v2-lite", "v3-fp8"),
                         [](const auto& family) {
                             std::string name = family.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

}  // namespace
}  // namespace ferry
