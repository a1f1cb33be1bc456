// One rank, no MPI: everything but the network. Many ranks: transport_conformance.
#include "comm/exchange.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "base/trace.h"
#include "comm/row_codec.h"
#include "tests/comm/exchange_reference.h"

namespace ferry {
namespace {

constexpr int kExperts = 6;

ExchangeSetup setup_of_one(const ExchangeOptions& options) {
    return {.options = options,
            .layout = make_layout({.mode = LayoutMode::colocated}, std::vector<int>{0}),
            .first_layer = 3,
            .num_layers = 2,
            .placements = {contiguous_placement(kExperts, 1)}};
}

struct OneRank {
    explicit OneRank(const ExchangeOptions& options, ThreadPool* threads = nullptr)
        : setup(setup_of_one(options)),
          transport(make_self_transport()),
          exchange(make_exchange(setup, *transport, threads)) {}

    std::vector<float> run(int layer, int micro_batch, const Tokens& tokens) {
        exchange->attention()->dispatch(layer, micro_batch, tokens.x_view(), tokens.routing(),
                                        {5, 7});
        std::vector<float> out(tokens.x.size(), -1.0f);
        const Agreement agreed = exchange->combine(
            layer, micro_batch, Tensor(out.data(), DType::f32, {tokens.num, tokens.dim}),
            [&](const ExpertBatch& batch) {
                fake_experts(batch, setup.placements[0].experts(0));
                return batch.rows;
            });
        EXPECT_EQ(agreed.any, 5u);
        EXPECT_EQ(agreed.max, 7u);
        return out;
    }

    ExchangeSetup setup;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<Exchange> exchange;
};

TEST(Exchange, OneTokenByHand) {
    OneRank rank({.dim = 2, .topk = 2, .max_tokens = 4, .dtype = DType::f32});
    const Tokens tokens{
        .x = {1, 2}, .experts = {4, 1}, .weights = {0.5f, 2}, .num = 1, .dim = 2, .topk = 2};
    // Expert 4 of layer 3: -(1 + 0 + 1), -(2 + 1 + 1); expert 1: -(1 + 1 + 1), -(2 + 2 + 1).
    EXPECT_THAT(rank.run(3, 0, tokens), testing::ElementsAre(-7, -12));
    EXPECT_THAT(rank.exchange->expert_load(3), testing::ElementsAre(0, 1, 0, 0, 1, 0));
}

TEST(Exchange, AllDtypesModesAndCombinesMatchTheReference) {
    ThreadPool threads(2);
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3})
        for (ExchangeMode mode :
             {ExchangeMode::automatic, ExchangeMode::bounded, ExchangeMode::sized})
            for (CombineMode combine : {CombineMode::exact, CombineMode::reduced}) {
                const ExchangeOptions options{
                    .dim = 200,
                    .topk = 3,
                    .max_tokens = 40,
                    .bounded_tokens = mode == ExchangeMode::automatic ? 8 : 0,
                    .num_micro_batches = 2,
                    .dtype = dtype,
                    .mode = mode,
                    .combine = combine};
                OneRank rank(options, &threads);
                for (int round = 0; round < 6; ++round) {
                    const int64_t num = std::array{0, 1, 8, 9, 40, 17}[round];
                    const Tokens tokens = make_tokens(round, num, 200, 3, kExperts, false);
                    const int layer = 3 + round % 2;
                    EXPECT_EQ(rank.run(layer, round % 2, tokens),
                              reference_combine(options, layer, tokens))
                        << to_string(dtype) << " round " << round;
                }
            }
}

TEST(Exchange, RowsAreRoundedAlsoWhenTheyStay) {
    for (DType dtype : {DType::bf16, DType::fp8_e4m3})
        for (bool f32_replies : {false, true}) {
            const ExchangeOptions options{
                .dim = 130, .topk = 2, .max_tokens = 8, .dtype = dtype, .f32_replies = f32_replies};
            OneRank rank(options);
            Tokens tokens = make_tokens(1, 5, 130, 2, kExperts, false);
            Random random(2);
            for (float& x : tokens.x) x = random.next_normal();
            for (float& w : tokens.weights) w = random.next_uniform();
            EXPECT_EQ(rank.run(3, 0, tokens), reference_combine(options, 3, tokens));
        }
}

