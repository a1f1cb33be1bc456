// The parts that exchange_device.cpp is made of: placements on the GPU, blocks and what of them
// travels. Not for users: see exchange_device.h.
#pragma once
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/error.h"
#include "comm/block_transport.h"
#include "comm/exchange.h"
#include "comm/exchange_kernels.h"
#include "comm/progress_state.h"

namespace ferry {

// Channels.
constexpr int kDispatch = 0, kReply = 1;

template <typename T>
Buffer to_device(CudaDevice& device, const std::vector<T>& values) {
    Buffer buffer(device, values.size() * sizeof(T));
    device.copy_from_host(buffer.data(), values.data(), buffer.size_bytes());
    return buffer;
}

class PlacementOnDevice {
  public:
    PlacementOnDevice(CudaDevice& device, const Placement& placement) {
        std::vector<int32_t> first{0}, ranks, slots;
        for (int expert = 0; expert < placement.num_experts(); ++expert) {
            for (const ExpertCopy& copy : placement.copies(expert)) {
                ranks.push_back(copy.expert_rank);
                slots.push_back(copy.slot);
            }
            first.push_back(static_cast<int32_t>(ranks.size()));
        }
        first_copy_ = to_device(device, first);
        copy_rank_ = to_device(device, ranks);
        copy_slot_ = to_device(device, slots);
    }
    DevicePlacement view() const {
        return {first_copy_.as<int32_t>(), copy_rank_.as<int32_t>(), copy_slot_.as<int32_t>()};
    }

  private:
    Buffer first_copy_, copy_rank_, copy_slot_;
};

// What both sides of a rank go by.
struct DeviceShared {
    ExchangeSetup setup;
    BlockTransport& blocks;
    int max_slots = 0;                           // of any expert rank
    BlockFormat dispatch{}, reply{};             // of the step under way
    int attention_rank = -1, expert_rank = -1;   // of this rank
    std::vector<PeerBlock> sends{}, receives{};  // of the group that is being made

