// The engine on the emulated GPU: the CPU's tokens whatever the settings of sampling, and how
// little a step copies to the host: neither logits nor how many rows experts got.
#include <gtest/gtest.h>

#include "comm/wire.h"
#include "layers/cuda/sampling_launch.h"
#include "runtime/dummy_weights.h"
#include "runtime/expert_share_bench.h"
#include "runtime/memory_plan.h"
#include "tests/runtime/small_engine.h"
#include "tests/support/cuda_emulation/counts.h"

namespace ferry {
namespace {

TEST(CudaEngine, EverySettingOfSamplingGivesTheTokensOfTheCpu) {
    const std::vector<Request> requests{
        request(0, {.max_tokens = 6, .logprobs = 3}),
        request(1, {.temperature = 0.9, .seed = 11, .max_tokens = 6, .logprobs = 0}),
        request(2, {.temperature = 1.5, .top_k = 20, .top_p = 0.9, .seed = 12, .max_tokens = 6}),
        request(3, {.temperature = 0.7, .min_p = 0.05, .seed = 13, .max_tokens = 6}),
        request(4, {.temperature = 1, .repetition_penalty = 1.3, .seed = 14, .max_tokens = 6}),
        request(5, {.max_tokens = 6, .min_tokens = 4, .stop_token_ids = {0, 1, 2, 3, 4, 5}})};
    SmallEngine cpu(make_cpu_kernels(1)), cuda(make_cuda_kernels(0));
    const std::vector<Completion> expected = cpu.run(requests), got = cuda.run(requests);
    ASSERT_EQ(got.size(), requests.size());
    ASSERT_EQ(expected.size(), requests.size());
    for (size_t i = 0; i < got.size(); ++i) {
        SCOPED_TRACE(i);
        EXPECT_EQ(got[i].tokens, expected[i].tokens);
        EXPECT_EQ(got[i].finish_reason, expected[i].finish_reason);
        ASSERT_EQ(got[i].logprobs.size(), expected[i].logprobs.size());
        ASSERT_EQ(got[i].top_logprobs.size(), expected[i].top_logprobs.size());
        for (size_t j = 0; j < got[i].logprobs.size(); ++j)
            EXPECT_NEAR(got[i].logprobs[j], expected[i].logprobs[j], 1e-3);
        for (size_t j = 0; j < got[i].top_logprobs.size(); ++j)
            EXPECT_EQ(got[i].top_logprobs[j].token, expected[i].top_logprobs[j].token);
    }
}

// Per micro-batch the header of the last exchange, which says what ranks agreed; and the tokens. Of
// the experts' counts and of the logits nothing, in any layer.
TEST(CudaEngine, AStepCopiesOnlyTokensToTheHost) {
    constexpr int64_t kRequests = 4;
    for (const char* family : {"v3", "v3-bf16", "v3-fp8"}) {
        SCOPED_TRACE(family);
        SmallEngine cuda(make_cuda_kernels(0), {.family = family});
        ASSERT_GT(cuda.num_moe_layers(), 1);
        for (int64_t i = 0; i < kRequests; ++i)
            cuda->submit(request(i, {.max_tokens = 8, .ignore_eos = true}));
        cuda->step();
        for (int step = 0; step < 2; ++step) {
            const cuda_emulation::Counts before = cuda_emulation::counts();
            cuda->step();
            const cuda_emulation::Counts after = cuda_emulation::counts();
            EXPECT_EQ(cuda->last_step().generated, kRequests);
            EXPECT_EQ(after.copies_to_host - before.copies_to_host, kMicroBatches + 1);
            EXPECT_EQ(after.bytes_to_host - before.bytes_to_host,
                      static_cast<int64_t>(kMicroBatches * sizeof(MessageHeader) +
                                           kRequests * sizeof(SampleResult)));
        }
    }
}

TEST(CudaEngine, MemoryPlanHasTheRowsThatTensorCoresMultiply) {
    const std::unique_ptr<BlockTransport> blocks = make_self_blocks(cuda_device(0));
    for (const char* family : {"v3", "v3-bf16", "v3-fp8"}) {
        SCOPED_TRACE(family);
        HfModel source(testing::golden_folder("models/") + family);
        const ModelConfig& c = source.config();
        FabricOptions options = single_rank_fabric(c, kMaxTokens);
        options.blocks = blocks.get();
        const MemoryPlan plan = plan_memory(source, {}, options, 0, {});
        int64_t found = 0;
        for (const MemoryPlan::Part& part : plan.parts)
            if (part.name == "rounded rows of experts") found = part.size_bytes;
        const int64_t widest = std::max(c.dim, c.moe_inter_dim);
        ASSERT_EQ(widest % 16, 0);
        const bool rounds = std::string(family) != "v3";  // whose weights are f32
        EXPECT_EQ(found, rounds ? kMaxTokens * c.n_activated_experts * widest * 2 : 0);
    }
}

// Attention of the published sizes, whose keys and values are bf16, with more heads than are
// expanded at a time.
ModelConfig many_heads() {
    return {.vocab_size = 64,
            .dim = 64,
            .inter_dim = 64,
            .moe_inter_dim = 32,
            .n_layers = 1,
            .n_dense_layers = 1,
            .n_heads = 66,
            .q_lora_rank = 16,
            .kv_lora_rank = 32,
            .qk_nope_head_dim = 128,
            .qk_rope_head_dim = 64,
            .v_head_dim = 128,
            .yarn = {},
            .n_routed_experts = 4,
            .n_shared_experts = 1,
            .n_activated_experts = 2};
}

// A prompt in two chunks, expanded anew for the second and not.
TEST(CudaEngine, APromptThatStaysExpandedGivesTheSameBits) {
    constexpr int64_t kPrompt = 9, kChunk = 5;
    DummyWeights source(many_heads(), {.dtype = DType::bf16});
    const auto kernels = make_cuda_kernels(0);
    const ModelConfig& c = source.config();
    ASSERT_EQ(kernels->kv_expansion(c).dtype, DType::bf16);
    ASSERT_LT(kernels->kv_expansion(c).heads_at_once, c.n_heads);
    const auto transport = make_self_transport();
    const auto blocks = make_self_blocks(cuda_device(0));
    FabricOptions fabric = single_rank_fabric(c, kMaxTokens);
    fabric.blocks = blocks.get();
    fabric.exchange.stall_timeout_s = 600;
    RankModel rank(source, *kernels, {}, fabric, *transport);
    Request prompt = request(0, {.max_tokens = 1, .logprobs = 3});
    for (int32_t i = 3; i < kPrompt; ++i) prompt.prompt_tokens.push_back(i * 7 % 64);
    for (int32_t& token : prompt.prompt_tokens) token %= 64;
    const int64_t unit = AttentionWorker::expanded_unit_bytes(c, kernels->kv_expansion(c));
    EXPECT_EQ(unit, (c.n_heads * 256 + 64) * 2);

    std::vector<Completion> got;
    for (const int64_t units : {int64_t{0}, kPrompt}) {
        Engine engine(*kernels, rank.model(), rank.fabric(), rank.experts(),
                      {.scheduler = {.max_batch = 1, .max_batch_tokens = kChunk},
                       .num_pages = 2,
                       .max_context = 64,
                       .expanded_bytes = units * unit},
                      {}, std::nullopt);
        engine.submit(prompt);
        engine.step();
        EXPECT_EQ(engine.prompt_room().num_held(), units);
        while (engine.step()) {
        }
        got.push_back(engine.take_finished().at(0));
    }
    for (const Completion& each : got) {
        EXPECT_EQ(each.error, "");
        EXPECT_EQ(each.tokens, got[0].tokens);
        EXPECT_EQ(each.logprobs, got[0].logprobs);
    }
}

int64_t part_of(const MemoryPlan& plan, const std::string& name) {
    for (const MemoryPlan::Part& part : plan.parts)
        if (part.name == name) return part.size_bytes;
    return 0;
}

TEST(CudaEngine, MemoryPlanHasTheGraphsOfDecodeSteps) {
    const std::unique_ptr<BlockTransport> blocks = make_self_blocks(cuda_device(0));
    for (const char* family : {"v2-lite", "v3", "v3-fp8"}) {
        SCOPED_TRACE(family);
        SmallEngine engine(make_cuda_kernels(0), {.family = family});
        for (int64_t i = 0; i < 4; ++i)
            engine->submit(request(i, {.max_tokens = 6, .ignore_eos = true}));
        const int64_t before = cuda_emulation::counts().graph_nodes;
        for (int step = 0; step < 4; ++step) engine->step();
        const int64_t nodes = cuda_emulation::counts().graph_nodes - before;
        EXPECT_EQ(engine->step_counts().recorded, 1);

        HfModel source(testing::golden_folder("models/") + family);
        FabricOptions options = single_rank_fabric(source.config(), kMaxTokens, kMicroBatches);
        options.blocks = blocks.get();
        WorkerLimits limits{.max_tokens = kMaxTokens,
                            .max_sequences = 8,
                            .max_context = 128,
                            .max_logit_rows = 8,
                            .cuda_graphs = true};
        constexpr int64_t kForms = 4;  // of 1, 2, 4 and 8 rows
        const int64_t planned =
            part_of(plan_memory(source, {}, options, 0, limits), "CUDA graphs (estimated)") /
            (kForms * kGraphNodeBytes);
        EXPECT_GE(planned, nodes);
        EXPECT_LE(planned, nodes + nodes / 2);
        limits.cuda_graphs = false;
        EXPECT_EQ(part_of(plan_memory(source, {}, options, 0, limits), "CUDA graphs (estimated)"),
                  0);
    }
}

TEST(CudaEngine, VirtualExpertRanksShareALayer) {
    HfModel source(testing::golden_folder("models/v3-fp8"));
    const ModelConfig& config = source.config();
    const auto kernels = make_cuda_kernels(0);
    const auto shares =
        bench_expert_shares(source, {.fp8_activations = true}, *kernels, std::vector<int64_t>{5},
                            {.num_ranks = 3, .num_warmups = 1, .num_repetitions = 1});
    int64_t num_experts = 0, num_rows = 0;
    for (const ExpertShare& share : shares.at(0)) {
        num_experts += share.num_experts;
        num_rows += share.num_rows;
        EXPECT_TRUE(share.same_bits);
        EXPECT_GT(share.best_s, 0);
    }
    EXPECT_EQ(num_experts, config.n_routed_experts);
    EXPECT_EQ(num_rows, 3 * 5 * config.n_activated_experts);
}

}  // namespace
}  // namespace ferry
