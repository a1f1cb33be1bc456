#include <algorithm>

#include "base/error.h"
#include "base/trace_marks.h"
#include "comm/exchange_sides.h"
#include "comm/row_codec.h"

namespace ferry {
namespace {

constexpr int64_t kRowsPerTask = 4;

}  // namespace

ExpertSideImpl::ExpertSideImpl(ExchangeShared& shared, int expert_rank)
    : shared_(shared), expert_rank_(expert_rank) {
    const ExchangeOptions& options = shared.setup.options;
    const Layout& layout = shared.setup.layout;
    const int num_slots = shared.max_slots(expert_rank);
    for (int m = 0; m < options.num_micro_batches; ++m) {
        MicroBatch batch{.sources = std::vector<Source>(layout.num_attention()),
                         .arrived_ns = std::vector<int64_t>(layout.num_attention())};
        for (int a = 0; a < layout.num_attention(); ++a) {
            const int peer = layout.world_rank_of_attention(a);
            Transport& t = shared.transport;
            Source& lanes = batch.sources[a];
            lanes.in.slot = t.open_receive(
                {peer, m * 4, LaneKind::slot, shared.dispatch_slot_bytes(expert_rank)});
            lanes.in.sized = t.open_receive({peer, m * 4 + 1, LaneKind::sized, 0});
            lanes.out.slot = t.open_send(
                {peer, m * 4 + 2, LaneKind::slot, shared.reply_slot_bytes(expert_rank)});
            lanes.out.sized = t.open_send({peer, m * 4 + 3, LaneKind::sized, 0});
        }
        batches_.push_back(std::move(batch));
    }
    offsets_.resize(static_cast<size_t>(num_slots) + 1);
    next_.resize(num_slots);
    first_entry_.resize(static_cast<size_t>(layout.num_attention()) + 1);
    first_row_.resize(static_cast<size_t>(layout.num_attention()) + 1);
    if (options.combine == CombineMode::reduced) {
        sums_.resize(static_cast<size_t>(shared.num_threads() * options.dim));
        terms_.resize(static_cast<size_t>(shared.num_threads() * options.topk));
    }
    load_.assign(shared.setup.num_blocks(), std::vector<int64_t>(num_slots));
    sends_.reserve(layout.num_attention());

    // Twice an even share of full bounded slots, or the worst case if that is less; batches beyond
    // it grow the buffers to their high-water mark.
    const int64_t tokens = layout.num_attention() * options.bounded_tokens;
    const int64_t share = tokens * options.topk * 2 / layout.num_expert();
    const int64_t worst = tokens * std::min<int64_t>(options.topk, num_slots);
    grow(std::min(share, worst));
    position_.reserve(static_cast<size_t>(std::min(share, worst)));
    received_.reserve(static_cast<size_t>(std::min(share, worst)));
    row_entry_.reserve(static_cast<size_t>(tokens + 2 * layout.num_attention()));
}

void ExpertSideImpl::grow(int64_t num_rows) {
    const size_t bytes = static_cast<size_t>(num_rows * shared_.setup.options.dim) * sizeof(float);
    if (bytes > rows_.size_bytes()) {
        rows_ = Buffer();  // never hold both
        rows_ = Buffer(cpu_device(), bytes + bytes / 4);
    }
}

void ExpertSideImpl::poll_source(int micro_batch, int index) {
    Transport& transport = shared_.transport;
    const ExchangeOptions& options = shared_.setup.options;
    MicroBatch& batch = batches_[micro_batch];
    Source& source = batch.sources[index];
    const int peer = shared_.setup.layout.world_rank_of_attention(index);
    if (source.state == State::header && transport.arrived(source.in.slot)) {
        std::byte* memory = transport.buffer(source.in.slot);
        const MessageHeader& header = *reinterpret_cast<const MessageHeader*>(memory);
        shared_.check_header(header, peer, header.layer, micro_batch, batch.sequence + 1);
        if (header.flags & kWireClosed) {
            source.state = State::closed;
            ++num_closed_;
            return;
        }
        const int num_rows = header.num_rows;
        const int num_entries = header.num_entries;
        if (header.flags & kWireBodyFollows) {
            const size_t size = shared_.dispatch_layout(num_rows, num_entries).size_bytes();
            transport.reserve(source.in.sized, size);
            transport.expect(source.in.sized, size);
            memory = transport.buffer(source.in.sized);
            source.state = State::body;
        } else {
            complete(batch, index);
        }
        const bool on_board = (header.flags & kWireOnBoard) != 0;
        const WireMessage board = on_board ? shared_.board(peer, micro_batch) : WireMessage();
        if (on_board && board.base == nullptr)
            throw Error(ErrorKind::communication,
                        "rank {} on {} sent rows by a board that rank {} cannot read; do all ranks "
                        "run the same build?",
                        peer, transport.host(peer), transport.rank());
        source.message = WireMessage(memory, options.dtype, options.dim, num_rows, num_entries,
                                     on_board ? &board : nullptr);
    }
    if (source.state == State::body && transport.arrived(source.in.sized)) {
        complete(batch, index);
    }
}

void ExpertSideImpl::complete(MicroBatch& batch, int source) {
    batch.sources[source].state = State::complete;
    batch.arrived_ns[source] = trace_now_ns();
    ++batch.num_complete;
}

int ExpertSideImpl::find_complete() {
    FERRY_CHECK(!outstanding_, "reply to the batch before receiving the next");
    shared_.transport.progress();
    const int num = static_cast<int>(batches_.size());
    for (int i = 0; i < num; ++i) {
        const int m = (next_micro_batch_ + i) % num;
        MicroBatch& batch = batches_[m];
        const int num_sources = static_cast<int>(batch.sources.size());
        for (int s = 0; s < num_sources; ++s)
            if (batch.sources[s].state != State::complete) poll_source(m, s);
        if (batch.num_complete < num_sources) continue;
        next_micro_batch_ = (m + 1) % num;
        return m;
    }
    return -1;
}

const ExpertBatch* ExpertSideImpl::try_receive() {
    const int micro_batch = find_complete();
    if (micro_batch < 0) return nullptr;
    start_batch(micro_batch);
    return &batch_;
}

const ExpertBatch* ExpertSideImpl::receive() {
    const int micro_batch = wait_for_complete();
    if (micro_batch < 0) return nullptr;
    start_batch(micro_batch);
    return &batch_;
}

// -1 when every attention rank has closed. The first look counts as waiting too: MPI may give the
// core away in it.
int ExpertSideImpl::wait_for_complete() {
    ScopedZone zone(Zone::dispatch_wait, batch_.layer, next_micro_batch_);
    int micro_batch = find_complete();
    if (micro_batch >= 0 || closed()) return micro_batch;
    shared_.waiter.begin(Activity::waiting_dispatch, batch_.layer, next_micro_batch_);
    while ((micro_batch = find_complete()) < 0 && !closed())
        shared_.waiter.poll([&](auto add) { missing(next_micro_batch_, add); });
    shared_.waiter.end();
    return micro_batch;
}

// All sources are here: put their entries in order.
void ExpertSideImpl::start_batch(int micro_batch) {
    MicroBatch& batch = batches_[micro_batch];
    ++batch.sequence;
    batch_.agreed = {};
    // The layer stands in the slot's header, also when the rows came in a body.
    const auto header_of = [&](const Source& source) -> const MessageHeader& {
        return *reinterpret_cast<const MessageHeader*>(shared_.transport.buffer(source.in.slot));
    };
    const int layer = header_of(batch.sources[0]).layer;
    for (size_t s = 0; s < batch.sources.size(); ++s) {
        const MessageHeader& header = header_of(batch.sources[s]);
        shared_.check_header(header,
                             shared_.setup.layout.world_rank_of_attention(static_cast<int>(s)),
                             layer, micro_batch, batch.sequence);
        batch_.agreed.any |= header.agree_any;
        batch_.agreed.max = std::max(batch_.agreed.max, header.agree_max);
    }
    ScopedZone zone(Zone::pack, layer, micro_batch);
    trace_marks().add(Station::received, layer, micro_batch, batch.sequence);
    batch_.layer = layer;
    batch_.micro_batch = micro_batch;
    batch_.arrived_ns = batch.arrived_ns;
    order_entries(batch);
    list_rows(batch);
    outstanding_ = true;
}

// Order of rows: (slot, source, token). A counting sort over entries, which are in order of tokens.
void ExpertSideImpl::order_entries(const MicroBatch& batch) {
    const auto num_slots =
        static_cast<int>(shared_.placement(batch_.layer).experts(expert_rank_).size());
    std::fill(next_.begin(), next_.end(), 0);
    int64_t num_entries = 0;
    int64_t num_rows = 0;
    for (size_t s = 0; s < batch.sources.size(); ++s) {
        const WireMessage& message = batch.sources[s].message;
        const MessageHeader& header = *reinterpret_cast<const MessageHeader*>(
            shared_.transport.buffer(batch.sources[s].in.slot));
        first_entry_[s] = num_entries;
        first_row_[s] = num_rows;
        for (int32_t e = 0; e < header.num_entries; ++e) {
            const WireEntry& entry = message.entries()[e];
            if (entry.slot >= num_slots || entry.row >= header.num_rows)
                throw Error(ErrorKind::communication,
                            "damaged message from rank {}: entry {} names slot {} of {}, row {} of "
                            "{}; do all ranks run the same build?",
                            shared_.setup.layout.world_rank_of_attention(static_cast<int>(s)), e,
                            entry.slot, num_slots, entry.row, header.num_rows);
            ++next_[entry.slot];
        }
        for (int32_t row = 0; message.places != nullptr && row < header.num_rows; ++row)
            if (message.places[row] < 0 || message.places[row] >= shared_.setup.options.max_tokens)
                throw Error(ErrorKind::communication,
                            "damaged message from rank {}: row {} lies at {} of {}; do all ranks "
                            "run the same build?",
                            shared_.setup.layout.world_rank_of_attention(static_cast<int>(s)), row,
                            message.places[row], shared_.setup.options.max_tokens);
        num_entries += header.num_entries;
        num_rows += header.num_rows + 1;
    }
    first_entry_[batch.sources.size()] = num_entries;
    first_row_[batch.sources.size()] = num_rows;

    std::vector<int64_t>& load = load_[batch_.layer - shared_.setup.first_layer];
    int64_t offset = 0;
    for (int slot = 0; slot < num_slots; ++slot) {
        load[slot] += next_[slot];
        offsets_[slot] = offset;
        offset += next_[slot];
        next_[slot] = offsets_[slot];
    }
    offsets_[num_slots] = offset;

    position_.resize(static_cast<size_t>(num_entries));
    row_entry_.resize(static_cast<size_t>(num_rows));
    for (size_t s = 0; s < batch.sources.size(); ++s) {
        const WireMessage& message = batch.sources[s].message;
        const auto entries = static_cast<int32_t>(first_entry_[s + 1] - first_entry_[s]);
        int32_t* row_entry = row_entry_.data() + first_row_[s];
        int32_t row = -1;
        for (int32_t e = 0; e < entries; ++e) {
            const WireEntry& entry = message.entries()[e];
            while (row < entry.row) row_entry[++row] = e;
            position_[static_cast<size_t>(first_entry_[s] + e)] =
                static_cast<int32_t>(next_[entry.slot]++);
        }
        row_entry[row + 1] = entries;
    }
    grow(offset);
    batch_.rows = Tensor(rows_.data(), DType::f32, {offset, shared_.setup.options.dim});
    batch_.offsets = {offsets_.data(), static_cast<size_t>(num_slots) + 1};
}

// Where the rows of the ordered entries lie.
void ExpertSideImpl::list_rows(const MicroBatch& batch) {
    received_.resize(static_cast<size_t>(batch_.rows.rows()));
    for (size_t s = 0; s < batch.sources.size(); ++s) {
        const WireMessage& message = batch.sources[s].message;
        for (int64_t e = first_entry_[s]; e < first_entry_[s + 1]; ++e) {
            const int32_t row = message.entries()[e - first_entry_[s]].row;
            received_[static_cast<size_t>(position_[static_cast<size_t>(e)])] = {
                message.row(row), message.scales(row)};
        }
    }
    const ExchangeOptions& options = shared_.setup.options;
    batch_.received = {options.dtype, options.dim, received_};
}

const Tensor& decode_rows(const ExpertBatch& batch, ThreadPool* threads) {
    const WireRows& from = batch.received;
    const Stores stores = stores_for(batch.rows.count() * 4);
    parallel_blocks(threads, from.count(), kRowsPerTask, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
            const WireRow& row = from.rows[static_cast<size_t>(i)];
            decode_row(from.dtype, row.values, row.scales, from.dim, batch.rows.row<float>(i),
                       stores);
        }
    });
    return batch.rows;
}

