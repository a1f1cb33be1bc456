#include "comm/exchange_device.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/error.h"
#include "base/trace.h"
#include "comm/exchange_device_parts.h"

namespace ferry {
namespace {

constexpr int kMaxTopk = 64;

class DeviceExpertSide;

class DeviceAttentionSide final : public AttentionSide {
  public:
    DeviceAttentionSide(DeviceShared& shared, DeviceExpertSide* experts);

    void dispatch(int layer, int micro_batch, const Tensor& x, const Routing& routing,
                  Agreement say) override;
    // The rest happens in stream order.
    bool combine_ready(int micro_batch) override {
        start_rows();
        return experts_ == nullptr || batches_[static_cast<size_t>(micro_batch)].answered;
    }
    Agreement combine(int layer, int micro_batch, const Tensor& out) override;
    void close() override;
    void begin_repeated_step(Agreement say, std::span<const int64_t> num_tokens,
                             int64_t max_tokens) override;
    Agreement end_repeated_step() override;

    void add_reply_blocks(int micro_batch);
    // Sized mode: the rows of dispatches whose heads are on their way, in the order of dispatches.
    // On a colocated rank, which receives in the same groups, it waits for the others' heads.
    void start_rows();

  private:
    struct MicroBatch {
        BlockRow out, in;
        Buffer items, weights;            // PlanItem and f32 [max tokens, topk]
        std::vector<MessageHeader> sent;  // by expert rank; sized mode
        int32_t num_tokens = 0;
        uint32_t sequence = 0;
        int layer = -1;
        bool answered = false;  // by the experts of this rank
    };
    void start(int layer, int micro_batch, PackParams params);
    Agreement agreed_in(const MessageHeader& header, int layer, uint32_t sequence) const;
    // Null but in a step that is repeated.
    const RepeatedStep* repeated_step(int micro_batch) const {
        return repeats_ ? device_steps_.as<RepeatedStep>() + micro_batch : nullptr;
    }

    DeviceShared& shared_;
    DeviceExpertSide* experts_;  // of a colocated rank
    std::vector<PlacementOnDevice> placements_;
    std::vector<int> expert_ranks_;
    std::vector<MicroBatch> batches_;
    std::vector<int> without_rows_;  // micro-batches whose heads are on their way; sized mode
    bool repeats_ = false;           // a step that is repeated is under way
    Buffer device_steps_, pinned_steps_, pinned_headers_;  // by micro-batch
    Event step_done_;
};

class DeviceExpertSide final : public ExpertSide {
  public:
    explicit DeviceExpertSide(DeviceShared& shared);
    void set_attention(DeviceAttentionSide* attention) { attention_ = attention; }

    const ExpertBatch* try_receive() override;
    const ExpertBatch* receive() override;
    bool closed() const override { return closed_; }
    void reply(const Tensor& y) override;
    void begin_repeated_step(int64_t max_tokens) override;
    Agreement end_repeated_step() override;
    void reopen() override { closed_ = false; }
    void close() { closed_ = true; }  // of a colocated rank: it knows
    std::span<const int64_t> load(int layer);
    const BlockRow* received_in(int micro_batch) const {
        return &batches_[static_cast<size_t>(micro_batch)].in;
    }
    const BlockRow* replied_in(int micro_batch) const {
        return &batches_[static_cast<size_t>(micro_batch)].out;
    }

    // Of a colocated rank: the receiving half of a dispatch, whose group has started.
    void add_dispatch_blocks(int micro_batch);
    // Sized mode: reads the heads, which are here, and adds the rows to the group.
    void add_dispatch_rows(int micro_batch);
    void note_dispatch(int layer, int micro_batch) { started_.push_back({layer, micro_batch}); }

