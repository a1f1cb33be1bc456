// The bytes that zones report are those that the exchange plan implies, in every mode and layout;
// rows on a board count for each peer that reads them there.
#include <gtest/gtest.h>

#include <tuple>

#include "base/trace.h"
#include "comm/exchange.h"
#include "comm/exchange_plan.h"
#include "comm/wire.h"
#include "tests/comm/exchange_reference.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

constexpr int kExperts = 10;
constexpr int64_t kDim = 48, kTopk = 3, kMaxTokens = 40, kBoundedTokens = 8;

struct Bytes {
    int64_t dispatch = 0, combine = 0;
};

// Of one attention rank's messages: a message that does not fit the slot of the worst case of
// kBoundedTokens, and that the peer does not read on a board, has a header of its own on its way
// out, and none on its way back.
Bytes planned(const ExchangePlan& plan, const ExchangeOptions& options, const Placement& placement,
              const Layout& layout, Transport& transport) {
    Bytes bytes;
    const bool sized = options.mode == ExchangeMode::sized;
    for (int e = 0; e < placement.num_ranks(); ++e) {
        const int64_t most =
            kBoundedTokens * std::min<int64_t>(kTopk, std::ssize(placement.experts(e)));
        const bool exact = options.combine == CombineMode::exact;
        const auto out = static_cast<int64_t>(
            wire_layout(options.dtype, kDim, plan.num_rows(e), plan.num_entries(e)).size_bytes());
        const auto slot = static_cast<int64_t>(
            sized ? kHeaderBytes
                  : wire_layout(options.dtype, kDim, kBoundedTokens, most).size_bytes());
        const auto without_rows =
            static_cast<int64_t>(wire_layout(options.dtype, kDim, plan.num_rows(e),
                                             plan.num_entries(e), WireRowsLie::on_board)
                                     .size_bytes());
        const bool on_board =
            without_rows <= slot && transport.reads_boards(layout.world_rank_of_expert(e));
        bytes.dispatch += out <= slot || on_board ? out : out + static_cast<int64_t>(kHeaderBytes);
        const int64_t rows = exact ? plan.num_entries(e) : plan.num_rows(e);
        bytes.combine +=
            static_cast<int64_t>(wire_layout(combine_dtype(options), kDim, rows, 0).size_bytes());
    }
    return bytes;
}

void check(const LayoutOptions& layout_options, const ExchangeOptions& options) {
    World& world = test_world();
    const Layout layout = make_layout(layout_options, world.node_of_rank());
    const Placement placement = contiguous_placement(kExperts, layout.num_expert());
    const auto transport = make_transport("auto", world, nullptr);
    const auto exchange = make_exchange(
        {.options = options, .layout = layout, .placements = {placement}}, *transport, nullptr);
    const int rank = layout.attention_rank(world.rank());
    const auto serve = [&](const ExpertBatch& batch) -> const Tensor& {
        return decode_rows(batch);
    };
    trace().reset_totals();
    Bytes expected;
    if (rank >= 0) {
        for (const int64_t num : {0, 1, 7, 39}) {
            const Tokens tokens = make_tokens(static_cast<uint64_t>(100 * rank + num), num, kDim,
                                              kTopk, kExperts, true);
            ExchangePlan plan(kMaxTokens, kTopk, layout.num_expert());
            plan.build(tokens.routing(), placement, rank);
            const Bytes one = planned(plan, options, placement, layout, *transport);
            expected.dispatch += one.dispatch;
            expected.combine += one.combine;
            std::vector<float> out(tokens.x.size());
            exchange->attention()->dispatch(0, 0, tokens.x_view(), tokens.routing());
            exchange->combine(0, 0, Tensor(out.data(), DType::f32, {num, kDim}), serve);
        }
        exchange->attention()->close();
        EXPECT_EQ(exchange->times().num, 4);
        EXPECT_GT(exchange->times().in_flight_ns, 0);
    }
    if (exchange->experts() != nullptr)
        while (const ExpertBatch* batch = exchange->experts()->receive())
            exchange->experts()->reply(serve(*batch));
    const auto& totals = trace().totals();
    if (rank >= 0 || layout.mode() == LayoutMode::colocated) {
        EXPECT_EQ(totals[static_cast<size_t>(Zone::pack)].bytes, expected.dispatch);
    }
    EXPECT_EQ(world.all_sum(totals[static_cast<size_t>(Zone::reply)].bytes),
              world.all_sum(expected.combine));
    world.barrier();
}