TEST(Exchange, RowsComeByExpertThenToken) {
    OneRank rank({.dim = 1, .topk = 2, .max_tokens = 4, .dtype = DType::f32});
    const Tokens tokens{.x = {10, 11, 12},
                        .experts = {5, 0, 0, 2, 5, 0},
                        .weights = {1, 1, 1, 1, 1, 1},
                        .num = 3,
                        .dim = 1,
                        .topk = 2};
    rank.exchange->attention()->dispatch(4, 0, tokens.x_view(), tokens.routing());
    const ExpertBatch* batch = rank.exchange->experts()->try_receive();
    ASSERT_NE(batch, nullptr);
    EXPECT_EQ(batch->layer, 4);
    EXPECT_THAT(batch->offsets, testing::ElementsAre(0, 3, 3, 4, 4, 4, 6));
    decode_rows(*batch);
    EXPECT_THAT(std::vector<float>(batch->rows.as<float>(), batch->rows.as<float>() + 6),
                testing::ElementsAre(10, 11, 12, 11, 10, 12));
    rank.exchange->experts()->reply(batch->rows);
    float out[3];
    rank.exchange->attention()->combine(4, 0, Tensor(out, DType::f32, {3, 1}));
    EXPECT_THAT(out, testing::ElementsAre(20, 22, 24));
    EXPECT_FALSE(rank.exchange->experts()->closed());
    rank.exchange->attention()->close();
    EXPECT_EQ(rank.exchange->experts()->receive(), nullptr);
    EXPECT_TRUE(rank.exchange->experts()->closed());
}

TEST(Exchange, AWaitThatNobodyAnswersNamesTheRank) {
    OneRank rank(
        {.dim = 1, .topk = 1, .max_tokens = 1, .dtype = DType::f32, .stall_timeout_s = 0.05});
    const Tokens tokens{.x = {1}, .experts = {0}, .weights = {1}, .num = 1, .dim = 1, .topk = 1};
    rank.exchange->attention()->dispatch(3, 0, tokens.x_view(), tokens.routing());
    float out[1];
    try {
        rank.exchange->attention()->combine(3, 0, Tensor(out, DType::f32, {1, 1}));
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::communication);
        EXPECT_THAT(error.what(), testing::HasSubstr("layer 3, micro-batch 0, waiting for expert "
                                                     "outputs of rank 0 (rank 0 on this host)"));
    }
}

// Messages of others, whoever notices them: the wait itself or what it asks for.
TEST(Exchange, AWaitLastsAsLongAsAnythingMoves) {
    constexpr double kStallS = 0.3, kMovesS = 1.0;
    OneRank rank(
        {.dim = 1, .topk = 1, .max_tokens = 1, .dtype = DType::f32, .stall_timeout_s = kStallS});
    const Tokens tokens{.x = {1}, .experts = {0}, .weights = {1}, .num = 1, .dim = 1, .topk = 1};
    rank.exchange->attention()->dispatch(3, 0, tokens.x_view(), tokens.routing());
    const int64_t begin_ns = trace_now_ns();
    const auto elapsed_s = [&] { return static_cast<double>(trace_now_ns() - begin_ns) * 1e-9; };
    int64_t num_calls = 0;
    double next_s = 0;
    rank.transport->add_service([&] {
        const bool moves = num_calls++ % 2 == 0 && elapsed_s() > next_s && next_s < kMovesS;
        if (moves) next_s += kStallS / 3;
        return moves;
    });
    float out[1];
    EXPECT_THROW(rank.exchange->attention()->combine(3, 0, Tensor(out, DType::f32, {1, 1})), Error);
    EXPECT_GT(elapsed_s(), kMovesS);
}

TEST(Exchange, BoundedModeRefusesWhatDoesNotFit) {
    OneRank rank({.dim = 1,
                  .topk = 1,
                  .max_tokens = 100,
                  .bounded_tokens = 2,
                  .dtype = DType::f32,
                  .mode = ExchangeMode::bounded});
    const Tokens tokens = make_tokens(1, 100, 1, 1, kExperts, false);
    EXPECT_THROW(rank.exchange->attention()->dispatch(3, 0, tokens.x_view(), tokens.routing()),
                 Error);
}

}  // namespace
}  // namespace ferry
