// The exchange of GPUs against the exchange as one loop: several ranks in one process take turns,
// their blocks are copied on the one GPU once both ends have named them.
#include "comm/exchange_device.h"

#include <gmock/gmock.h>

#include <chrono>
#include <deque>
#include <map>

#include "base/error.h"
#include "comm/exchange_kernels.h"
#include "comm/exchange_plan.h"
#include "comm/progress_state.h"
#include "tests/comm/exchange_reference.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

// Block i of a pair meets block i at the other end.
class Hub {
  public:
    void post(int from, int to, int channel, const PeerBlock& block, bool sends) {
        Ends& ends = pairs_[{from, to, channel}];
        (sends ? ends.sent : ends.awaited).push_back(block);
        while (!ends.sent.empty() && !ends.awaited.empty()) {
            const PeerBlock source = ends.sent.front(), target = ends.awaited.front();
            ASSERT_EQ(source.size_bytes, target.size_bytes);
            launch_copy(target.data, source.data, source.size_bytes, cuda_device(0).stream());
            bytes_[{from, to, channel}] += source.size_bytes;
            ends.sent.pop_front();
            ends.awaited.pop_front();
        }
    }
    bool idle() const {
        for (const auto& [pair, ends] : pairs_)
            if (!ends.sent.empty() || !ends.awaited.empty()) return false;
        return true;
    }

    // Since the last time, by pair of ranks that were handed blocks.
    std::map<std::tuple<int, int, int>, size_t> take_bytes() { return std::exchange(bytes_, {}); }

  private:
    struct Ends {
        std::deque<PeerBlock> sent, awaited;
    };
    std::map<std::tuple<int, int, int>, size_t> bytes_;  // from, to, channel
    std::map<std::tuple<int, int, int>, Ends> pairs_;
};

class HubBlocks : public BlockTransport {
  public:
    HubBlocks(Hub& hub, int rank, int num_ranks) : hub_(hub), rank_(rank), num_ranks_(num_ranks) {}
    std::string_view name() const override { return "hub"; }
    int rank() const override { return rank_; }
    int num_ranks() const override { return num_ranks_; }
    std::string host(int) const override { return "here"; }
    CudaDevice& device() override { return cuda_device(0); }
    void exchange(int channel, int, std::span<const PeerBlock> sends,
                  std::span<const PeerBlock> receives) override {
        for (const PeerBlock& block : sends) hub_.post(rank_, block.peer, channel, block, true);
        for (const PeerBlock& block : receives) hub_.post(block.peer, rank_, channel, block, false);
    }
    void wait(int, int) override {}
    bool done(int, int) override {
        device().synchronize();
        return true;
    }
    void settle() override {}
    void check() override {}

  private:
    Hub& hub_;
    int rank_, num_ranks_;
};

template <typename T>
OwnedTensor on_device(const std::vector<T>& values, DType dtype, int64_t rows, int64_t columns) {
    OwnedTensor tensor(cuda_device(0), dtype, {rows, columns});
    cuda_device(0).copy_from_host(tensor.view().data(), values.data(), values.size() * sizeof(T));
    return tensor;
}
template <typename T>
std::vector<T> on_host(const void* data, size_t num) {
    std::vector<T> values(num);
    cuda_device(0).copy_to_host(values.data(), data, num * sizeof(T));
    return values;
}

struct Case {
    LayoutOptions layout{};
    ExchangeOptions options{};
    int num_experts = 11;
    int num_redundant = 0;
    bool skewed = false;
    bool random_values = false;
};

constexpr int kFirstLayer = 2, kNumLayers = 2;

class Ranks {
  public:
    Ranks(const Case& test_case, int num_ranks) : case_(test_case) {
        setup_.options = case_.options;
        setup_.layout = make_layout(case_.layout, std::vector<int>(num_ranks, 0));
        setup_.first_layer = kFirstLayer;
        setup_.num_layers = kNumLayers;
        std::vector<double> loads(case_.num_experts);
        for (int e = 0; e < case_.num_experts; ++e) loads[e] = 1.0 + e % 5 * 7;
        setup_.placements = {balanced_placement(loads, {.num_ranks = setup_.layout.num_expert(),
                                                        .num_redundant = case_.num_redundant})};
        for (int rank = 0; rank < num_ranks; ++rank) {
            blocks_.push_back(std::make_unique<HubBlocks>(hub_, rank, num_ranks));
            exchanges_.push_back(make_device_exchange(setup_, *blocks_.back()));
        }
        loads_.resize(setup_.layout.num_expert());
    }