void ExpertSideImpl::reply(const Tensor& y) {
    FERRY_CHECK(outstanding_, "reply without a batch");
    const ExchangeOptions& options = shared_.setup.options;
    const Layout& layout = shared_.setup.layout;
    Transport& transport = shared_.transport;
    check_shape(y, "y", DType::f32, {batch_.rows.rows(), options.dim});
    ScopedZone zone(Zone::reply, batch_.layer, batch_.micro_batch);
    MicroBatch& batch = batches_[batch_.micro_batch];
    const int num_sources = static_cast<int>(batch.sources.size());
    for (int i = 0; i < num_sources; ++i) {
        const int s = (expert_rank_ + i) % num_sources;
        Source& source = batch.sources[s];
        const int64_t rows = shared_.reply_rows(first_row_[s + 1] - first_row_[s] - 1,
                                                first_entry_[s + 1] - first_entry_[s]);
        const size_t size = shared_.reply_layout(rows).size_bytes();
        const bool fits = size <= shared_.reply_slot_bytes(expert_rank_);
        const LaneId lane = fits ? source.out.slot : source.out.sized;
        shared_.wait_sent(lane, layout.world_rank_of_attention(s), Activity::waiting_dispatch,
                          batch_.layer, batch_.micro_batch);
        if (!fits) transport.reserve(lane, size);
        const WireMessage message(transport.buffer(lane), combine_dtype(options), options.dim, rows,
                                  0);
        message.header() = {.flags = kWireReply,
                            .layer = batch_.layer,
                            .micro_batch = batch_.micro_batch,
                            .num_rows = static_cast<int32_t>(rows),
                            .agree_any = batch_.agreed.any,
                            .agree_max = batch_.agreed.max,
                            .sequence = batch.sequence};
        pack_reply(message, source.message, s, y);
        // The reply lets the source dispatch again, so its slot must be free first.
        source.state = State::header;
        transport.expect(source.in.slot, shared_.dispatch_slot_bytes(expert_rank_));
        const LaneSend send{lane, size};
        transport.send({&send, 1});
        zone.bytes += static_cast<int64_t>(size);
    }
    trace_marks().add(Station::replied, batch_.layer, batch_.micro_batch, batch.sequence);
    batch.num_complete = 0;
    outstanding_ = false;
}

