// The transport over UCX as transport_ucx.cpp (its data path) and transport_ucx_connect.cpp (from
// the first greeting to the last) build it. Not for users: see transport_ucx.h.
#pragma once
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "comm/idle.h"
#include "comm/transport_self.h"
#include "comm/ucx_api.h"
#include "comm/ucx_slots.h"
#include "comm/world.h"

namespace ferry {

// How messages travel that fit a slot: written into the peer's mapped memory, put there by the
// network, or sent.
enum class UcxPath : uint32_t { mapped, put, message };

class UcxTransport final : public Transport {
  public:
    UcxTransport(World& world, const TransportOptions& options);
    ~UcxTransport() override;
    UcxTransport(const UcxTransport&) = delete;
    UcxTransport& operator=(const UcxTransport&) = delete;

    std::string_view name() const override { return "ucx"; }
    int rank() const override { return world_.rank(); }
    int num_ranks() const override { return world_.size(); }
    std::string host(int rank) const override { return world_.host(rank); }
    Device& device() override { return cpu_device(); }

    LaneId open_send(const LaneSpec& spec) override { return open(spec, false); }
    LaneId open_receive(const LaneSpec& spec) override { return open(spec, true); }
    void connect() override;

    void open_board(int channel, size_t capacity_bytes) override;
    bool reads_boards(int peer) override;
    std::byte* board(int writer, int channel) override;

    std::byte* buffer(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.buffer(lane.self) : lane.data;
    }
    void reserve(LaneId id, size_t size_bytes) override;
    void expect(LaneId id, size_t size_bytes) override;
    bool arrived(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.arrived(lane.self) : lane.arrived;
    }
    size_t arrived_bytes(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.arrived_bytes(lane.self) : lane.arrived_bytes;
    }
    void send(std::span<const LaneSend> sends) override;
    bool sent(LaneId id) override { return lanes_[id].num_requests == 0; }

  private:
    struct Lane {
        UcxTransport* owner = nullptr;
        LaneSpec spec;
        bool receives = false;
        int self = -1;  // index in self_ when the peer is this rank
        UcxPath path = UcxPath::message;
        std::byte* data = nullptr;  // where the caller packs or unpacks
        std::byte* flag = nullptr;  // receive: here; mapped send: at the peer; put: its source here
        uint64_t remote_data = 0;   // put
        uint64_t remote_flag = 0;   // put
        uint32_t sequence = 0;      // of the last message that was sent or is expected
        bool arrived = false;
        size_t arrived_bytes = 0;
        int num_requests = 0;     // of UCX, under way
        void* request = nullptr;  // the posted receive
        Buffer memory;            // sized lanes, and slots that are sent by message
    };
    struct Board {
        int channel = 0;
        size_t capacity_bytes = 0;  // of this rank's
        std::byte* data = nullptr;
    };
    struct Greeting {
        int32_t rank;
        UcxPath path;
    };
    static Greeting greeting_at(const void* header);
    struct Peer {
        int rank = 0;
        UcxTransport* owner = nullptr;
        ucp_ep_h endpoint = nullptr;
        ucp_rkey_h key = nullptr;
        UcxPath path = UcxPath::message;     // of slots that are sent to it
        UcxPath path_in = UcxPath::message;  // of slots that it sends
        std::vector<Board> boards;           // mapped here
        int num_hellos = 0;
        bool left = false;
        ucs_status_t failure = UCS_OK;
        Greeting greeting{};  // in flight
    };
    struct Completion {
        Lane* lane;
        ucs_status_t status;
        size_t size_bytes;
    };

    static bool sends(const Lane& lane) { return !lane.receives && lane.num_requests > 0; }
    static bool stays(const Peer& peer) {
        return peer.endpoint != nullptr && !peer.left && peer.failure == UCS_OK;
    }

    LaneId open(const LaneSpec& spec, bool receives);
    static bool is_slot(const Lane& lane) {
        return lane.self < 0 && lane.spec.kind == LaneKind::slot;
    }
    void allocate(Lane& lane, size_t size_bytes);
    void set_handler(unsigned id, ucp_am_recv_callback_t callback);

    Introduction introduce();
    std::vector<Introduction> exchange_introductions();  // of peers, by rank
    void meet(Peer& peer, const Introduction& introduction);
    static std::byte* mapped(const Peer& peer, uint64_t address);
    static bool share_memory(const Peer& peer) {
        return peer.path == UcxPath::mapped && peer.path_in == UcxPath::mapped;
    }
    void place_send_slots(const std::vector<Introduction>& introductions);
    void greet(unsigned what);
    void await_hellos(int num);
    void receive(Lane& lane, size_t size_bytes);
    void put(Lane& lane, const std::byte* from, size_t size_bytes, uint64_t to);
    bool move() override;
    [[noreturn]] void throw_lost(const Peer& peer, ucs_status_t status) const;

    // A request that belongs to a lane (its completion shows up in completions_), or to none.
    ucp_request_param_t request_param(Lane* lane);
    static void on_sent(void* request, ucs_status_t status, void* lane);
    static void on_received(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info,
                            void* lane);
    static void on_pending_done(void* request, ucs_status_t, void* self);
    static void on_failure(void* failed, ucp_ep_h, ucs_status_t status);
    void started(Lane& lane, ucs_status_ptr_t request) {
        if (UCS_PTR_IS_ERR(request)) throw_lost(peers_[lane.spec.peer], UCS_PTR_STATUS(request));
        if (request != nullptr) ++lane.num_requests;
    }
    void started(ucs_status_ptr_t request) {
        if (UCS_PTR_IS_PTR(request)) ++num_pending_;
    }

    static constexpr double kLastWordsS = 10;  // at the end, for what is under way
    // False when nothing moved for so long.
    template <typename Done>
    bool wait_until(Done&& done, double limit_s = kLastWordsS) {
        Idle idle;
        while (!done()) {
            if (ucp_worker_progress(worker_) != 0)
                idle.reset();
            else if (idle.pause() && idle.seconds() > limit_s)
                return false;
            finish_completions();
        }
        return true;
    }
    // The requests that callbacks saw complete; whether there were any.
    bool finish_completions();
    // With a progress thread, UCX is called under a lock.
    std::unique_lock<std::mutex> lock() {
        return thread_.joinable() ? std::unique_lock(mutex_) : std::unique_lock<std::mutex>();
    }

    World& world_;
    TransportOptions options_;
    ucp_context_h context_ = nullptr;
    ucp_worker_h worker_ = nullptr;
    SelfLanes self_;
    std::deque<Lane> lanes_;
    std::deque<Peer> peers_;
    std::vector<Board> boards_;            // of this rank
    Region receive_region_;                // flags, a cache line each, then slots and boards
    Region send_region_;                   // the same, of slots that are sent by put
    std::vector<LaneId> awaited_;          // receive slots by flag whose message is not here
    std::vector<Completion> completions_;  // seen by callbacks
    int num_pending_ = 0;                  // greetings and disconnections under way
    const Peer* lost_ = nullptr;
    bool closing_ = false;
    std::mutex mutex_;
    std::jthread thread_;  // the last member: it ends first
};

}  // namespace ferry
