// The two sides of an exchange as exchange.cpp composes them. Not for users: see exchange.h.
#pragma once
#include <array>
#include <vector>

#include "base/trace.h"
#include "comm/exchange.h"
#include "comm/exchange_plan.h"
#include "comm/row_codec.h"
#include "comm/waiter.h"
#include "comm/wire.h"

namespace ferry {

// Lanes of one (pair of ranks, micro-batch, direction), seen from one end.
struct LanePair {
    LaneId slot = -1;
    LaneId sized = -1;
};

// fn(begin, end, thread) over [0, num) in blocks. `threads` may be null.
template <typename Fn>
void parallel_blocks(ThreadPool* threads, int64_t num, int64_t block, Fn&& fn) {
    const int64_t tasks = (num + block - 1) / block;
    auto body = [&](int64_t task, int thread) {
        fn(task * block, std::min(num, (task + 1) * block), thread);
    };
    if (threads != nullptr)
        threads->parallel_for(tasks, body);
    else
        for (int64_t task = 0; task < tasks; ++task) body(task, 0);
}

struct ExchangeShared {
    ExchangeSetup setup;
    Transport& transport;
    ThreadPool* threads;
    Waiter waiter;
    // Of micro-batch m the lanes have channels 4 m to 4 m + 3, the board (all tokens of an
    // attention rank) has channel m.
    void open_board(int micro_batch) const;
    // That of `writer`; its base is null where this rank cannot reach it.
    WireMessage board(int writer, int micro_batch) const;
    size_t dispatch_slot_bytes(int expert_rank) const;
    size_t reply_slot_bytes(int expert_rank) const;
    int max_slots(int expert_rank) const;

    const Placement& placement(int layer) const {
        const int idx = layer - setup.first_layer;
        FERRY_CHECK(idx >= 0 && idx < setup.num_blocks(), "layer {} has no experts", layer);
        return setup.placements.size() == 1 ? setup.placements[0] : setup.placements[idx];
    }
    // Rows that come back from an expert rank for so many rows and entries.
    int64_t reply_rows(int64_t num_rows, int64_t num_entries) const {
        return setup.options.combine == CombineMode::exact ? num_entries : num_rows;
    }
    WireLayout dispatch_layout(int64_t num_rows, int64_t num_entries,
                               WireRowsLie rows_lie = WireRowsLie::in_message) const {
        return wire_layout(setup.options.dtype, setup.options.dim, num_rows, num_entries, rows_lie);
    }
    WireLayout reply_layout(int64_t num_reply_rows) const {
        return wire_layout(combine_dtype(setup.options), setup.options.dim, num_reply_rows, 0);
    }
    template <typename Fn>
    void parallel(int64_t num, int64_t block, Fn&& fn) const {
        parallel_blocks(threads, num, block, fn);
    }
    int num_threads() const { return threads != nullptr ? threads->num_threads() : 1; }
    // The sender's side of a slot or sized message is free again.
    void wait_sent(LaneId lane, int peer, Activity activity, int layer, int micro_batch);
    // Throws Error(communication) naming the peer when the header is not what this end awaits.
    void check_header(const MessageHeader& header, int peer, int layer, int micro_batch,
                      uint32_t sequence) const;
};

class AttentionSideImpl final : public AttentionSide {
  public:
    AttentionSideImpl(ExchangeShared& shared, int attention_rank);

    void dispatch(int layer, int micro_batch, const Tensor& x, const Routing& routing,
                  Agreement say) override;
    bool combine_ready(int micro_batch) override;
    Agreement combine(int layer, int micro_batch, const Tensor& out) override;
    void close() override;
    ExchangeTimes times() const { return times_; }

    template <typename Fn>
    void missing(int micro_batch, Fn&& add) const {
        const MicroBatch& batch = batches_[micro_batch];
        for (size_t e = 0; e < batch.peers.size(); ++e)
            if (!batch.peers[e].done) add(shared_.setup.layout.world_rank_of_expert(e));
    }