void ExpertSideImpl::reopen() {
    FERRY_CHECK(closed() && !outstanding_, "reopened before all attention ranks have closed");
    // They said so on the first micro-batch's lanes.
    for (Source& source : batches_[0].sources) {
        source.state = State::header;
        shared_.transport.expect(source.in.slot, shared_.dispatch_slot_bytes(expert_rank_));
    }
    num_closed_ = 0;
}

void ExpertSideImpl::pack_reply(const WireMessage& reply, const WireMessage& request, int source,
                                const Tensor& y) {
    const ExchangeOptions& options = shared_.setup.options;
    const DType dtype = combine_dtype(options);
    const int32_t* position = position_.data() + first_entry_[source];
    const int64_t num_entries = first_entry_[source + 1] - first_entry_[source];
    if (options.combine == CombineMode::exact) {
        const Stores stores = stores_for(y.count() * size_bytes(dtype));
        shared_.parallel(num_entries, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
            for (int64_t e = begin; e < end; ++e)
                encode_row(dtype, y.row<float>(position[e]), options.dim, reply.row(e), nullptr,
                           stores);
        });
        return;
    }
    const int32_t* row_entry = row_entry_.data() + first_row_[source];
    const int64_t num_rows = first_row_[source + 1] - first_row_[source] - 1;
    shared_.parallel(num_rows, kRowsPerTask, [&](int64_t begin, int64_t end, int thread) {
        float* sum = sums_.data() + thread * options.dim;
        WeightedRow* terms = terms_.data() + thread * options.topk;
        for (int64_t row = begin; row < end; ++row) {
            size_t num = 0;
            FERRY_CHECK(row_entry[row + 1] - row_entry[row] <= options.topk);
            for (int32_t e = row_entry[row]; e < row_entry[row + 1]; ++e)
                terms[num++] = {y.row<std::byte>(position[e]), request.entries()[e].weight};
            sum_rows(DType::f32, {terms, num}, options.dim, sum);
            encode_row(dtype, sum, options.dim, reply.row(row), nullptr);
        }
    });
}

std::span<const int64_t> ExpertSideImpl::load(int layer) const {
    const size_t slots = shared_.placement(layer).experts(expert_rank_).size();
    return {load_[layer - shared_.setup.first_layer].data(), slots};
}

}  // namespace ferry