    void run_step(int step) {
        const int num = case_.options.num_micro_batches;
        for (int layer = kFirstLayer; layer < kFirstLayer + kNumLayers; ++layer) {
            for (int m = 0; m < num; ++m)
                for (int a = 0; a < setup_.layout.num_attention(); ++a) dispatch(step, layer, m, a);
            // Colocated, sized: heads are here, rows start.
            for (int a = 0; a < setup_.layout.num_attention(); ++a)
                exchange_of_attention(a).attention()->combine_ready(0);
            for (int m = 0; m < num; ++m)
                for (int e = 0; e < setup_.layout.num_expert(); ++e) serve(layer, m, e);
            for (int m = 0; m < num; ++m)
                for (int a = 0; a < setup_.layout.num_attention(); ++a) combine(step, layer, m, a);
            if (case_.options.mode == ExchangeMode::sized) check_bytes();
        }
    }
    void close() {
        for (int a = 0; a < setup_.layout.num_attention(); ++a)
            exchange_of_attention(a).attention()->close();
        if (setup_.layout.mode() == LayoutMode::disaggregated) {
            for (int e = 0; e < setup_.layout.num_expert(); ++e)
                EXPECT_EQ(exchange_of_expert(e).experts()->receive(), nullptr);
        }
        EXPECT_TRUE(hub_.idle());
    }
    void check_loads() {
        for (int e = 0; e < setup_.layout.num_expert(); ++e)
            for (const auto& [layer, expected] : loads_[e])
                EXPECT_THAT(exchange_of_expert(e).expert_load(layer),
                            ::testing::ElementsAreArray(expected));
    }