  private:
    struct Peer {
        LanePair out, in;
        LaneId reply_lane = -1;  // of the current exchange: in.slot or in.sized
        WireMessage message;     // to the peer, then from it
        bool done = true;
    };
    struct MicroBatch {
        ExchangePlan plan;
        std::vector<Peer> peers;  // by expert rank
        int layer = -1;
        int num_waiting = 0;
        int64_t dispatched_ns = 0;
        bool in_flight = false;
        uint32_t sequence = 0;
    };

    // Returns the bytes that peers will have to read.
    int64_t start_messages(MicroBatch& batch, int micro_batch, Agreement say);
    void pack_rows(const MicroBatch& batch, const Tensor& x);
    void expect_replies(MicroBatch& batch);
    void combine_exact(const MicroBatch& batch, const Tensor& out);
    void combine_reduced(const MicroBatch& batch, const Tensor& out);

    ExchangeShared& shared_;
    int attention_rank_;
    std::vector<MicroBatch> batches_;
    std::vector<LaneSend> sends_;
    std::vector<WeightedRow> terms_;  // of one token's sum: [threads][topk]
    ExchangeTimes times_;
};

class ExpertSideImpl final : public ExpertSide {
  public:
    ExpertSideImpl(ExchangeShared& shared, int expert_rank);

    const ExpertBatch* try_receive() override;
    const ExpertBatch* receive() override;
    bool closed() const override { return num_closed_ == shared_.setup.layout.num_attention(); }
    void reply(const Tensor& y) override;
    void reopen() override;
    std::span<const int64_t> load(int layer) const;

    // Calls add(world rank) for attention ranks whose rows have not come; returns how many.
    template <typename Fn>
    int missing(int micro_batch, Fn&& add) const {
        int num = 0;
        const MicroBatch& batch = batches_[micro_batch];
        for (size_t s = 0; s < batch.sources.size(); ++s) {
            if (batch.sources[s].state == State::complete) continue;
            add(shared_.setup.layout.world_rank_of_attention(static_cast<int>(s)));
            ++num;
        }
        return num;
    }

  private:
    enum class State : uint8_t { header, body, complete, closed };
    struct Source {
        LanePair in, out;
        State state = State::header;
        WireMessage message;
    };
    struct MicroBatch {
        std::vector<Source> sources;      // by attention rank
        std::vector<int64_t> arrived_ns;  // by attention rank
        int num_complete = 0;
        uint32_t sequence = 0;
    };

    // The micro-batch whose rows are all here, or -1.
    int find_complete();
    int wait_for_complete();
    void poll_source(int micro_batch, int source);
    void complete(MicroBatch& batch, int source);
    void start_batch(int micro_batch);
    void order_entries(const MicroBatch& batch);
    void list_rows(const MicroBatch& batch);
    void grow(int64_t num_rows);
    void pack_reply(const WireMessage& reply, const WireMessage& request, int source,
                    const Tensor& y);

    ExchangeShared& shared_;
    int expert_rank_;
    std::vector<MicroBatch> batches_;
    int next_micro_batch_ = 0;  // asked first by try_receive
    int num_closed_ = 0;
    bool outstanding_ = false;

    ExpertBatch batch_;
    Buffer rows_;
    std::vector<WireRow> received_;
    std::vector<int64_t> offsets_;
    std::vector<int64_t> next_;               // by slot: next free row while ordering
    std::vector<int32_t> position_;           // of every entry, sources one after the other
    std::vector<int64_t> first_entry_;        // by source, into position_
    std::vector<int32_t> row_entry_;          // by source and row: first entry of the row
    std::vector<int64_t> first_row_;          // by source, into row_entry_
    std::vector<float> sums_;                 // reduced: [threads][dim]
    std::vector<WeightedRow> terms_;          // reduced: of one row's sum, [threads][topk]
    std::vector<std::vector<int64_t>> load_;  // by layer, by slot
    std::vector<LaneSend> sends_;
};

}  // namespace ferry
