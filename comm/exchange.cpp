#include "comm/exchange.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/trace.h"
#include "comm/exchange_sides.h"

namespace ferry {

int ExchangeShared::max_slots(int expert_rank) const {
    size_t slots = 0;
    for (const Placement& placement : setup.placements)
        slots = std::max(slots, placement.experts(expert_rank).size());
    return static_cast<int>(slots);
}

void ExchangeShared::open_board(int micro_batch) const {
    if (setup.options.mode == ExchangeMode::sized) return;
    transport.open_board(micro_batch, dispatch_layout(setup.options.max_tokens, 0).size_bytes());
}

WireMessage ExchangeShared::board(int writer, int micro_batch) const {
    std::byte* memory = transport.board(writer, micro_batch);
    if (memory == nullptr) return {};
    return {memory, setup.options.dtype, setup.options.dim, setup.options.max_tokens, 0};
}

size_t ExchangeShared::dispatch_slot_bytes(int expert_rank) const {
    const ExchangeOptions& options = setup.options;
    if (options.mode == ExchangeMode::sized) return kHeaderBytes;
    const int64_t entries =
        options.bounded_tokens * std::min<int64_t>(options.topk, max_slots(expert_rank));
    return dispatch_layout(options.bounded_tokens, entries).size_bytes();
}

size_t ExchangeShared::reply_slot_bytes(int expert_rank) const {
    const ExchangeOptions& options = setup.options;
    if (options.mode == ExchangeMode::sized) return kHeaderBytes;
    const int64_t entries =
        options.bounded_tokens * std::min<int64_t>(options.topk, max_slots(expert_rank));
    return reply_layout(reply_rows(options.bounded_tokens, entries)).size_bytes();
}

void ExchangeShared::wait_sent(LaneId lane, int peer, Activity activity, int layer,
                               int micro_batch) {
    if (transport.sent(lane)) return;
    waiter.begin(activity, layer, micro_batch);
    while (!transport.sent(lane)) waiter.poll([&](auto add) { add(peer); });
    waiter.end();
}

void ExchangeShared::check_header(const MessageHeader& header, int peer, int layer, int micro_batch,
                                  uint32_t sequence) const {
    const bool closed = (header.flags & kWireClosed) != 0;
    if (header.magic == kWireMagic && header.layer == layer && header.sequence == sequence &&
        (closed || header.micro_batch == micro_batch) && header.num_rows >= 0 &&
        header.num_entries >= 0)
        return;
    throw Error(ErrorKind::communication,
                "rank {} on {} sent exchange {} of layer {}, micro-batch {} (format {:#x}), but "
                "rank {} awaited exchange {} of layer {}, micro-batch {}; do all ranks run the "
                "same build and configuration?",
                peer, transport.host(peer), header.sequence, header.layer, header.micro_batch,
                header.magic, transport.rank(), sequence, layer, micro_batch);
}

void AttentionSide::begin_repeated_step(Agreement, std::span<const int64_t>, int64_t) {
    FERRY_CHECK(false, "this exchange repeats no steps");
}
Agreement AttentionSide::end_repeated_step() {
    FERRY_CHECK(false, "this exchange repeats no steps");
    return {};
}
void ExpertSide::begin_repeated_step(int64_t) {
    FERRY_CHECK(false, "this exchange repeats no steps");
}
Agreement ExpertSide::end_repeated_step() {
    FERRY_CHECK(false, "this exchange repeats no steps");
    return {};
}

namespace {

class ExchangeImpl final : public Exchange {
  public:
    ExchangeImpl(const ExchangeSetup& setup, Transport& transport, ThreadPool* threads)
        : shared_{.setup = setup,
                  .transport = transport,
                  .threads = threads,
                  .waiter = Waiter(transport, setup.options.stall_timeout_s)} {
        const Layout& layout = setup.layout;
        const int a = layout.attention_rank(transport.rank());
        const int e = layout.expert_rank(transport.rank());
        if (a >= 0) attention_.emplace(shared_, a);
        if (e >= 0) experts_.emplace(shared_, e);
    }
    AttentionSide* attention() override { return attention_ ? &*attention_ : nullptr; }
    ExpertSide* experts() override { return experts_ ? &*experts_ : nullptr; }

    std::span<const int64_t> expert_load(int layer) const override {
        FERRY_CHECK(experts_.has_value());
        return experts_->load(layer);
    }
    ExchangeTimes times() const override {
        return attention_ ? attention_->times() : ExchangeTimes{};
    }
    void begin_wait(int layer, int micro_batch) override {
        wait_zone_.emplace(Zone::combine_wait, layer, micro_batch);
        shared_.waiter.begin(Activity::waiting_combine, layer, micro_batch);
    }
    void wait_a_little(int micro_batch) override {
        // Replies cannot come before this rank's own experts have heard from everybody.
        shared_.waiter.poll([&](auto add) {
            if (experts_->missing(micro_batch, add) == 0) attention_->missing(micro_batch, add);
        });
    }
    void end_wait() override {
        shared_.waiter.end();
        wait_zone_.reset();
    }

  private:
    ExchangeShared shared_;
    std::optional<AttentionSideImpl> attention_;
    std::optional<ExpertSideImpl> experts_;
    std::optional<ScopedZone> wait_zone_;  // of a rank with both roles
};

ExchangeSetup checked(ExchangeSetup setup) {
    ExchangeOptions& options = setup.options;
    FERRY_CHECK(options.dim > 0 && options.topk > 0 && options.max_tokens >= 0);
    FERRY_CHECK(!setup.placements.empty());
    FERRY_CHECK(setup.placements.size() == 1 ||
                static_cast<int>(setup.placements.size()) == setup.num_blocks());
    if (options.num_micro_batches < 1 || options.num_micro_batches > kMaxMicroBatches)
        throw Error(ErrorKind::usage, "exchange: {} micro-batches; 1 to {} can be in flight",
                    options.num_micro_batches, kMaxMicroBatches);
    if (options.bounded_tokens == 0)
        options.bounded_tokens = options.mode == ExchangeMode::bounded
                                     ? options.max_tokens
                                     : std::min<int64_t>(options.max_tokens, 256);
    options.bounded_tokens = std::min(options.bounded_tokens, options.max_tokens);
    for (const Placement& placement : setup.placements)
        if (placement.num_ranks() != setup.layout.num_expert())
            throw Error(ErrorKind::usage, "placement is for {} expert ranks, but the layout has {}",
                        placement.num_ranks(), setup.layout.num_expert());
    return setup;
}

}  // namespace

std::unique_ptr<Exchange> make_exchange(const ExchangeSetup& setup, Transport& transport,
                                        ThreadPool* threads, bool connect) {
    FERRY_CHECK(setup.layout.num_ranks() == transport.num_ranks());
    auto exchange = std::make_unique<ExchangeImpl>(checked(setup), transport, threads);
    if (connect) transport.connect();
    return exchange;
}

}  // namespace ferry