  private:
    struct Sent {
        Tokens tokens;
        OwnedTensor x, experts, weights;
    };
    Exchange& exchange_of_attention(int a) {
        return *exchanges_[setup_.layout.world_rank_of_attention(a)];
    }
    Exchange& exchange_of_expert(int e) {
        return *exchanges_[setup_.layout.world_rank_of_expert(e)];
    }
    Tokens tokens_of(int step, int layer, int m, int a) const {
        const uint64_t seed = mix64(static_cast<uint64_t>(((step * 8 + layer) * 8 + m) * 64 + a));
        const int64_t most = case_.options.max_tokens;
        const int64_t num = std::array<int64_t, 4>{0, 1, most / 2, most}[seed % 4];
        Tokens made = make_tokens(seed, num, case_.options.dim, case_.options.topk,
                                  case_.num_experts, case_.skewed);
        if (case_.random_values) {
            Random random(seed);
            for (float& x : made.x) x = random.next_normal();
            for (float& weight : made.weights) weight = random.next_uniform();
        }
        return made;
    }
    void dispatch(int step, int layer, int m, int a) {
        Sent sent{.tokens = tokens_of(step, layer, m, a), .x = {}, .experts = {}, .weights = {}};
        const Tokens& t = sent.tokens;
        sent.x = on_device(t.x, DType::f32, t.num, t.dim);
        sent.experts = on_device(t.experts, DType::i32, t.num, t.topk);
        sent.weights = on_device(t.weights, DType::f32, t.num, t.topk);
        exchange_of_attention(a).attention()->dispatch(
            layer, m, sent.x, {sent.experts, sent.weights},
            {1u << a, static_cast<uint32_t>(step * 10 + a)});
        sent_.insert_or_assign({m, a}, std::move(sent));
    }
    // Rows that went between the ranks since the last time: exactly those of the plan, beside a
    // head of fixed size for each pair and micro-batch. Blocks of the only rank go nowhere.
    void check_bytes() {
        if (blocks_.size() == 1) {
            EXPECT_TRUE(hub_.take_bytes().empty());
            return;
        }
        const ExchangeOptions& options = case_.options;
        std::map<std::tuple<int, int, int>, size_t> expected;
        int64_t slots = 0;
        for (int e = 0; e < setup_.layout.num_expert(); ++e)
            slots = std::max(slots, static_cast<int64_t>(setup_.placements[0].experts(e).size()));
        const int64_t max_entries = options.max_tokens * std::min(options.topk, slots);
        const bool exact = options.combine == CombineMode::exact;
        const size_t head = wire_layout(options.dtype, options.dim, options.max_tokens,
                                        max_entries)[WireSection::rows];
        const size_t reply_head =
            wire_layout(combine_dtype(options), options.dim,
                        exact ? max_entries : options.max_tokens, 0)[WireSection::rows];
        for (const auto& [position, sent] : sent_) {
            const int a = position.second;
            ExchangePlan plan(options.max_tokens, options.topk, setup_.layout.num_expert());
            plan.build(sent.tokens.routing(), setup_.placements[0], a);
            for (int e = 0; e < setup_.layout.num_expert(); ++e) {
                const int from = setup_.layout.world_rank_of_attention(a);
                const int to = setup_.layout.world_rank_of_expert(e);
                const int64_t rows = plan.num_rows(e), back = exact ? plan.num_entries(e) : rows;
                expected[{from, to, 0}] +=
                    head + static_cast<size_t>(rows * wire_row_bytes(options.dtype, options.dim));
                expected[{to, from, 1}] +=
                    reply_head +
                    static_cast<size_t>(back * wire_row_bytes(combine_dtype(options), options.dim));
            }
        }
        EXPECT_EQ(hub_.take_bytes(), expected);
    }
    void serve(int layer, int m, int e) {
        ExpertSide& side = *exchange_of_expert(e).experts();
        const ExpertBatch* batch = side.receive();
        ASSERT_NE(batch, nullptr);
        ASSERT_EQ(batch->layer, layer);
        ASSERT_EQ(batch->micro_batch, m);
        const std::span<const int> experts = setup_.placements[0].experts(e);
        ASSERT_EQ(batch->device_offsets.size(), experts.size() + 1);
        const auto offsets =
            on_host<int64_t>(batch->device_offsets.data(), batch->device_offsets.size());
        ASSERT_LE(offsets.back(), batch->rows.rows());
        const auto count = static_cast<size_t>(offsets.back() * case_.options.dim);
        std::vector<float> rows = on_host<float>(batch->rows.data(), count);
        const ExpertBatch host{
            .layer = layer,
            .rows = Tensor(rows.data(), DType::f32, {offsets.back(), case_.options.dim}),
            .offsets = offsets};
        fake_experts(host, experts);
        cuda_device(0).copy_from_host(batch->rows.data(), rows.data(), count * sizeof(float));
        side.reply(batch->rows);
        std::vector<int64_t>& load = loads_[e][layer];
        load.resize(experts.size());
        for (size_t s = 0; s < experts.size(); ++s) load[s] += offsets[s + 1] - offsets[s];
    }
    void combine(int step, int layer, int m, int a) {
        const Tokens& tokens = sent_.at({m, a}).tokens;
        const OwnedTensor out(cuda_device(0), DType::f32, {tokens.num, tokens.dim});
        AttentionSide& side = *exchange_of_attention(a).attention();
        ASSERT_TRUE(side.combine_ready(m));
        const Agreement agreed = side.combine(layer, m, out);
        const auto values = on_host<float>(out.view().data(), tokens.x.size());
        EXPECT_EQ(values, reference_combine(case_.options, layer, tokens))
            << "step " << step << " layer " << layer << " micro-batch " << m << " rank " << a;
        if (layer + 1 < kFirstLayer + kNumLayers) return;
        const auto ranks = static_cast<uint32_t>(setup_.layout.num_attention());
        EXPECT_EQ(agreed.any, (1u << ranks) - 1);
        EXPECT_EQ(agreed.max, static_cast<uint32_t>(step) * 10 + ranks - 1);
    }

    Case case_;
    ExchangeSetup setup_;
    Hub hub_;
    std::vector<std::unique_ptr<HubBlocks>> blocks_;
    std::vector<std::unique_ptr<Exchange>> exchanges_;
    std::map<std::pair<int, int>, Sent> sent_;
    std::vector<std::map<int, std::vector<int64_t>>> loads_;
};

void run(const Case& test_case, int num_ranks, int num_steps = 2) {
    Ranks ranks(test_case, num_ranks);
    for (int step = 0; step < num_steps; ++step) ranks.run_step(step);
    ranks.check_loads();
    ranks.close();
}

