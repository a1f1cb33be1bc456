// [6] The seam between the exchange and the network: whole messages over lanes that were opened
// once. Implemented by transport_self (one rank), transport_mpi, transport_ucx and transport_nccl.
//
// A lane is a one-way path of one message at a time between two ranks. Both ends own a buffer that
// the transport allocated (and registered, where hardware wants that); callers pack into and unpack
// from these buffers, so nothing else copies. Flow control is the caller's: a receiver calls
// expect() on a slot lane before its peer may send(), and the protocols above guarantee that order
// by their own replies (an exchange's reply grants the next dispatch). That is what makes receives
// pre-posted under MPI, one-sided puts safe under UCX, and both ends of a grouped call known under
// NCCL. On a sized lane send() may come first: the transport holds it back (rendezvous).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/device.h"

namespace ferry {

class World;

using LaneId = int32_t;

// `slot`: fixed capacity, registered at connect(), low latency; the size may vary below the
// capacity. `sized`: both ends know the size before they start; buffers grow by reserve().
enum class LaneKind : uint8_t { slot, sized };

struct LaneSpec {
    int peer = 0;     // world rank
    int channel = 0;  // the same number at both ends; distinct per (ordered pair of ranks)
    LaneKind kind = LaneKind::slot;
    size_t capacity_bytes = 0;
};

struct LaneSend {
    LaneId lane = 0;
    size_t size_bytes = 0;
};

// Message sizes are multiples of this, so that a count of units fits an int for any message.
constexpr size_t kMessageUnit = 64;
constexpr size_t round_up_message(size_t size_bytes) {
    return (size_bytes + kMessageUnit - 1) / kMessageUnit * kMessageUnit;
}

// Used by one thread of a rank. No call blocks, except connect(). The end of a transport waits
// until peers have taken what was sent to them, unless the job has failed.
class Transport {
  public:
    virtual ~Transport() = default;
    virtual std::string_view name() const = 0;
    virtual int rank() const = 0;
    virtual int num_ranks() const = 0;
    // Of a rank, for messages.
    virtual std::string host(int rank) const = 0;
    // Where lane buffers live.
    virtual Device& device() = 0;

    // Set-up: every rank opens its lanes, then all call connect() once (collective). A send lane to
    // p on channel c meets the receive lane on p from this rank on channel c, of the same kind and
    // capacity. A lane to oneself is allowed: both ends share one buffer, nothing is copied.
    virtual LaneId open_send(const LaneSpec& spec) = 0;
    virtual LaneId open_receive(const LaneSpec& spec) = 0;
    virtual void connect() = 0;

    // Boards: memory of this rank that peers on its node read where it lies, so that what goes to
    // several of them is written once. Opened by the writer alone, before connect(), each on a
    // channel of its own; 64-byte aligned. When to write and read is for messages over lanes to
    // say. A transport without boards takes no memory for them.
    virtual void open_board(int /*channel*/, size_t /*capacity_bytes*/) {}
    // After connect(): whether the peer (or this rank) reads what this rank writes there.
    virtual bool reads_boards(int /*peer*/) { return false; }
    // That of `writer`, a peer or this rank; null where this rank cannot reach it.
    virtual std::byte* board(int /*writer*/, int /*channel*/) { return nullptr; }

    // The lane's buffer; 64-byte aligned. Moves when reserve() has to grow it. That of a send slot
    // may be the peer's own memory: write to it only once the peer expects the message.
    virtual std::byte* buffer(LaneId lane) = 0;
    // Sized lanes, while idle: room for size_bytes. Grows with slack, never shrinks.
    virtual void reserve(LaneId lane, size_t size_bytes) = 0;

    // Receiver: the buffer is free for the next message. Slot lanes are born that way, and call
    // this after each message (a message of up to the capacity may come); sized lanes call it
    // before each message, of exactly size_bytes.
    virtual void expect(LaneId lane, size_t size_bytes) = 0;
    // Whole message here? Then the buffer belongs to the caller until the next expect().
    virtual bool arrived(LaneId lane) = 0;
    // Size of the message that has arrived.
    virtual size_t arrived_bytes(LaneId lane) = 0;

    // Sender: starts all of these messages (one group); the buffers belong to the transport until
    // sent(). size_bytes: multiples of kMessageUnit, not zero.
    virtual void send(std::span<const LaneSend> sends) = 0;
    virtual bool sent(LaneId lane) = 0;

    // Moves data and completions and runs the services; true when something completed. Throws
    // Error(communication) when the network reports a failure, naming the peer.
    bool progress() {
        bool moved = move();
        for (const auto& service : services_) moved |= service();
        num_moves_ += moved ? 1 : 0;
        return moved;
    }
    // Times that progress() returned true: whoever waits sees what others moved on meanwhile.
    uint64_t num_moves() const { return num_moves_; }
    // Called with every progress(), whoever waits for what; returns whether it did something. For
    // small duties towards other ranks (SharedCounter). Must not call progress().
    void add_service(std::function<bool()> service) { services_.push_back(std::move(service)); }

  private:
    virtual bool move() = 0;
    std::vector<std::function<bool()>> services_;
    uint64_t num_moves_ = 0;
};

// A world of one rank; lanes to oneself only.
std::unique_ptr<Transport> make_self_transport();

struct TransportOptions {
    bool progress_thread = false;  // ucx: a thread of its own drives UCX, also while kernels run
};

// `name`: auto, self, mpi, ucx, nccl. Throws Error(usage) naming what this build or machine lacks.
// `why` (may be null) receives one line about the choice that `auto` made.
std::unique_ptr<Transport> make_transport(std::string_view name, World& world, std::string* why,
                                          const TransportOptions& options = {});

}  // namespace ferry
