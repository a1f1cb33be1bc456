// What every transport must pass (DESIGN 4.2): dispatch and combine over real ranks, compared bit
// for bit with a loop on one rank. FERRY_TEST_TRANSPORT names the transport (default: auto);
// FERRY_TEST_PROGRESS_THREAD=1 gives it a thread of its own.
#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdlib>

#include "base/error.h"
#include "comm/exchange.h"
#include "comm/world.h"
#include "tests/comm/exchange_reference.h"
#include "tests/support/mpi_main.h"

namespace ferry {
namespace {

struct Case {
    LayoutOptions layout{};
    ExchangeOptions exchange{};
    int num_experts = 11;
    int num_layers = 2;
    int num_steps = 3;
    bool skewed = false;
    bool random_values = false;  // sums depend on their order: exact combine must keep it
    bool jitter = false;         // ranks pause at random, so that messages arrive out of order
    int num_redundant = 0;
    int64_t tokens_of_first_rank = -1;  // in every step instead of a random number

    std::string describe() const {
        return fmt::format("{}A{}E {} mode {} combine {} M {} steps {}", layout.attention_ranks,
                           layout.expert_ranks, to_string(exchange.dtype),
                           static_cast<int>(exchange.mode), static_cast<int>(exchange.combine),
                           exchange.num_micro_batches, num_steps);
    }
};

std::unique_ptr<Transport> transport_under_test() {
    const char* name = std::getenv("FERRY_TEST_TRANSPORT");
    return make_transport(
        name != nullptr ? name : "auto", test_world(), nullptr,
        {.progress_thread = std::getenv("FERRY_TEST_PROGRESS_THREAD") != nullptr});
}

// All ratios of the two roles that this world allows, and colocated.
std::vector<LayoutOptions> layouts() {
    const int size = test_world().size();
    std::vector<LayoutOptions> all{{.mode = LayoutMode::colocated, .tp_size = 1}};
    for (int a = 1; a < size; ++a)
        all.push_back({.attention_ranks = a, .expert_ranks = size - a, .tp_size = 1});
    return all;
}

class Runner {
  public:
    explicit Runner(const Case& test_case) : case_(test_case) {
        World& world = test_world();
        setup_.layout = make_layout(case_.layout, world.node_of_rank());
        setup_.options = case_.exchange;
        setup_.first_layer = 1;
        setup_.num_layers = case_.num_layers;
        const int num_ranks = setup_.layout.num_expert();
        std::vector<double> loads(case_.num_experts);
        for (int e = 0; e < case_.num_experts; ++e) loads[e] = 1.0 + e % 5 * 7;
        setup_.placements = {case_.num_redundant > 0
                                 ? balanced_placement(loads, {.num_ranks = num_ranks,
                                                              .num_redundant = case_.num_redundant})
                                 : contiguous_placement(case_.num_experts, num_ranks)};
        transport_ = transport_under_test();
        exchange_ = make_exchange(setup_, *transport_, nullptr);
        random_ = Random(static_cast<uint64_t>(world.rank()) + 77);
    }

    void run() {
        if (exchange_->attention() != nullptr) run_attention();
        if (exchange_->experts() != nullptr)
            while (const ExpertBatch* batch = exchange_->experts()->receive())
                exchange_->experts()->reply(serve(*batch));
        test_world().barrier();
    }

  private:
    Tokens tokens(int step, int layer, int micro_batch, int rank) const {
        const uint64_t seed =
            mix64(static_cast<uint64_t>(((step * 8 + layer) * 8 + micro_batch) * 64 + rank));
        int64_t num = std::array<int64_t, 4>{0, 1, case_.exchange.max_tokens / 2,
                                             case_.exchange.max_tokens}[seed % 4];
        if (case_.tokens_of_first_rank >= 0) num = rank == 0 ? case_.tokens_of_first_rank : 0;
        Tokens made = make_tokens(seed, num, case_.exchange.dim, case_.exchange.topk,
                                  case_.num_experts, case_.skewed);
        if (case_.random_values) {
            Random random(seed);
            for (float& x : made.x) x = random.next_normal();
            for (float& weight : made.weights) weight = random.next_uniform();
        }
        return made;
    }
    const Tensor& serve(const ExpertBatch& batch) {
        if (case_.jitter) pause();
        fake_experts(batch,
                     setup_.placements[0].experts(setup_.layout.expert_rank(test_world().rank())));
        return batch.rows;
    }
    void pause() {
        if (random_.next_u32() % 4 == 0) usleep(random_.next_u32() % 3000);
    }