ExchangeOptions small(DType dtype, CombineMode combine = CombineMode::exact) {
    return {.dim = 200,
            .topk = 3,
            .max_tokens = 6,
            .num_micro_batches = 2,
            .dtype = dtype,
            .mode = ExchangeMode::bounded,
            .combine = combine};
}

void run_on_every_ratio(ExchangeMode mode) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3})
        for (const CombineMode combine : {CombineMode::exact, CombineMode::reduced}) {
            ExchangeOptions options = small(dtype, combine);
            options.mode = mode;
            const LayoutOptions colocated{.mode = LayoutMode::colocated, .tp_size = 1};
            run({.layout = colocated, .options = options}, 1);
            run({.layout = colocated, .options = options}, 3);
            run({.layout = {.attention_ranks = 1, .expert_ranks = 3, .tp_size = 1},
                 .options = options},
                4);
            run({.layout = {.attention_ranks = 3, .expert_ranks = 2, .tp_size = 1},
                 .options = options},
                5);
        }
}

TEST(DeviceExchange, EveryDtypeAndCombineOnEveryRatio) {
    run_on_every_ratio(ExchangeMode::bounded);
}

TEST(DeviceExchange, SizedMessagesOnEveryRatio) {
    run_on_every_ratio(ExchangeMode::sized);
}

TEST(DeviceExchange, RandomValuesKeepTheOrderOfSums) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3})
        run({.layout = {.attention_ranks = 2, .expert_ranks = 3, .tp_size = 1},
             .options = small(dtype),
             .random_values = true},
            5);
}

TEST(DeviceExchange, CopiesOfExpertsAndSkew) {
    ExchangeOptions options = small(DType::bf16);
    options.dim = 7;
    options.topk = 2;
    options.max_tokens = 260;  // more than a block has threads
    run({.layout = {.attention_ranks = 2, .expert_ranks = 4, .tp_size = 1},
         .options = options,
         .num_redundant = 5,
         .skewed = true},
        6, 1);
}

// Some pairs have nothing to say to each other.
TEST(DeviceExchange, MoreRanksThanExperts) {
    for (const ExchangeMode mode : {ExchangeMode::bounded, ExchangeMode::sized}) {
        ExchangeOptions options = small(DType::bf16);
        options.mode = mode;
        run({.layout = {.attention_ranks = 1, .expert_ranks = 4, .tp_size = 1},
             .options = options,
             .num_experts = 3},
            5, 1);
    }
}

// Steps of one rank whose launches stay the same: of the rows that dispatch is given, the leading
// ones take part, and what is agreed comes from memory. Recorded once, and repeated with other
// numbers.
TEST(DeviceExchange, RepeatedStepsOfOneRank) {
    CudaDevice& device = cuda_device(0);
    const std::unique_ptr<BlockTransport> self = make_self_blocks(device);
    constexpr int kExperts = 5, kLayers = 2, kBatches = 2;
    const ExchangeSetup setup{
        .options = small(DType::bf16),
        .layout = make_layout({.mode = LayoutMode::colocated, .tp_size = 1}, std::vector<int>{0}),
        .first_layer = 0,
        .num_layers = kLayers,
        .placements = {contiguous_placement(kExperts, 1)}};
    const auto exchange = make_device_exchange(setup, *self);
    AttentionSide& side = *exchange->attention();
    ASSERT_EQ(exchange->max_repeated_tokens(), setup.options.max_tokens);
    const Tokens t = make_tokens(3, 6, setup.options.dim, setup.options.topk, kExperts, false);
    const OwnedTensor x = on_device(t.x, DType::f32, t.num, t.dim);
    const OwnedTensor experts = on_device(t.experts, DType::i32, t.num, t.topk);
    const OwnedTensor weights = on_device(t.weights, DType::f32, t.num, t.topk);
    std::vector<OwnedTensor> out;
    for (int m = 0; m < kBatches; ++m)
        out.push_back(OwnedTensor(device, DType::f32, {t.num, t.dim}));
    // Experts that give their rows back.
    const auto launches = [&] {
        for (int layer = 0; layer < kLayers; ++layer) {
            for (int m = 0; m < kBatches; ++m) side.dispatch(layer, m, x, {experts, weights});
            for (int m = 0; m < kBatches; ++m)
                exchange->combine(
                    layer, m, out[static_cast<size_t>(m)],
                    [](const ExpertBatch& batch) -> const Tensor& { return batch.rows; });
        }
    };
    const auto expect_step = [&](int step, const std::function<void()>& what) {
        const std::vector<int64_t> num{step % 4, 6 - step};
        const Agreement say{3u << step, static_cast<uint32_t>(10 * step)};
        side.begin_repeated_step(say, num, t.num);
        what();
        const Agreement agreed = side.end_repeated_step();
        EXPECT_EQ(agreed.any, say.any);
        EXPECT_EQ(agreed.max, say.max);
        for (size_t m = 0; m < kBatches; ++m) {
            const auto values = on_host<float>(out[m].view().data(), t.x.size());
            for (int64_t i = 0; i < t.num * t.dim; ++i) {
                const int64_t token = i / t.dim;
                float sum = 0;
                for (int64_t k = 0; k < t.topk && token < num[m]; ++k)
                    sum += t.weights[static_cast<size_t>(token * t.topk + k)] *
                           t.x[static_cast<size_t>(i)];
                ASSERT_EQ(values[static_cast<size_t>(i)], sum) << step << " " << m << " " << i;
            }
        }
    };
    expect_step(0, launches);
    const std::function<void()> record_and_launch = [&] {
        const CudaGraph graph = CudaGraph::record(device, launches);
        graph.launch(device);
    };
    expect_step(1, record_and_launch);
    side.begin_repeated_step({}, std::vector<int64_t>{0, 0}, t.num);
    const CudaGraph graph = CudaGraph::record(device, launches);
    graph.launch(device);
    side.end_repeated_step();
    for (int step = 2; step < 5; ++step) expect_step(step, [&] { graph.launch(device); });
    // Steps are counted on: the host's own next one finds the number that it awaits.
    launches();
    side.close();
}

