#include "runtime/memory_plan.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "runtime/device_binding.h"
#include "runtime/hf_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_models.h"
#include "tests/support/int4_models.h"

namespace ferry {
namespace {

TEST(MemoryPlan, ListsWhatARankAllocates) {
    HfModel source(testing::golden_folder("models/v2-lite"));
    const WorkerLimits limits{.max_tokens = 16, .max_context = 128, .num_pages = 4};
    const FabricOptions options = single_rank_fabric(source.config(), 16);
    const MemoryPlan plan = plan_memory(source, {}, options, 0, limits);
    int64_t parts = 0;
    for (const MemoryPlan::Part& part : plan.parts) {
        EXPECT_GT(part.size_bytes, 0) << part.name;
        parts += part.size_bytes;
    }
    EXPECT_EQ(plan.total_bytes(), parts);
    // Every value is held once, wkv_b twice, in bf16 here; norms and gates are widened.
    const ModelConfig& c = source.config();
    const int64_t values = c.num_parameters() + c.n_layers * c.n_heads * c.kv_lora_rank *
                                                    (c.qk_nope_head_dim + c.v_head_dim);
    EXPECT_GE(plan.parts[0].size_bytes, 2 * values);
    EXPECT_LT(plan.parts[0].size_bytes, 2 * values + values / 10);
    EXPECT_EQ(plan.parts[1].size_bytes, 4 * LatentCache::page_bytes(c, {}));
    EXPECT_THAT(plan.describe(),
                ::testing::StartsWith("weights 0.00 GiB + latent cache (4 pages)"));
}

// As much as is allowed, but no more than prompts can fill.
TEST(MemoryPlan, HasThePromptsThatStayExpanded) {
    HfModel source(testing::golden_folder("models/v2-lite"));
    const ModelConfig& c = source.config();
    const FabricOptions options = single_rank_fabric(c, 16);
    const int64_t unit = AttentionWorker::expanded_unit_bytes(c, {});
    EXPECT_GE(unit, 4 * (c.n_heads * (c.qk_nope_head_dim + c.v_head_dim) + c.qk_rope_head_dim));
    const auto planned = [&](int64_t bytes, int64_t positions) {
        const WorkerLimits limits{.max_tokens = 16,
                                  .max_context = 128,
                                  .num_pages = 4,
                                  .expanded_bytes = bytes,
                                  .expanded_positions = positions};
        for (const MemoryPlan::Part& part : plan_memory(source, {}, options, 0, limits).parts)
            if (part.name.starts_with("expanded prompts"))
                return std::pair(part.name, part.size_bytes);
        return std::pair(std::string(), int64_t{0});
    };
    EXPECT_EQ(planned(0, 128), std::pair(std::string(), int64_t{0}));
    EXPECT_EQ(planned(50 * unit * c.n_layers + 1, 128),
              std::pair(std::string("expanded prompts (50 positions)"), 50 * unit * c.n_layers));
    EXPECT_EQ(planned(int64_t{1} << 40, 128),
              std::pair(std::string("expanded prompts (128 positions)"), 128 * unit * c.n_layers));
}

TEST(MemoryPlan, SharesOfTwoRolesAddUp) {
    HfModel source(testing::golden_folder("models/v3-bf16"));
    const ModelConfig& c = source.config();
    const WorkerLimits limits{.max_tokens = 16, .max_context = 128, .num_pages = 4};
    const FabricOptions alone = single_rank_fabric(c, 16);
    FabricOptions apart = alone;
    apart.layout =
        make_layout({.attention_ranks = 1, .expert_ranks = 2}, std::vector<int>{0, 0, 0});
    apart.placements = {contiguous_placement(static_cast<int>(c.n_routed_experts), 2)};
    int64_t weights = 0;
    for (int rank = 0; rank < 3; ++rank)
        weights += plan_memory(source, {}, apart, rank, limits).parts[0].size_bytes;
    EXPECT_EQ(weights, plan_memory(source, {}, alone, 0, limits).parts[0].size_bytes);
}

class NamedBlocks final : public BlockTransport {
  public:
    std::string_view name() const override { return "nccl"; }
    int rank() const override { return 0; }
    int num_ranks() const override { return 1; }
    std::string host(int) const override { return {}; }
    CudaDevice& device() override { return cuda_device(0); }
    void exchange(int, int, std::span<const PeerBlock>, std::span<const PeerBlock>) override {}
    void wait(int, int) override {}
    bool done(int, int) override { return true; }
    void settle() override {}
    void check() override {}
};

// 32 channels: 2 MiB to send, 12 to receive, in either communicator; a pool for other nodes.
TEST(MemoryPlan, NcclsBuffersAreOfThePeersOfARank) {
    HfModel source(testing::golden_folder("models/v3-bf16"));
    const ModelConfig& c = source.config();
    NamedBlocks blocks;
    const auto nccl_mib = [&](const std::vector<int>& node_of_rank, int rank) -> int64_t {
        FabricOptions options = single_rank_fabric(c, 16);
        options.layout = make_layout({.attention_ranks = 1, .expert_ranks = 2}, node_of_rank);
        options.placements = {contiguous_placement(static_cast<int>(c.n_routed_experts), 2)};
        options.blocks = &blocks;
        for (const auto& part : plan_memory(source, {}, options, rank, {.max_context = 128}).parts)
            if (part.name == "NCCL (estimated)") return part.size_bytes >> 20;
        return -1;
    };
    EXPECT_EQ(nccl_mib({0, 0, 0}, 0), 2 * 32 * (2 + 12));
    EXPECT_EQ(nccl_mib({0, 0, 0}, 2), 32 * (2 + 12));
    EXPECT_EQ(nccl_mib({0, 0, 1}, 0), 32 * (2 + 12) + 2 * 512);
    EXPECT_EQ(nccl_mib({0, 0, 1}, 2), 2 * 512);
}

// A third communicator, and what the group gathers and sums.
TEST(MemoryPlan, TensorParallelGroupsTakeMemoryOfTheirOwn) {
    HfModel source(testing::golden_folder("models/v3-bf16"));
    const ModelConfig& c = source.config();
    NamedBlocks blocks;
    FabricOptions options = single_rank_fabric(c, 16);
    options.max_logit_rows = 4;
    options.blocks = &blocks;
    const auto part_of = [&](std::string_view name, int tp_size) -> int64_t {
        options.layout = make_layout({.mode = LayoutMode::colocated, .tp_size = tp_size},
                                     std::vector<int>{0, 0, 1, 1});
        options.placements = {contiguous_placement(static_cast<int>(c.n_routed_experts), 4)};
        for (const auto& part : plan_memory(source, {}, options, 0, {.max_context = 128}).parts)
            if (part.name == name) return part.size_bytes;
        return 0;
    };
    constexpr int64_t kMiB = 1 << 20;
    EXPECT_EQ(part_of("NCCL (estimated)", 2) - part_of("NCCL (estimated)", 1), 32 * 14 * kMiB);
    EXPECT_EQ(part_of("NCCL (estimated)", 4) - part_of("NCCL (estimated)", 1),
              32 * 14 * kMiB + 512 * kMiB);
    EXPECT_EQ(part_of("tensor-parallel rows", 1), 0);
    // 8 slices, 4 of them a rank's: all rows and their ids, a rank's sum of all rows, and what the
    // other sends, which are logits here.
    const int64_t rows = 4 * 16 * c.dim;
    EXPECT_EQ(part_of("tensor-parallel rows", 2),
              2 * rows + 4 * 2 * 16 + 2 * rows + std::max(rows, 4 * 4 * c.vocab_size));
}

TEST(MemoryPlan, ExpertsOfInt4StaySoOnGpus) {
    const auto weights = [](Int4Weights int4, BlockTransport* blocks) {
        const ModelConfig config = testing::int4_model()->config();
        DummyWeights source(config, {.dtype = DType::int4x2, .int4 = int4});
        FabricOptions options = single_rank_fabric(config, 16);
        options.blocks = blocks;
        return plan_memory(source, {}, options, 0, {.max_context = 128}).parts[0].size_bytes;
    };
    NamedBlocks gpu;
    EXPECT_EQ(weights(Int4Weights::experts, &gpu), weights(Int4Weights::experts, nullptr));
    EXPECT_GT(weights(Int4Weights::all, &gpu), weights(Int4Weights::all, nullptr) * 3 / 2);
}

TEST(MemoryPlan, WhatDoesNotFitIsNamed) {
    const MemoryPlan plan{{{"weights", int64_t{3} << 30}, {"latent cache (9 pages)", 1 << 30}}};
    EXPECT_NO_THROW(require_room(plan, "GPU 0", size_t{4} << 30));
    try {
        require_room(plan, "GPU 0 on node1", size_t{3} << 30);
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::memory);
        EXPECT_THAT(error.what(), ::testing::HasSubstr("GPU 0 on node1 has 3.00 GiB free"));
        EXPECT_THAT(error.what(), ::testing::HasSubstr("weights 3.00 GiB + latent cache (9 pages) "
                                                       "1.00 GiB = 4.00 GiB"));
    }
}

TEST(DeviceBinding, RanksOfANodeTakeTheGpusInTurn) {
    EXPECT_EQ(device_of_rank(0, 4), 0);
    EXPECT_EQ(device_of_rank(3, 4), 3);
    EXPECT_EQ(device_of_rank(5, 4), 1);
}

TEST(DeviceBinding, NcclWantsAGpuForEachRank) {
    DeviceTable table{{{"node1", "GPU 0, H100", "node1 0000:17:00.0"},
                       {"node1", "GPU 1, H100", "node1 0000:2a:00.0"},
                       {"node2", "GPU 0, H100", "node2 0000:17:00.0"}}};
    EXPECT_TRUE(table.one_rank_each());
    EXPECT_NO_THROW(table.require_one_rank_each());
    EXPECT_EQ(table.describe(),
              "rank  host   device\n   0  node1  GPU 0, H100\n   1  node1  GPU 1, H100\n"
              "   2  node2  GPU 0, H100");
    table.rows.push_back(table.rows[2]);
    EXPECT_FALSE(table.one_rank_each());
    try {
        table.require_one_rank_each();
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::usage);
        EXPECT_THAT(error.what(), ::testing::HasSubstr("ranks 2 and 3 on node2 share GPU 0, H100"));
    }
}

// Two ranks on a, one on b: what counts is what a host's ranks take together.
TEST(MemoryPlan, WeightsMustFitTheirHosts) {
    const std::vector<int> nodes{0, 0, 1};
    const std::vector<std::string> hosts{"a", "b"};
    const auto room = [&](int64_t weights, int64_t cache) {
        const HostShare share{.weights = weights << 30, .cache = cache << 30, .limit = 8LL << 30};
        return require_room_on_hosts(std::vector(3, share), nodes, hosts);
    };
    EXPECT_EQ(room(3, 1), "");
    EXPECT_THAT(room(3, 2),
                ::testing::StartsWith("a has 8.00 GiB for this job, its ranks' weights "
                                      "take at least 6.00 GiB and full caches 4.00 GiB more"));
    EXPECT_ERROR(
        room(5, 0), ErrorKind::memory,
        "a has 8.00 GiB for this job, its ranks' weights take at least 10.00 GiB; use more hosts");
}

}  // namespace
}  // namespace ferry