  private:
    struct MicroBatch {
        BlockRow in, out;
        std::vector<MessageHeader> received;  // by attention rank; sized mode
    };
    struct Position {
        int layer = 0, micro_batch = 0, round = 0;
    };
    Position after(Position position) const;
    const ExpertBatch* receive_at(Position position);
    bool begin_step();
    const ExpertBatch* take(Position position);
    void check_format(const MessageHeader& header, size_t attention_rank) const;
    void check_header(const MessageHeader& header, size_t attention_rank) const;
    // That the blocks of all attention ranks hold.
    int64_t max_rows() const {
        return static_cast<int64_t>(attention_ranks_.size()) * shared_.dispatch.max_entries;
    }
    int num_slots(int layer) const {
        return static_cast<int>(shared_.setup.placements[shared_.placement_index(layer)]
                                    .experts(shared_.expert_rank)
                                    .size());
    }

    DeviceShared& shared_;
    DeviceAttentionSide* attention_ = nullptr;
    std::vector<int> attention_ranks_;
    std::vector<MicroBatch> batches_;
    std::vector<Position> started_;  // of a colocated rank, in order
    Position next_;                  // of a rank with experts only
    bool closed_ = false;
    ExpertBatch batch_;
    UnpackParams unpack_;
    bool repeats_ = false;  // a step that is repeated is under way
    Buffer pinned_header_;  // of its last reply
    Event step_done_;
    Buffer rows_, counts_, offsets_, position_, load_;
    std::vector<int64_t> load_on_host_;
};

// ---- Attention side

DeviceAttentionSide::DeviceAttentionSide(DeviceShared& shared, DeviceExpertSide* experts)
    : shared_(shared),
      experts_(experts),
      expert_ranks_(shared.ranks_of_experts()),
      device_steps_(shared.device(), kBlockSlots * sizeof(RepeatedStep)),
      pinned_steps_(pinned_host_memory(kBlockSlots * sizeof(RepeatedStep))),
      pinned_headers_(pinned_host_memory(kBlockSlots * sizeof(MessageHeader))),
      step_done_(shared.device()) {
    const ExchangeOptions& options = shared.setup.options;
    CudaDevice& device = shared.device();
    for (const Placement& placement : shared.setup.placements)
        placements_.emplace_back(device, placement);
    const size_t num = expert_ranks_.size();
    const auto choices = static_cast<size_t>(options.bounded_tokens * options.topk);
    const auto blocks = [&](int64_t block_bytes, const BlockRow* same) {
        if (shared.is_alone()) return BlockRow{.memory = {}, .same = same};
        return BlockRow{Buffer(device, num * static_cast<size_t>(block_bytes))};
    };
    for (int m = 0; m < options.num_micro_batches; ++m)
        batches_.push_back(
            {.out = blocks(shared.dispatch.size_bytes, experts ? experts->received_in(m) : nullptr),
             .in = blocks(shared.reply.size_bytes, experts ? experts->replied_in(m) : nullptr),
             .items = Buffer(device, choices * sizeof(PlanItem)),
             .weights = Buffer(device, choices * sizeof(float)),
             .sent = std::vector<MessageHeader>(num)});
}

void DeviceAttentionSide::dispatch(int layer, int micro_batch, const Tensor& x,
                                   const Routing& routing, Agreement say) {
    ScopedZone zone(Zone::pack, layer, micro_batch);
    const ExchangeOptions& options = shared_.setup.options;
    MicroBatch& batch = batches_[static_cast<size_t>(micro_batch)];
    batch.num_tokens = x.rank() == 0 ? 0 : static_cast<int32_t>(x.rows());
    if (batch.num_tokens > options.bounded_tokens)
        throw Error(ErrorKind::usage,
                    "exchange: {} tokens do not fit bounded blocks of {}; raise "
                    "exchange.bounded_tokens or lower engine.max_batch_tokens",
                    batch.num_tokens, options.bounded_tokens);
    batch.layer = layer;
    batch.answered = false;
    PackParams params{.num_tokens = batch.num_tokens, .items = batch.items.as<PlanItem>()};
    if (batch.num_tokens > 0) {
        check_shape(x, "x", DType::f32, {batch.num_tokens, options.dim});
        check_shape(routing.experts, "routing.experts", DType::i32,
                    {batch.num_tokens, options.topk});
        check_shape(routing.weights, "routing.weights", DType::f32,
                    {batch.num_tokens, options.topk});
        params.x = x.as<float>();
        params.x_stride = x.row_stride();
        params.experts = routing.experts.as<int32_t>();
        params.weights = routing.weights.as<float>();
        // Routing may change afterwards, combine needs it.
        launch_copy(batch.weights.data(), params.weights,
                    static_cast<size_t>(routing.weights.count()) * sizeof(float), shared_.stream());
    }
    params.header = {
        .layer = layer, .micro_batch = micro_batch, .agree_any = say.any, .agree_max = say.max};
    start(layer, micro_batch, params);
    zone.bytes = total_bytes(shared_.sends);
    if (shared_.sized()) without_rows_.push_back(micro_batch);
    if (experts_ == nullptr) start_rows();
}

void DeviceAttentionSide::start_rows() {
    for (const int micro_batch : without_rows_) {
        MicroBatch& batch = batches_[static_cast<size_t>(micro_batch)];
        ScopedZone zone(Zone::pack, batch.layer, micro_batch);
        shared_.read_headers(batch.out.data(), batch.sent);
        if (experts_ != nullptr)
            shared_.wait_on_host(kDispatch, micro_batch, Activity::waiting_dispatch, batch.layer);
        shared_.sends.clear();
        shared_.receives.clear();
        batch.out.add_rows(shared_.sends, expert_ranks_, shared_, batch.sent);
        if (experts_ != nullptr) experts_->add_dispatch_rows(micro_batch);
        shared_.blocks.exchange(kDispatch, micro_batch, shared_.sends, shared_.receives);
        zone.bytes = total_bytes(shared_.sends);
    }
    without_rows_.clear();
}

void DeviceAttentionSide::start(int layer, int micro_batch, PackParams params) {
    MicroBatch& batch = batches_[static_cast<size_t>(micro_batch)];
    shared_.blocks.wait(kDispatch, micro_batch);  // the last message may still be leaving
    params.step = repeated_step(micro_batch);
    params.header.sequence =
        repeats_ ? static_cast<uint32_t>(1 + layer - shared_.setup.first_layer) : ++batch.sequence;
    params.topk = static_cast<int32_t>(shared_.setup.options.topk);
    params.num_ranks = static_cast<int32_t>(expert_ranks_.size());
    params.attention_rank = shared_.attention_rank;
    params.placement = placements_[shared_.placement_index(layer)].view();
    params.format = shared_.dispatch;
    params.blocks = batch.out.data();
    launch_plan(params, shared_.stream());
    launch_pack(params, shared_.stream());
    shared_.sends.clear();
    shared_.receives.clear();
    batch.out.add_heads(shared_.sends, expert_ranks_, shared_);
    if (experts_ != nullptr) experts_->add_dispatch_blocks(micro_batch);
    shared_.blocks.exchange(kDispatch, micro_batch, shared_.sends, shared_.receives);
    if (experts_ != nullptr && (params.header.flags & kWireClosed) == 0)
        experts_->note_dispatch(layer, micro_batch);
}

void DeviceAttentionSide::add_reply_blocks(int micro_batch) {
    MicroBatch& batch = batches_[static_cast<size_t>(micro_batch)];
    batch.in.add_reply(shared_.receives, expert_ranks_, shared_, batch.sent);
    batch.answered = true;
}

Agreement DeviceAttentionSide::combine(int layer, int micro_batch, const Tensor& out) {
    ScopedZone zone(Zone::combine, layer, micro_batch);
    MicroBatch& batch = batches_[static_cast<size_t>(micro_batch)];
    FERRY_CHECK(layer == batch.layer, "combine of layer {}, but layer {} was dispatched", layer,
                batch.layer);
    if (experts_ == nullptr) {  // else they started the group when they replied
        shared_.sends.clear();
        shared_.receives.clear();
        add_reply_blocks(micro_batch);
        shared_.blocks.exchange(kReply, micro_batch, shared_.sends, shared_.receives);
    }
    shared_.blocks.wait(kReply, micro_batch);
    if (batch.num_tokens > 0) {
        check_shape(out, "out", DType::f32, {batch.num_tokens, shared_.setup.options.dim});
        launch_combine({.format = shared_.reply,
                        .blocks = batch.in.data(),
                        .items = batch.items.as<PlanItem>(),
                        .weights = batch.weights.as<float>(),
                        .num_tokens = batch.num_tokens,
                        .topk = static_cast<int32_t>(shared_.setup.options.topk),
                        .num_ranks = static_cast<int32_t>(expert_ranks_.size()),
                        .reduced = shared_.setup.options.combine == CombineMode::reduced,
                        .out = out.as<float>(),
                        .out_stride = out.row_stride(),
                        .step = repeated_step(micro_batch)},
                       shared_.stream());
    }
    if (!shared_.is_last_layer(layer)) return {};
    if (repeats_) {
        shared_.blocks.wait(kDispatch, micro_batch);  // the step ends with all of its groups
        launch_copy(pinned_headers_.as<MessageHeader>() + micro_batch, batch.in.data(),
                    sizeof(MessageHeader), shared_.stream());
        return {};
    }
    shared_.wait_on_host(kReply, micro_batch, Activity::waiting_combine, layer);
    return agreed_in(shared_.header_at(batch.in.data()), layer, batch.sequence);
}

Agreement DeviceAttentionSide::agreed_in(const MessageHeader& header, int layer,
                                         uint32_t sequence) const {
    if (header.magic != kWireMagic || header.layer != layer || header.sequence != sequence)
        throw Error(ErrorKind::communication,
                    "rank {} on {} sent exchange {} of layer {}, but exchange {} of layer {} was "
                    "awaited; do all ranks run the same build and configuration?",
                    expert_ranks_[0], shared_.blocks.host(expert_ranks_[0]), header.sequence,
                    header.layer, sequence, layer);
    return {header.agree_any, header.agree_max};
}

// The host writes what the step before, which it has waited for, has read.
void DeviceAttentionSide::begin_repeated_step(Agreement say, std::span<const int64_t> num_tokens,
                                              int64_t max_tokens) {
    FERRY_CHECK(!shared_.sized() && num_tokens.size() == batches_.size(),
                "{} micro-batches of {} tokens", num_tokens.size(), max_tokens);
    repeats_ = true;
    shared_.blocks.settle();
    shared_.hold(max_tokens);
    for (size_t m = 0; m < batches_.size(); ++m)
        pinned_steps_.as<RepeatedStep>()[m] = {.num_tokens = static_cast<int32_t>(num_tokens[m]),
                                               .agree_any = say.any,
                                               .agree_max = say.max,
                                               .sequence = batches_[m].sequence};
    launch_copy(device_steps_.data(), pinned_steps_.data(), batches_.size() * sizeof(RepeatedStep),
                shared_.stream());
}

Agreement DeviceAttentionSide::end_repeated_step() {
    const int last_layer = shared_.setup.first_layer + shared_.setup.num_layers - 1;
    repeats_ = false;
    shared_.wait_for_step(step_done_, Activity::waiting_combine);
    shared_.hold_most();
    Agreement agreed;
    for (size_t m = 0; m < batches_.size(); ++m) {
        batches_[m].sequence += static_cast<uint32_t>(shared_.setup.num_layers);
        agreed =
            agreed_in(pinned_headers_.as<MessageHeader>()[m], last_layer, batches_[m].sequence);
    }
    return agreed;
}

void DeviceAttentionSide::close() {
    PackParams params{.items = batches_[0].items.as<PlanItem>()};
    params.header = {.flags = kWireClosed, .layer = -1};
    start(shared_.setup.first_layer, 0, params);
    shared_.wait_on_host(kDispatch, 0, Activity::finishing, -1);
    if (experts_ != nullptr) experts_->close();
}

// ---- Expert side

DeviceExpertSide::DeviceExpertSide(DeviceShared& shared)
    : shared_(shared),
      attention_ranks_(shared.ranks_of_attention()),
      next_{.layer = shared.setup.first_layer},
      pinned_header_(pinned_host_memory(sizeof(MessageHeader))),
      step_done_(shared.device()) {
    const ExchangeOptions& options = shared.setup.options;
    CudaDevice& device = shared.device();
    const size_t num = attention_ranks_.size();
    for (int m = 0; m < options.num_micro_batches; ++m)
        batches_.push_back(
            {.in = {Buffer(device, num * static_cast<size_t>(shared.dispatch.size_bytes))},
             .out = {Buffer(device, num * static_cast<size_t>(shared.reply.size_bytes))},
             .received = std::vector<MessageHeader>(num)});
    const auto max_rows = static_cast<int64_t>(num) * shared.dispatch.max_entries;
    const auto slots = static_cast<size_t>(shared.max_slots);
    rows_ = Buffer(device, static_cast<size_t>(max_rows * options.dim) * sizeof(float));
    counts_ = Buffer(device, slots * sizeof(int32_t));
    offsets_ = Buffer(device, (slots + 1) * sizeof(int64_t));
    position_ = Buffer(device, static_cast<size_t>(max_rows) * sizeof(int32_t));
    load_ =
        Buffer(device, slots * static_cast<size_t>(shared.setup.num_blocks()) * sizeof(int64_t));
    load_on_host_.resize(slots);
}

void DeviceExpertSide::add_dispatch_blocks(int micro_batch) {
    batches_[static_cast<size_t>(micro_batch)].in.add_heads(shared_.receives, attention_ranks_,
                                                            shared_);
}

void DeviceExpertSide::add_dispatch_rows(int micro_batch) {
    MicroBatch& batch = batches_[static_cast<size_t>(micro_batch)];
    shared_.read_headers(batch.in.data(), batch.received);
    for (size_t a = 0; a < batch.received.size(); ++a) check_header(batch.received[a], a);
    batch.in.add_rows(shared_.receives, attention_ranks_, shared_, batch.received);
}

void DeviceExpertSide::check_format(const MessageHeader& header, size_t attention_rank) const {
    const int peer = attention_ranks_[attention_rank];
    if (header.magic != kWireMagic)
        throw Error(ErrorKind::communication,
                    "rank {} on {} sent a message of another format ({:#x}); do all ranks run the "
                    "same build?",
                    peer, shared_.blocks.host(peer), header.magic);
}

// Counts that the host goes by, so they must fit.
void DeviceExpertSide::check_header(const MessageHeader& header, size_t attention_rank) const {
    check_format(header, attention_rank);
    const int peer = attention_ranks_[attention_rank];
    if (header.num_rows < 0 || header.num_rows > shared_.dispatch.max_rows ||
        header.num_entries < 0 || header.num_entries > shared_.dispatch.max_entries)
        throw Error(ErrorKind::communication,
                    "rank {} on {} sent {} rows and {} entries, at most {} and {} fit; do all "
                    "ranks run the same build and configuration?",
                    peer, shared_.blocks.host(peer), header.num_rows, header.num_entries,
                    shared_.dispatch.max_rows, shared_.dispatch.max_entries);
}

const ExpertBatch* DeviceExpertSide::try_receive() {
    if (attention_ == nullptr) return receive();
    attention_->start_rows();
    if (started_.empty()) return nullptr;
    const Position position = started_.front();
    started_.erase(started_.begin());
    return take(position);
}

const ExpertBatch* DeviceExpertSide::receive() {
    if (attention_ != nullptr) return try_receive();
    if (closed_) return nullptr;
    const Position position = next_;
    const ExpertBatch* batch = receive_at(position);
    if (batch == nullptr) return nullptr;
    next_ = after(position);
    return batch;
}

DeviceExpertSide::Position DeviceExpertSide::after(Position position) const {
    const ExchangeSetup& setup = shared_.setup;
    const int first_round = setup.first_layer + setup.num_layers;
    if (position.micro_batch + 1 < setup.options.num_micro_batches)
        return {position.layer, position.micro_batch + 1, position.round};
    if (position.layer + 1 < first_round) return {position.layer + 1, 0};
    const bool another = position.round < setup.num_rounds;
    return {another ? first_round : setup.first_layer, 0, another ? position.round + 1 : 0};
}

const ExpertBatch* DeviceExpertSide::receive_at(Position position) {
    shared_.sends.clear();
    shared_.receives.clear();
    add_dispatch_blocks(position.micro_batch);
    shared_.blocks.exchange(kDispatch, position.micro_batch, shared_.sends, shared_.receives);
    if (repeats_) return take(position);
    const bool begins = position.layer == shared_.setup.first_layer && position.micro_batch == 0;
    if (begins || shared_.sized()) {
        ScopedZone zone(Zone::dispatch_wait, position.layer, position.micro_batch);
        shared_.wait_on_host(kDispatch, position.micro_batch, Activity::waiting_dispatch,
                             position.layer);
        if (begins && !begin_step()) return nullptr;
    }
    if (shared_.sized()) {
        shared_.receives.clear();
        add_dispatch_rows(position.micro_batch);
        shared_.blocks.exchange(kDispatch, position.micro_batch, shared_.sends, shared_.receives);
    }
    return take(position);
}

// What the attention ranks say with the first messages of a step, which are here. False: it is no
// step, they have closed.
bool DeviceExpertSide::begin_step() {
    std::vector<MessageHeader>& headers = batches_[0].received;
    shared_.read_headers(batches_[0].in.data(), headers);
    batch_.agreed = {};
    for (size_t a = 0; a < headers.size(); ++a) {
        check_header(headers[a], a);
        closed_ = closed_ || (headers[a].flags & kWireClosed) != 0;
        batch_.agreed.any |= headers[a].agree_any;
        batch_.agreed.max = std::max(batch_.agreed.max, headers[a].agree_max);
    }
    return !closed_;
}

void DeviceExpertSide::begin_repeated_step(int64_t max_tokens) {
    FERRY_CHECK(next_.layer == shared_.setup.first_layer && next_.micro_batch == 0,
                "a step begins in layer {}", next_.layer);
    repeats_ = true;
    shared_.blocks.settle();
    shared_.hold(max_tokens);
}

Agreement DeviceExpertSide::end_repeated_step() {
    repeats_ = false;
    shared_.wait_for_step(step_done_, Activity::waiting_dispatch);
    shared_.hold_most();
    const MessageHeader& header = *pinned_header_.as<MessageHeader>();
    check_format(header, 0);
    return {header.agree_any, header.agree_max};
}

const ExpertBatch* DeviceExpertSide::take(Position position) {
    ScopedZone zone(Zone::pack, position.layer, position.micro_batch);
    const MicroBatch& batch = batches_[static_cast<size_t>(position.micro_batch)];
    const int slots = num_slots(position.layer);
    shared_.blocks.wait(kDispatch, position.micro_batch);
    const int index = position.layer - shared_.setup.first_layer;
    unpack_ = {.format = shared_.dispatch,
               .blocks = batch.in.data(),
               .num_sources = static_cast<int32_t>(attention_ranks_.size()),
               .num_slots = slots,
               .max_rows = max_rows(),
               .counts = counts_.as<int32_t>(),
               .load = load_.as<int64_t>() + static_cast<int64_t>(index) * shared_.max_slots,
               .offsets = offsets_.as<int64_t>(),
               .position = position_.as<int32_t>(),
               .rows = rows_.as<float>()};
    launch_order(unpack_, shared_.stream());
    launch_unpack(unpack_, shared_.stream());
    batch_.layer = position.layer;
    batch_.micro_batch = position.micro_batch;
    batch_.rows = Tensor(rows_.data(), DType::f32, {max_rows(), shared_.setup.options.dim});
    batch_.device_offsets = {offsets_.as<int64_t>(), static_cast<size_t>(slots) + 1};
    return &batch_;
}

void DeviceExpertSide::reply(const Tensor& y) {
    ScopedZone zone(Zone::reply, batch_.layer, batch_.micro_batch);
    check_shape(y, "y", DType::f32, {max_rows(), shared_.setup.options.dim});
    MicroBatch& batch = batches_[static_cast<size_t>(batch_.micro_batch)];
    shared_.blocks.wait(kReply, batch_.micro_batch);  // the last reply may still be leaving
    launch_reply({.request = unpack_,
                  .format = shared_.reply,
                  .reduced = shared_.setup.options.combine == CombineMode::reduced,
                  .y = y.as<float>(),
                  .blocks = batch.out.data()},
                 shared_.stream());
    shared_.sends.clear();
    shared_.receives.clear();
    batch.out.add_reply(shared_.sends, attention_ranks_, shared_, batch.received);
    if (attention_ != nullptr) attention_->add_reply_blocks(batch_.micro_batch);
    shared_.blocks.exchange(kReply, batch_.micro_batch, shared_.sends, shared_.receives);
    zone.bytes = total_bytes(shared_.sends);
    if (!repeats_ || !shared_.is_last_layer(batch_.layer)) return;
    shared_.blocks.wait(kReply, batch_.micro_batch);  // the step ends with all of its groups
    if (batch_.micro_batch == 0)
        launch_copy(pinned_header_.data(), batch.out.data(), sizeof(MessageHeader),
                    shared_.stream());
}

std::span<const int64_t> DeviceExpertSide::load(int layer) {
    const int index = layer - shared_.setup.first_layer;
    shared_.device().copy_to_host(
        load_on_host_.data(), load_.as<int64_t>() + static_cast<int64_t>(index) * shared_.max_slots,
        load_on_host_.size() * sizeof(int64_t));
    return {load_on_host_.data(), static_cast<size_t>(num_slots(layer))};
}

// ---- Both

class DeviceExchange final : public Exchange {
  public:
    DeviceExchange(const ExchangeSetup& setup, BlockTransport& blocks)
        : shared_{.setup = setup,
                  .blocks = blocks,
                  .attention_rank = setup.layout.attention_rank(blocks.rank()),
                  .expert_rank = setup.layout.expert_rank(blocks.rank())} {
        for (const Placement& placement : setup.placements)
            shared_.max_slots = std::max(shared_.max_slots, placement.max_slots());
        shared_.hold_most();
        if (shared_.expert_rank >= 0) experts_.emplace(shared_);
        if (shared_.attention_rank >= 0)
            attention_.emplace(shared_, experts_ ? &*experts_ : nullptr);
        if (experts_ && attention_) experts_->set_attention(&*attention_);
    }
    AttentionSide* attention() override { return attention_ ? &*attention_ : nullptr; }
    ExpertSide* experts() override { return experts_ ? &*experts_ : nullptr; }
    int64_t max_repeated_tokens() const override {  // sized messages need the host
        return shared_.sized() ? 0 : shared_.setup.options.bounded_tokens;
    }
    std::span<const int64_t> expert_load(int layer) const override {
        FERRY_CHECK(experts_.has_value());
        return experts_->load(layer);
    }
    ExchangeTimes times() const override { return {}; }  // the host does not see replies come
    void begin_wait(int, int) override {}
    void wait_a_little(int) override {}
    void end_wait() override {}

  private:
    DeviceShared shared_;
    mutable std::optional<DeviceExpertSide> experts_;
    std::optional<DeviceAttentionSide> attention_;
};

}  // namespace

std::unique_ptr<Exchange> make_device_exchange(const ExchangeSetup& setup, BlockTransport& blocks) {
    ExchangeSetup checked = setup;
    ExchangeOptions& options = checked.options;
    FERRY_CHECK(setup.layout.num_ranks() == blocks.num_ranks());
    FERRY_CHECK(options.num_micro_batches <= kBlockSlots);
    if (options.topk > kMaxTopk)
        throw Error(ErrorKind::usage, "exchange: top-{} on GPUs, at most {} are built in",
                    options.topk, kMaxTopk);
    if (options.bounded_tokens == 0 || options.mode != ExchangeMode::bounded)
        options.bounded_tokens = options.max_tokens;
    options.bounded_tokens = std::min(options.bounded_tokens, options.max_tokens);
    return std::make_unique<DeviceExchange>(checked, blocks);
}

}  // namespace ferry