TEST(ExchangeBytes, AreWhatThePlanSays) {
    std::vector<LayoutOptions> layouts{{.mode = LayoutMode::colocated, .tp_size = 1}};
    for (int a = 1; a < test_world().size(); ++a)
        layouts.push_back(
            {.attention_ranks = a, .expert_ranks = test_world().size() - a, .tp_size = 1});
    const std::tuple<ExchangeMode, CombineMode, DType> settings[] = {
        {ExchangeMode::automatic, CombineMode::exact, DType::bf16},
        {ExchangeMode::automatic, CombineMode::reduced, DType::f32},
        {ExchangeMode::sized, CombineMode::exact, DType::fp8_e4m3}};
    for (const LayoutOptions& layout : layouts)
        for (const auto& [mode, combine, dtype] : settings)
            check(layout, {.dim = kDim,
                           .topk = kTopk,
                           .max_tokens = kMaxTokens,
                           .bounded_tokens = kBoundedTokens,
                           .dtype = dtype,
                           .mode = mode,
                           .combine = combine});
}

TEST(ExchangeBytes, AnExchangeThatIsReopenedGoesOn) {
    World& world = test_world();
    LayoutOptions options{.mode = LayoutMode::colocated, .tp_size = 1};
    if (world.size() > 1)
        options = {.attention_ranks = 1, .expert_ranks = world.size() - 1, .tp_size = 1};
    const Layout layout = make_layout(options, world.node_of_rank());
    const auto transport = make_transport("auto", world, nullptr);
    const auto exchange = make_exchange(
        {.options = {.dim = kDim, .topk = kTopk, .max_tokens = kMaxTokens, .num_micro_batches = 2},
         .layout = layout,
         .placements = {contiguous_placement(kExperts, layout.num_expert())}},
        *transport, nullptr);
    const auto serve = [&](const ExpertBatch& batch) -> const Tensor& {
        return decode_rows(batch);
    };
    const Tokens tokens = make_tokens(1, 5, kDim, kTopk, kExperts, false);
    for (int round = 0; round < 5; ++round) {
        if (layout.attention_rank(world.rank()) >= 0) {
            std::vector<float> out(tokens.x.size(), -1.0f);
            for (int micro_batch = 0; micro_batch <= round % 2; ++micro_batch) {
                exchange->attention()->dispatch(0, micro_batch, tokens.x_view(), tokens.routing());
                exchange->combine(0, micro_batch, Tensor(out.data(), DType::f32, {5, kDim}), serve);
            }
            for (int64_t t = 0; t < 5; ++t) {
                float weight = 0;  // experts give rows back as they are, all exact in bf16
                for (int64_t k = 0; k < kTopk; ++k) weight += tokens.weights[t * kTopk + k];
                EXPECT_EQ(out[t * kDim], weight * tokens.x[t * kDim]);
            }
            exchange->attention()->close();
        }
        if (ExpertSide* experts = exchange->experts()) {
            while (const ExpertBatch* batch = experts->receive()) experts->reply(serve(*batch));
            EXPECT_TRUE(experts->closed());
            experts->reopen();
            EXPECT_FALSE(experts->closed());
        }
        world.barrier();
    }
    if (layout.attention_rank(world.rank()) >= 0) exchange->attention()->close();
    if (ExpertSide* experts = exchange->experts())
        while (experts->receive() != nullptr) continue;
}

}  // namespace
}  // namespace ferry
