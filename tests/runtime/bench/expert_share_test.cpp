// What virtual expert ranks have to do, by counting.
#include "runtime/expert_share_bench.h"

#include <gtest/gtest.h>

#include "runtime/dummy_weights.h"

namespace ferry {
namespace {

ModelConfig tiny_config() {
    ModelConfig config;
    config.dim = 64;
    config.inter_dim = 96;
    config.moe_inter_dim = 48;
    config.n_layers = 2;
    config.n_dense_layers = 1;
    config.n_heads = 2;
    config.n_routed_experts = 10;
    config.n_activated_experts = 3;
    config.vocab_size = 256;
    config.q_lora_rank = 0;
    config.kv_lora_rank = 32;
    config.qk_nope_head_dim = 16;
    config.qk_rope_head_dim = 8;
    config.v_head_dim = 16;
    return config;
}

TEST(ExpertShares, TogetherHaveAllExpertsAndRows) {
    const ModelConfig config = tiny_config();
    DummyWeights source(config, {});
    const auto kernels = make_cpu_kernels(1);
    const std::vector<int64_t> tokens{1, 50};
    for (const int num_ranks : {1, 3, 10}) {
        SCOPED_TRACE(num_ranks);
        const auto shares =
            bench_expert_shares(source, {}, *kernels, tokens,
                                {.num_ranks = num_ranks, .num_warmups = 1, .num_repetitions = 2});
        ASSERT_EQ(shares.size(), tokens.size());
        for (size_t i = 0; i < tokens.size(); ++i) {
            ASSERT_EQ(shares[i].size(), static_cast<size_t>(num_ranks));
            int64_t num_experts = 0, num_rows = 0;
            for (const ExpertShare& share : shares[i]) {
                num_experts += share.num_experts;
                num_rows += share.num_rows;
                EXPECT_TRUE(share.same_bits);
                EXPECT_LE(share.num_touched, std::min(share.num_experts, share.num_rows));
                EXPECT_EQ(share.bytes, static_cast<double>(share.num_touched * 3 * 64 * 48 * 2));
                EXPECT_EQ(share.flops, static_cast<double>(share.num_rows * 2 * 3 * 64 * 48));
                EXPECT_EQ(share.best_s > 0, share.num_rows > 0);
                EXPECT_LE(share.best_s, share.median_s);
            }
            EXPECT_EQ(num_experts, 10);
            EXPECT_EQ(num_rows, tokens[i] * num_ranks * 3);
        }
    }
}

}  // namespace
}  // namespace ferry