    CudaDevice& device() const { return blocks.device(); }
    CUstream_st* stream() const {
        device().make_current();
        return device().stream();
    }
    size_t placement_index(int layer) const {
        const int index = layer - setup.first_layer;
        FERRY_CHECK(index >= 0 && index < setup.num_blocks(), "layer {} has no experts", layer);
        return setup.placements.size() == 1 ? 0 : static_cast<size_t>(index);
    }
    // The only rank: its blocks stay where they are, both sides have the same ones.
    bool is_alone() const { return blocks.num_ranks() == 1; }
    bool is_last_layer(int layer) const {
        return layer + 1 == setup.first_layer + setup.num_layers;
    }
    std::vector<int> ranks_of_attention() const {
        std::vector<int> ranks;
        for (int a = 0; a < setup.layout.num_attention(); ++a)
            ranks.push_back(setup.layout.world_rank_of_attention(a));
        return ranks;
    }
    std::vector<int> ranks_of_experts() const {
        std::vector<int> ranks;
        for (int e = 0; e < setup.layout.num_expert(); ++e)
            ranks.push_back(setup.layout.world_rank_of_expert(e));
        return ranks;
    }
    // Blocks that hold so many tokens, all alike, so that any two ranks agree on their size.
    void hold(int64_t tokens) {
        const ExchangeOptions& options = setup.options;
        const int64_t entries = tokens * std::min<int64_t>(options.topk, max_slots);
        const bool exact = options.combine == CombineMode::exact;
        dispatch = block_format(options.dtype, options.dim, tokens, entries);
        reply = block_format(combine_dtype(options), options.dim, exact ? entries : tokens, 0);
    }
    void hold_most() { hold(setup.options.bounded_tokens); }
    bool sized() const { return setup.options.mode == ExchangeMode::sized; }
    int64_t reply_rows(const MessageHeader& dispatched) const {
        return setup.options.combine == CombineMode::exact ? dispatched.num_entries
                                                           : dispatched.num_rows;
    }
    // The host waits for a group: the GPU may be waiting for a rank that is gone.
    void wait_on_host(int channel, int slot, Activity activity, int layer) const;
    // For all that the stream was given, groups included.
    void wait_for_step(Event& done, Activity activity);
    template <typename Done>
    void wait_until(Done&& done, int channel, int slot, Activity activity, int layer) const;
    MessageHeader header_at(const std::byte* block) const {
        MessageHeader header;
        device().copy_to_host(&header, block, sizeof header);
        return header;
    }
    // Of dispatch blocks that lie one after the other.
    void read_headers(const std::byte* base, std::vector<MessageHeader>& headers) const {
        launch_copy_rows(headers.data(), base, sizeof(MessageHeader), dispatch.size_bytes,
                         static_cast<int64_t>(headers.size()), stream());
        device().synchronize();
    }
};

inline void DeviceShared::wait_on_host(int channel, int slot, Activity activity, int layer) const {
    wait_until([&] { return blocks.done(channel, slot); }, channel, slot, activity, layer);
}

inline void DeviceShared::wait_for_step(Event& done, Activity activity) {
    blocks.settle();
    done.record(stream());
    const auto is_done = [&] {
        blocks.check();
        return done.done();
    };
    wait_until(is_done, kReply, 0, activity, setup.first_layer + setup.num_layers - 1);
}

template <typename Done>
void DeviceShared::wait_until(Done&& done, int channel, int slot, Activity activity,
                              int layer) const {
    ProgressState& state = progress_state();
    const Activity before = state.activity;
    state.layer = layer;
    state.micro_batch = slot;
    state.enter(activity);
    const auto begin = std::chrono::steady_clock::now();
    while (!done()) {
        const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begin;
        if (state.failed)
            throw Error(ErrorKind::communication, "rank {} on {} stops at {}: {}", blocks.rank(),
                        blocks.host(blocks.rank()), state.describe(), state.failure());
        if (waited.count() > state.longest_wait_s(setup.options.stall_timeout_s))
            throw Error(
                ErrorKind::communication,
                "rank {} on {} gave up after {:.1f} s, in which nothing came on channel {}: "
                "{} (engine.stall_timeout_s is {})",
                blocks.rank(), blocks.host(blocks.rank()), waited.count(), channel,
                state.describe(), setup.options.stall_timeout_s);
        sched_yield();
    }
    state.beat();
    state.enter(before);
}

// What of a block travels: all of it, or, in sized mode, its head (header, entries, scales) in one
// group and its rows in another once both ends know how many there are. A reply's rows follow its
// head at once, as both ends know them from the dispatch.
inline int64_t head_bytes(const DeviceShared& shared, const BlockFormat& format) {
    return shared.sized() ? format.rows_offset : format.size_bytes;
}

// Blocks of one micro-batch that lie one after the other, one per rank of the other role.
struct BlockRow {
    Buffer memory;
    const BlockRow* same = nullptr;  // the other side's, of the only rank
    std::byte* data() const { return same != nullptr ? same->data() : memory.as<std::byte>(); }
    // Bytes [begin, end(i)) of block i; ranks that get nothing are not in the list.
    template <typename End>
    void add_to(std::vector<PeerBlock>& list, const std::vector<int>& ranks,
                const DeviceShared& shared, int64_t stride, int64_t begin, End&& end) const {
        if (shared.is_alone()) return;
        for (size_t i = 0; i < ranks.size(); ++i) {
            std::byte* block = data() + static_cast<int64_t>(i) * stride;
            if (const int64_t bytes = end(i) - begin; bytes > 0)
                list.push_back({ranks[i], block + begin, static_cast<size_t>(bytes)});
        }
    }
    void add_heads(std::vector<PeerBlock>& list, const std::vector<int>& ranks,
                   const DeviceShared& shared) const {
        add_to(list, ranks, shared, shared.dispatch.size_bytes, 0,
               [&](size_t) { return head_bytes(shared, shared.dispatch); });
    }
    // Sized mode.
    void add_rows(std::vector<PeerBlock>& list, const std::vector<int>& ranks,
                  const DeviceShared& shared, const std::vector<MessageHeader>& headers) const {
        const BlockFormat& format = shared.dispatch;
        add_to(list, ranks, shared, format.size_bytes, format.rows_offset, [&](size_t i) {
            return format.rows_offset + headers[i].num_rows * format.row_bytes;
        });
    }
    void add_reply(std::vector<PeerBlock>& list, const std::vector<int>& ranks,
                   const DeviceShared& shared, const std::vector<MessageHeader>& headers) const {
        const BlockFormat& format = shared.reply;
        add_to(list, ranks, shared, format.size_bytes, 0, [&](size_t i) {
            return shared.sized()
                       ? format.rows_offset + shared.reply_rows(headers[i]) * format.row_bytes
                       : format.size_bytes;
        });
    }
};

inline int64_t total_bytes(const std::vector<PeerBlock>& blocks) {
    int64_t bytes = 0;
    for (const PeerBlock& block : blocks) bytes += static_cast<int64_t>(block.size_bytes);
    return bytes;
}

}  // namespace ferry
