#include <algorithm>

#include "base/error.h"
#include "base/trace_marks.h"
#include "comm/exchange_sides.h"
#include "comm/row_codec.h"

namespace ferry {
namespace {

constexpr int64_t kTokensPerTask = 4;

}  // namespace

AttentionSideImpl::AttentionSideImpl(ExchangeShared& shared, int attention_rank)
    : shared_(shared), attention_rank_(attention_rank) {
    const ExchangeOptions& options = shared.setup.options;
    const Layout& layout = shared.setup.layout;
    for (int m = 0; m < options.num_micro_batches; ++m) {
        MicroBatch batch{
            .plan = ExchangePlan(options.max_tokens, options.topk, layout.num_expert()),
            .peers = std::vector<Peer>(layout.num_expert())};
        for (int e = 0; e < layout.num_expert(); ++e) {
            const int peer = layout.world_rank_of_expert(e);
            Transport& t = shared.transport;
            Peer& lanes = batch.peers[e];
            lanes.out.slot =
                t.open_send({peer, m * 4, LaneKind::slot, shared.dispatch_slot_bytes(e)});
            lanes.out.sized = t.open_send({peer, m * 4 + 1, LaneKind::sized, 0});
            lanes.in.slot =
                t.open_receive({peer, m * 4 + 2, LaneKind::slot, shared.reply_slot_bytes(e)});
            lanes.in.sized = t.open_receive({peer, m * 4 + 3, LaneKind::sized, 0});
        }
        shared.open_board(m);
        batches_.push_back(std::move(batch));
    }
    sends_.reserve(static_cast<size_t>(layout.num_expert()) * 2);
    terms_.resize(static_cast<size_t>(shared.num_threads() * options.topk));
}

void AttentionSideImpl::dispatch(int layer, int micro_batch, const Tensor& x,
                                 const Routing& routing, Agreement say) {
    ScopedZone zone(Zone::pack, layer, micro_batch);
    MicroBatch& batch = batches_[micro_batch];
    FERRY_CHECK(!batch.in_flight, "micro-batch {} is still in flight", micro_batch);
    batch.plan.build(routing, shared_.placement(layer), attention_rank_);
    FERRY_CHECK(batch.plan.num_tokens() == (x.rank() == 0 ? 0 : x.rows()));
    if (batch.plan.num_tokens() > 0)
        check_shape(x, "x", DType::f32, {x.rows(), shared_.setup.options.dim});
    batch.layer = layer;
    batch.in_flight = true;
    trace_marks().add(Station::dispatch, layer, micro_batch, batch.sequence + 1);
    expect_replies(batch);
    zone.bytes += start_messages(batch, micro_batch, say);
    pack_rows(batch, x);
    shared_.transport.send(sends_);
    batch.dispatched_ns = trace_now_ns();
    trace_marks().add(Station::dispatched, layer, micro_batch, batch.sequence);
}

// Headers of all messages, and room for their rows: on the board for peers that read it, however
// many rows these are.
int64_t AttentionSideImpl::start_messages(MicroBatch& batch, int micro_batch, Agreement say) {
    Transport& transport = shared_.transport;
    const ExchangeOptions& options = shared_.setup.options;
    const int num_experts = static_cast<int>(batch.peers.size());
    const WireMessage board = shared_.board(transport.rank(), micro_batch);
    int64_t num_bytes = 0;
    ++batch.sequence;
    sends_.clear();
    for (int i = 0; i < num_experts; ++i) {
        const int e = (attention_rank_ + i) % num_experts;  // not everybody to rank 0 first
        Peer& peer = batch.peers[e];
        const int world_rank = shared_.setup.layout.world_rank_of_expert(e);
        const int64_t num_rows = batch.plan.num_rows(e);
        const int64_t num_entries = batch.plan.num_entries(e);
        const size_t slot = shared_.dispatch_slot_bytes(e);
        const size_t whole = shared_.dispatch_layout(num_rows, num_entries).size_bytes();
        const size_t without_rows =
            shared_.dispatch_layout(num_rows, num_entries, WireRowsLie::on_board).size_bytes();
        const bool on_board =
            board.base != nullptr && without_rows <= slot && transport.reads_boards(world_rank);
        const size_t size = on_board ? without_rows : whole;
        const bool fits = size <= slot;
        if (whole > slot && options.mode == ExchangeMode::bounded)
            throw Error(ErrorKind::usage,
                        "exchange: {} rows for rank {} do not fit its bounded slot; raise "
                        "exchange.bounded_tokens ({}) or use exchange.mode: auto",
                        num_rows, world_rank, options.bounded_tokens);
        shared_.wait_sent(peer.out.slot, world_rank, Activity::waiting_combine, batch.layer,
                          micro_batch);
        const uint32_t rows_flag = fits ? 0u : kWireBodyFollows;
        const MessageHeader header{.flags = on_board ? kWireOnBoard : rows_flag,
                                   .layer = batch.layer,
                                   .micro_batch = micro_batch,
                                   .num_rows = static_cast<int32_t>(num_rows),
                                   .num_entries = static_cast<int32_t>(num_entries),
                                   .agree_any = say.any,
                                   .agree_max = say.max,
                                   .sequence = batch.sequence};
        *reinterpret_cast<MessageHeader*>(transport.buffer(peer.out.slot)) = header;
        LaneId rows_lane = peer.out.slot;
        if (!fits) {
            rows_lane = peer.out.sized;
            shared_.wait_sent(rows_lane, world_rank, Activity::waiting_combine, batch.layer,
                              micro_batch);
            transport.reserve(rows_lane, size);
            sends_.push_back({peer.out.slot, kHeaderBytes});
            num_bytes += static_cast<int64_t>(kHeaderBytes);
        }
        sends_.push_back({rows_lane, size});
        num_bytes += static_cast<int64_t>(whole);
        peer.message = WireMessage(transport.buffer(rows_lane), options.dtype, options.dim,
                                   num_rows, num_entries, on_board ? &board : nullptr);
    }
    return num_bytes;
}

void AttentionSideImpl::pack_rows(const MicroBatch& batch, const Tensor& x) {
    const ExchangeOptions& options = shared_.setup.options;
    const auto row_bytes =
        static_cast<size_t>(options.dim) * static_cast<size_t>(size_bytes(options.dtype));
    const auto pack = [&](int64_t begin, int64_t end, int) {
        for (int64_t token = begin; token < end; ++token) {
            const std::byte* packed = nullptr;  // a token is rounded once, then copied
            const float* packed_scales = nullptr;
            const std::span<const PlanItem> items = batch.plan.items(token);
            for (size_t k = 0; k < items.size(); ++k) {
                const PlanItem& item = items[k];
                const WireMessage& message = batch.peers[item.expert_rank].message;
                message.entries()[item.entry] = {item.row, item.slot, static_cast<uint16_t>(k),
                                                 batch.plan.weights(token)[k]};
                if (!item.first) continue;
                if (message.places != nullptr)
                    message.places[item.row] = static_cast<int32_t>(token);
                std::byte* row = message.row(item.row);
                float* scales = message.scales(item.row);
                if (packed == nullptr) {
                    encode_row(options.dtype, x.row<float>(token), options.dim, row, scales);
                    packed = row;
                    packed_scales = scales;
                } else if (row != packed) {
                    std::copy_n(packed, row_bytes, row);
                    std::copy_n(packed_scales, message.row_scales, scales);
                }
            }
        }
    };
    shared_.parallel(batch.plan.num_tokens(), kTokensPerTask, pack);
}

// Both ends know the size of a reply from the dispatch.
void AttentionSideImpl::expect_replies(MicroBatch& batch) {
    Transport& transport = shared_.transport;
    for (size_t e = 0; e < batch.peers.size(); ++e) {
        Peer& peer = batch.peers[e];
        const int rank = static_cast<int>(e);
        const int64_t rows =
            shared_.reply_rows(batch.plan.num_rows(rank), batch.plan.num_entries(rank));
        const size_t size = shared_.reply_layout(rows).size_bytes();
        const bool fits = size <= shared_.reply_slot_bytes(rank);
        peer.reply_lane = fits ? peer.in.slot : peer.in.sized;
        if (!fits) {
            transport.reserve(peer.reply_lane, size);
            transport.expect(peer.reply_lane, size);
        }
        peer.done = false;
    }
    batch.num_waiting = static_cast<int>(batch.peers.size());
}

bool AttentionSideImpl::combine_ready(int micro_batch) {
    MicroBatch& batch = batches_[micro_batch];
    FERRY_CHECK(batch.in_flight, "micro-batch {} was not dispatched", micro_batch);
    if (batch.num_waiting == 0) return true;
    shared_.transport.progress();
    for (size_t e = 0; e < batch.peers.size(); ++e) {
        Peer& peer = batch.peers[e];
        if (peer.done || !shared_.transport.arrived(peer.reply_lane)) continue;
        const int rank = static_cast<int>(e);
        const int64_t rows =
            shared_.reply_rows(batch.plan.num_rows(rank), batch.plan.num_entries(rank));
        peer.message =
            WireMessage(shared_.transport.buffer(peer.reply_lane),
                        combine_dtype(shared_.setup.options), shared_.setup.options.dim, rows, 0);
        shared_.check_header(peer.message.header(), shared_.setup.layout.world_rank_of_expert(rank),
                             batch.layer, micro_batch, batch.sequence);
        peer.done = true;
        --batch.num_waiting;
    }
    return batch.num_waiting == 0;
}

Agreement AttentionSideImpl::combine(int layer, int micro_batch, const Tensor& out) {
    MicroBatch& batch = batches_[micro_batch];
    FERRY_CHECK(layer == batch.layer, "combine of layer {}, but layer {} was dispatched", layer,
                batch.layer);
    if (batch.num_waiting > 0) {
        // The first look too: MPI may give the core away in it.
        ScopedZone zone(Zone::combine_wait, layer, micro_batch);
        shared_.waiter.begin(Activity::waiting_combine, layer, micro_batch);
        while (!combine_ready(micro_batch))
            shared_.waiter.poll([&](auto add) { missing(micro_batch, add); });
        shared_.waiter.end();
    }
    ++times_.num;
    times_.in_flight_ns += trace_now_ns() - batch.dispatched_ns;
    ScopedZone zone(Zone::combine, layer, micro_batch);
    trace_marks().add(Station::combine, layer, micro_batch, batch.sequence);
    if (batch.plan.num_tokens() > 0) {
        check_shape(out, "out", DType::f32, {batch.plan.num_tokens(), shared_.setup.options.dim});
        if (shared_.setup.options.combine == CombineMode::exact)
            combine_exact(batch, out);
        else
            combine_reduced(batch, out);
    }
    batch.in_flight = false;
    const MessageHeader& header = batch.peers[0].message.header();
    const Agreement agreed{header.agree_any, header.agree_max};
    for (size_t e = 0; e < batch.peers.size(); ++e)
        if (batch.peers[e].reply_lane == batch.peers[e].in.slot)
            shared_.transport.expect(batch.peers[e].in.slot,
                                     shared_.reply_slot_bytes(static_cast<int>(e)));
    return agreed;
}

void AttentionSideImpl::combine_exact(const MicroBatch& batch, const Tensor& out) {
    const int64_t dim = shared_.setup.options.dim;
    const int64_t topk = batch.plan.topk();
    const DType dtype = combine_dtype(shared_.setup.options);
    const auto sum = [&](int64_t begin, int64_t end, int thread) {
        const std::span terms(terms_.data() + thread * topk, static_cast<size_t>(topk));
        for (int64_t token = begin; token < end; ++token) {
            const std::span<const PlanItem> items = batch.plan.items(token);
            for (size_t k = 0; k < items.size(); ++k)
                terms[k] = {batch.peers[items[k].expert_rank].message.row(items[k].entry),
                            batch.plan.weights(token)[k]};
            sum_rows(dtype, terms, dim, out.row<float>(token));
        }
    };
    shared_.parallel(batch.plan.num_tokens(), kTokensPerTask, sum);
}

void AttentionSideImpl::combine_reduced(const MicroBatch& batch, const Tensor& out) {
    const int64_t dim = shared_.setup.options.dim;
    const int64_t topk = batch.plan.topk();
    const DType dtype = combine_dtype(shared_.setup.options);
    const auto sum = [&](int64_t begin, int64_t end, int thread) {
        for (int64_t token = begin; token < end; ++token) {
            // Partial sums in order of expert ranks, whatever the order of slots.
            WeightedRow* terms = terms_.data() + thread * topk;
            size_t num = 0;
            for (int last_rank = -1;;) {
                const PlanItem* next = nullptr;
                for (const PlanItem& item : batch.plan.items(token))
                    if (item.first && item.expert_rank > last_rank &&
                        (next == nullptr || item.expert_rank < next->expert_rank))
                        next = &item;
                if (next == nullptr) break;
                terms[num++] = {batch.peers[next->expert_rank].message.row(next->row), 1.0f};
                last_rank = next->expert_rank;
            }
            sum_rows(dtype, {terms, num}, dim, out.row<float>(token));
        }
    };
    shared_.parallel(batch.plan.num_tokens(), kTokensPerTask, sum);
}

void AttentionSideImpl::close() {
    sends_.clear();
    for (MicroBatch& batch : batches_) FERRY_CHECK(!batch.in_flight, "close before combine");
    MicroBatch& batch = batches_[0];
    for (size_t e = 0; e < batch.peers.size(); ++e) {
        const LaneId lane = batch.peers[e].out.slot;
        const int world_rank = shared_.setup.layout.world_rank_of_expert(static_cast<int>(e));
        shared_.wait_sent(lane, world_rank, Activity::finishing, -1, 0);
        *reinterpret_cast<MessageHeader*>(shared_.transport.buffer(lane)) = {
            .flags = kWireClosed, .layer = -1, .sequence = batch.sequence + 1};
        sends_.push_back({lane, kHeaderBytes});
    }
    shared_.transport.send(sends_);
    for (size_t e = 0; e < batch.peers.size(); ++e)
        shared_.wait_sent(batch.peers[e].out.slot,
                          shared_.setup.layout.world_rank_of_expert(static_cast<int>(e)),
                          Activity::finishing, -1, 0);
}

}  // namespace ferry