    void run_attention() {
        const int rank = setup_.layout.attention_rank(test_world().rank());
        const int num = case_.exchange.num_micro_batches;
        for (int step = 0; step < case_.num_steps; ++step)
            for (int layer = 1; layer <= case_.num_layers; ++layer) {
                std::vector<Tokens> sent;
                for (int m = 0; m < num; ++m) {
                    if (case_.jitter) pause();
                    sent.push_back(tokens(step, layer, m, rank));
                    exchange_->attention()->dispatch(
                        layer, m, sent[m].x_view(), sent[m].routing(),
                        {1u << (rank % 32), static_cast<uint32_t>(rank + step)});
                }
                for (int i = 0; i < num; ++i) {
                    const int m = (i + step) % num;  // any order
                    std::vector<float> out(sent[m].x.size(), -99.0f);
                    const Agreement agreed = exchange_->combine(
                        layer, m, Tensor(out.data(), DType::f32, {sent[m].num, sent[m].dim}),
                        [&](const ExpertBatch& batch) { return serve(batch); });
                    ASSERT_EQ(out, reference_combine(case_.exchange, layer, sent[m]))
                        << case_.describe() << " step " << step << " layer " << layer
                        << " micro-batch " << m;
                    const auto ranks = static_cast<uint32_t>(setup_.layout.num_attention());
                    ASSERT_EQ(agreed.any, (1u << ranks) - 1);
                    ASSERT_EQ(agreed.max, ranks - 1 + static_cast<uint32_t>(step));
                }
            }
        exchange_->attention()->close();
    }

    Case case_;
    ExchangeSetup setup_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<Exchange> exchange_;
    Random random_{0};
};

ExchangeOptions small() {
    return {.dim = 24, .topk = 3, .max_tokens = 12, .bounded_tokens = 12, .stall_timeout_s = 30};
}

TEST(TransportConformance, EveryRatioDtypeModeAndCombine) {
    int which = 0;
    for (const LayoutOptions& layout : layouts())
        for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3})
            for (ExchangeMode mode :
                 {ExchangeMode::automatic, ExchangeMode::bounded, ExchangeMode::sized})
                for (CombineMode combine : {CombineMode::exact, CombineMode::reduced}) {
                    Case test_case{.layout = layout, .exchange = small()};
                    test_case.exchange.dtype = dtype;
                    test_case.exchange.mode = mode;
                    test_case.exchange.combine = combine;
                    test_case.exchange.num_micro_batches = 1 + which++ % kMaxMicroBatches;
                    if (mode == ExchangeMode::automatic) test_case.exchange.bounded_tokens = 5;
                    Runner(test_case).run();
                    if (HasFatalFailure()) return;
                }
}

TEST(TransportConformance, ExactCombineKeepsTheOrderOfSums) {
    for (const LayoutOptions& layout : layouts())
        for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3})
            for (bool f32_replies : {false, true}) {
                Case test_case{.layout = layout,
                               .exchange = small(),
                               .random_values = true,
                               .num_redundant = 3};
                test_case.exchange.dtype = dtype;
                test_case.exchange.f32_replies = f32_replies;
                test_case.exchange.topk = 6;
                Runner(test_case).run();
                if (HasFatalFailure()) return;
            }
}

TEST(TransportConformance, SkewedRoutingAndOutOfOrderArrival) {
    for (const LayoutOptions& layout : layouts())
        for (ExchangeMode mode : {ExchangeMode::bounded, ExchangeMode::sized}) {
            Case test_case{.layout = layout,
                           .exchange = small(),
                           .num_steps = 6,
                           .skewed = true,
                           .jitter = true};
            test_case.exchange.mode = mode;
            test_case.exchange.num_micro_batches = 3;
            Runner(test_case).run();
            if (HasFatalFailure()) return;
        }
}

TEST(TransportConformance, RedundantCopiesDoNotChangeResults) {
    for (const LayoutOptions& layout : layouts()) {
        Case test_case{.layout = layout, .exchange = small(), .num_redundant = 5};
        test_case.exchange.dtype = DType::fp8_e4m3;
        Runner(test_case).run();
        if (HasFatalFailure()) return;
    }
}

