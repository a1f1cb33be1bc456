// What moves rows between GPUs: blocks whose sizes both ends know, in the order of streams and
// without the host. A transport (transport.h) lets a receiver wait for whoever comes first; GPU
// libraries want both ends of a group of messages named before it starts, and the same groups in
// the same order on every rank. That order is the exchange's own: (layer, micro-batch), dispatches
// on one channel and replies on the other.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/device_cuda.h"

namespace ferry {

class World;

struct PeerBlock {
    int peer = 0;  // world rank; may be this rank
    void* data = nullptr;
    size_t size_bytes = 0;
};

// Two channels are of all ranks. One is of a group of ranks (tensor parallelism), in the order of
// device().stream() itself: it needs no wait(), is never asked about, and has one slot.
constexpr int kBlockChannels = 3, kGroupChannel = 2;
constexpr int kBlockSlots = 4;  // groups of a channel that may be under way at once

class BlockTransport {
  public:
    virtual ~BlockTransport() = default;
    virtual std::string_view name() const = 0;
    virtual int rank() const = 0;
    virtual int num_ranks() const = 0;
    virtual std::string host(int rank) const = 0;
    virtual CudaDevice& device() = 0;

    // Starts one group once the work given to device().stream() so far is done; returns at once.
    // Groups of a channel take their turns. Block i of a pair of ranks meets block i at the other
    // end, of the same size. A slot's groups take their turns too; wait() and done() speak of the
    // last one that was started.
    virtual void exchange(int channel, int slot, std::span<const PeerBlock> sends,
                          std::span<const PeerBlock> receives) = 0;
    // Work given to device().stream() from now on waits for the slot's last group.
    virtual void wait(int channel, int slot) = 0;
    // For the host: whether that group is done. Not of a group that was recorded (CudaGraph).
    // Throws Error(communication) naming the peers of the group when the network has failed; the
    // communicator is gone then.
    virtual bool done(int channel, int slot) = 0;

    // Work given to device().stream() from now on waits for all groups, which nobody will ask about
    // any more: to be called before and after work that may be recorded, as a graph can wait for
    // nothing outside, and nothing outside for what is in it. What was recorded is done when the
    // graph is. Groups may be recorded when all ranks record the same ones, and each launches that
    // graph when the others do.
    virtual void settle() = 0;
    // Throws as done() does.
    virtual void check() = 0;
};

// A world of one rank: blocks to itself are copied.
std::unique_ptr<BlockTransport> make_self_blocks(CudaDevice& device);

// NCCL, over a communicator per channel. `group`: world ranks with whom this one shares
// kGroupChannel, in the same order on all of them; none or itself: with nobody. Collective over all
// ranks, every one of which must have a GPU of its own. Throws Error(usage) when NCCL is not in
// this build or not on this machine, and Error(communication) when ranks cannot be connected.
std::unique_ptr<BlockTransport> make_nccl_blocks(World& world, CudaDevice& device,
                                                 std::span<const int> group = {});

// "2.28.9"; empty when NCCL is not in this build.
std::string nccl_build_version();

}  // namespace ferry