// The watchdog reports a stall on all ranks first: waits last longer than its patience, and say
// what it found.
TEST(DeviceExchange, AWaitEndsAfterTheWatchdogsReport) {
    // Nothing comes, and the watchdog sees it a little after the stall timeout.
    class Silent final : public HubBlocks {
      public:
        using HubBlocks::HubBlocks;
        bool done(int, int) override {
            if (progress_state().watched && std::chrono::steady_clock::now() > seen_)
                progress_state().fail("rank 0 on there makes no progress");
            return false;
        }

      private:
        std::chrono::steady_clock::time_point seen_ =
            std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
    };
    ExchangeSetup setup{
        .options = small(DType::bf16),
        .layout = make_layout({.attention_ranks = 1, .expert_ranks = 1, .tp_size = 1},
                              std::vector<int>(2, 0)),
        .first_layer = kFirstLayer,
        .num_layers = kNumLayers,
        .placements = {contiguous_placement(4, 1)}};
    setup.options.stall_timeout_s = 0.05;
    const auto receive = [&] {
        Hub hub;
        Silent blocks(hub, setup.layout.world_rank_of_expert(0), 2);
        make_device_exchange(setup, blocks)->experts()->receive();
    };
    progress_state().watched = true;
    EXPECT_ERROR(receive(), ErrorKind::communication, "rank 1 on here stops at",
                 "layer 2, micro-batch 0, waiting for tokens", "rank 0 on there makes no progress");
    progress_state().watched = false;
    progress_state().forget_failure();
    EXPECT_ERROR(receive(), ErrorKind::communication, "rank 1 on here gave up after",
                 "engine.stall_timeout_s is 0.05");
}

TEST(DeviceExchange, RefusesWhatItCannotDo) {
    const std::unique_ptr<BlockTransport> self = make_self_blocks(cuda_device(0));
    ExchangeSetup setup{.options = small(DType::bf16),
                        .layout = make_layout({.mode = LayoutMode::colocated}, std::vector<int>{0}),
                        .num_layers = 1,
                        .placements = {contiguous_placement(4, 1)}};
    setup.options.bounded_tokens = 4;
    const auto exchange = make_device_exchange(setup, *self);
    const OwnedTensor x(cuda_device(0), DType::f32, {5, 200});
    EXPECT_THROW(exchange->attention()->dispatch(0, 0, x, {}), Error);
    setup.options.topk = 65;
    EXPECT_THROW(make_device_exchange(setup, *self), Error);
}

}  // namespace
}  // namespace ferry