TEST(TransportConformance, FewerExpertsThanRanksAndOneExpertForAll) {
    for (const LayoutOptions& layout : layouts()) {
        Case test_case{.layout = layout, .exchange = small(), .num_experts = 1};
        test_case.exchange.topk = 1;
        Runner(test_case).run();
        if (HasFatalFailure()) return;
    }
}

TEST(TransportConformance, NobodyHasTokens) {
    for (const LayoutOptions& layout : layouts()) {
        Case test_case{.layout = layout, .exchange = small(), .tokens_of_first_rank = 0};
        Runner(test_case).run();
        if (HasFatalFailure()) return;
    }
}

TEST(TransportConformance, OneHugeRowBlock) {
    for (const LayoutOptions& layout : layouts()) {
        Case test_case{.layout = layout,
                       .exchange = small(),
                       .num_layers = 1,
                       .num_steps = 2,
                       .tokens_of_first_rank = 1500};
        test_case.exchange.dim = 512;
        test_case.exchange.max_tokens = 1500;
        test_case.exchange.num_micro_batches = 2;
        Runner(test_case).run();
        if (HasFatalFailure()) return;
    }
}

TEST(TransportConformance, ThousandsOfRounds) {
    for (const LayoutOptions& layout : {layouts().front(), layouts().back()}) {
        Case test_case{.layout = layout, .exchange = small(), .num_steps = 500};
        test_case.exchange.dim = 8;
        test_case.exchange.num_micro_batches = 2;
        Runner(test_case).run();
        if (HasFatalFailure()) return;
    }
}

// A peer that says nothing ends in an error that names it, not in a hang.
// On one node ucx maps peers' memory, unless told which way to go; no other transport has boards.
TEST(TransportConformance, BoardsAreReadWhereTheyLie) {
    constexpr int kChannel = 3;
    World& world = test_world();
    const auto transport = transport_under_test();
    for (int peer = 0; peer < world.size(); ++peer) {
        transport->open_send({peer, 0, LaneKind::slot, kMessageUnit});
        transport->open_receive({peer, 0, LaneKind::slot, kMessageUnit});
    }
    transport->open_board(kChannel + 1, 4096);
    transport->open_board(kChannel, 64);
    transport->connect();
    const bool told = std::getenv("FERRY_UCX_PATH") != nullptr || std::getenv("UCX_TLS") != nullptr;
    if (std::byte* own = transport->board(world.rank(), kChannel))
        *own = static_cast<std::byte>(world.rank() + 1);
    world.barrier();
    for (int peer = 0; peer < world.size(); ++peer) {
        const std::byte* board = transport->board(peer, kChannel);
        const bool is_near = world.node_of_rank()[peer] == world.node() && world.size() > 1;
        if (is_near && transport->name() == "ucx" && !told) {
            EXPECT_TRUE(transport->reads_boards(peer));
            ASSERT_NE(board, nullptr);
            EXPECT_EQ(*board, static_cast<std::byte>(peer + 1));
            EXPECT_EQ(reinterpret_cast<uintptr_t>(board) % kMessageUnit, 0u);
        } else {
            EXPECT_FALSE(transport->reads_boards(peer));
            EXPECT_TRUE(peer == world.rank() || board == nullptr);
        }
    }
    world.barrier();
}

TEST(TransportConformance, SilenceIsAnErrorThatNamesTheRank) {
    World& world = test_world();
    if (world.size() < 2) return;
    ExchangeSetup setup{.options = small(),
                        .layout = make_layout(
                            {.attention_ranks = world.size() - 1, .expert_ranks = 1, .tp_size = 1},
                            world.node_of_rank()),
                        .placements = {contiguous_placement(4, 1)}};
    setup.options.stall_timeout_s = 0.3;
    const auto transport = transport_under_test();
    const auto exchange = make_exchange(setup, *transport, nullptr);
    if (exchange->experts() != nullptr) {
        try {
            exchange->experts()->receive();
            FAIL();
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::communication);
            EXPECT_THAT(error.what(), testing::HasSubstr("waiting for tokens of rank"));
            EXPECT_THAT(error.what(), testing::HasSubstr(fmt::format("0 on {}", world.host(0))));
        }
    }
    world.barrier();
}

}  // namespace
}  // namespace ferry
