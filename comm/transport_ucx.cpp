#include "comm/transport_ucx.h"

#include "base/error.h"

#if FERRY_HAS_UCX
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "comm/idle.h"
#include "comm/progress_state.h"
#include "comm/transport_self.h"
#include "comm/ucx_api.h"
#include "comm/ucx_slots.h"
#include "comm/world.h"

namespace ferry {
namespace {

constexpr size_t kCacheLine = 64;
constexpr unsigned kHello = 1;      // active messages
constexpr unsigned kGoodbye = 2;    // the peer's end of the connection may fail from now on
constexpr double kLastWordsS = 10;  // at the end, for what is under way

enum class Path : uint32_t { mapped, put, message };

constexpr uint64_t tag(int source, int channel) {
    return static_cast<uint64_t>(source) << 16 | static_cast<uint16_t>(channel);
}

class UcxTransport final : public Transport {
  public:
    UcxTransport(World& world, const TransportOptions& options) : world_(world), options_(options) {
        ucp_params_t params{};
        params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
        params.features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_TAG;
        params.estimated_num_eps = static_cast<size_t>(world.size());
        ucx_check(ucp_init(&params, nullptr, &context_), "ucp_init");
        ucp_worker_params_t worker_params{};
        worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
        worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
        ucx_check(ucp_worker_create(context_, &worker_params, &worker_), "ucp_worker_create");
        for (int p = 0; p < world.size(); ++p) peers_.emplace_back().rank = p;
        set_handler(kHello, [](void* self, const void* header, size_t, void*, size_t,
                               const ucp_am_recv_param_t*) {
            const Greeting hello = greeting_at(header);
            Peer& peer = static_cast<UcxTransport*>(self)->peers_[hello.rank];
            peer.path_in = hello.path;
            ++peer.num_hellos;
            return UCS_OK;
        });
        set_handler(kGoodbye, [](void* self, const void* header, size_t, void*, size_t,
                                 const ucp_am_recv_param_t*) {
            static_cast<UcxTransport*>(self)->peers_[greeting_at(header).rank].left = true;
            return UCS_OK;
        });
    }

    // Peers are told, so that they do not take the end of this rank for its death. After a failure
    // nothing is taken apart: the job is ending, and UCX may still touch the memory.
    ~UcxTransport() override {
        thread_ = {};
        closing_ = true;
        if (std::uncaught_exceptions() > 0 || progress_state().failed || lost_ != nullptr) {
            new Region(std::move(receive_region_));
            new Region(std::move(send_region_));
            new std::deque<Lane>(std::move(lanes_));
            return;
        }
        const bool done =
            wait_until([&] { return std::none_of(lanes_.begin(), lanes_.end(), sends); });
        for (Lane& lane : lanes_)
            if (lane.receives && lane.request != nullptr) ucp_request_cancel(worker_, lane.request);
        greet(kGoodbye);
        wait_until([&] { return num_pending_ == 0; });
        for (Peer& peer : peers_) disconnect(peer, !done);
        wait_until([&] { return num_pending_ == 0; });
        receive_region_ = {};
        send_region_ = {};
        ucp_worker_destroy(worker_);
        ucp_cleanup(context_);
    }

    std::string_view name() const override { return "ucx"; }
    int rank() const override { return world_.rank(); }
    int num_ranks() const override { return world_.size(); }
    std::string host(int rank) const override { return world_.host(rank); }
    Device& device() override { return cpu_device(); }

    LaneId open_send(const LaneSpec& spec) override { return open(spec, false); }
    LaneId open_receive(const LaneSpec& spec) override { return open(spec, true); }
    void connect() override;

    std::byte* buffer(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.buffer(lane.self) : lane.data;
    }
    void reserve(LaneId id, size_t size_bytes) override {
        Lane& lane = lanes_[id];
        if (lane.self >= 0) return self_.reserve(lane.self, size_bytes, device());
        FERRY_CHECK(lane.spec.kind == LaneKind::sized && lane.num_requests == 0);
        if (size_bytes > lane.memory.size_bytes()) allocate(lane, size_bytes + size_bytes / 4);
    }
    void expect(LaneId id, size_t size_bytes) override {
        Lane& lane = lanes_[id];
        if (lane.self >= 0) return self_.expect(lane.self);
        FERRY_CHECK(lane.num_requests == 0);
        lane.arrived = false;
        if (lane.path == Path::message) return receive(lane, size_bytes);
        ++lane.sequence;
        awaited_.push_back(id);
    }
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
        Path path = Path::message;
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
    struct Greeting {
        int32_t rank;
        Path path;
    };
    // UCX gives headers at any address.
    static Greeting greeting_at(const void* header) {
        Greeting greeting;
        std::memcpy(&greeting, header, sizeof greeting);
        return greeting;
    }
    struct Peer {
        int rank = 0;
        UcxTransport* owner = nullptr;
        ucp_ep_h endpoint = nullptr;
        ucp_rkey_h key = nullptr;
        bool detects_failure = false;
        Path path = Path::message;     // of slots that are sent to it
        Path path_in = Path::message;  // of slots that it sends
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

    LaneId open(const LaneSpec& spec, bool receives) {
        FERRY_CHECK(spec.peer >= 0 && spec.peer < num_ranks());
        Lane& lane = lanes_.emplace_back();
        lane.owner = this;
        lane.spec = spec;
        lane.receives = receives;
        if (spec.peer == rank()) lane.self = self_.open(spec, device());
        return static_cast<LaneId>(lanes_.size()) - 1;
    }
    static bool is_slot(const Lane& lane) {
        return lane.self < 0 && lane.spec.kind == LaneKind::slot;
    }
    void allocate(Lane& lane, size_t size_bytes) {
        lane.memory = Buffer();
        lane.memory = Buffer(device(), size_bytes);
        lane.data = lane.memory.as<std::byte>();
    }
    void set_handler(unsigned id, ucp_am_recv_callback_t callback) {
        ucp_am_handler_param_t params{};
        params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                            UCP_AM_HANDLER_PARAM_FIELD_ARG;
        params.id = id;
        params.cb = callback;
        params.arg = this;
        ucx_check(ucp_worker_set_am_recv_handler(worker_, &params),
                  "ucp_worker_set_am_recv_handler");
    }

    Introduction introduce();
    void meet(Peer& peer, const Introduction& introduction);
    void place_send_slots(const std::vector<Introduction>& introductions);
    void greet(unsigned what);
    void await_hellos(int num);
    void disconnect(Peer& peer, bool force);
    void receive(Lane& lane, size_t size_bytes);
    void put(Lane& lane, const std::byte* from, size_t size_bytes, uint64_t to);
    bool move() override;
    [[noreturn]] void throw_lost(const Peer& peer, ucs_status_t status) const;

    // A request that belongs to a lane (its completion shows up in completions_), or to none.
    ucp_request_param_t request_param(Lane* lane) {
        ucp_request_param_t param{};
        param.op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
        param.user_data = lane != nullptr ? static_cast<void*>(lane) : this;
        param.cb.send = lane != nullptr ? on_sent : on_pending_done;
        return param;
    }
    static void on_sent(void* request, ucs_status_t status, void* lane) {
        static_cast<Lane*>(lane)->owner->completions_.push_back(
            {static_cast<Lane*>(lane), status, 0});
        ucp_request_free(request);
    }
    static void on_received(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info,
                            void* lane) {
        static_cast<Lane*>(lane)->owner->completions_.push_back(
            {static_cast<Lane*>(lane), status, info->length});
        ucp_request_free(request);
    }
    static void on_pending_done(void* request, ucs_status_t, void* self) {
        --static_cast<UcxTransport*>(self)->num_pending_;
        ucp_request_free(request);
    }
    static void on_failure(void* failed, ucp_ep_h, ucs_status_t status) {
        Peer& peer = *static_cast<Peer*>(failed);
        peer.failure = status;
        if (!peer.left) peer.owner->lost_ = &peer;
    }
    void started(Lane& lane, ucs_status_ptr_t request) {
        if (UCS_PTR_IS_ERR(request)) throw_lost(peers_[lane.spec.peer], UCS_PTR_STATUS(request));
        if (request != nullptr) ++lane.num_requests;
    }
    void started(ucs_status_ptr_t request) {
        if (UCS_PTR_IS_PTR(request)) ++num_pending_;
    }

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
    bool finish_completions() {
        for (const Completion& each : completions_) {
            Lane& lane = *each.lane;
            --lane.num_requests;
            lane.request = nullptr;
            if (closing_ || each.status == UCS_ERR_CANCELED) continue;
            if (each.status != UCS_OK) throw_lost(peers_[lane.spec.peer], each.status);
            if (!lane.receives) continue;
            lane.arrived = true;
            lane.arrived_bytes = each.size_bytes;
        }
        const bool any = !completions_.empty();
        completions_.clear();
        return any;
    }
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
    Region receive_region_;                // flags, a cache line each, then slots
    Region send_region_;                   // the same, of slots that are sent by put
    std::vector<LaneId> awaited_;          // receive slots by flag whose message is not here
    std::vector<Completion> completions_;  // seen by callbacks
    int num_pending_ = 0;                  // greetings and disconnections under way
    const Peer* lost_ = nullptr;
    bool closing_ = false;
    std::mutex mutex_;
    std::jthread thread_;  // the last member: it ends first
};

Introduction UcxTransport::introduce() {
    Introduction introduction;
    ucp_address_t* address = nullptr;
    size_t size = 0;
    ucx_check(ucp_worker_get_address(worker_, &address, &size), "ucp_worker_get_address");
    introduction.worker_address.assign(reinterpret_cast<const char*>(address), size);
    ucp_worker_release_address(worker_, address);

    size_t flag = 0;
    size_t end = kCacheLine * static_cast<size_t>(std::count_if(
                                  lanes_.begin(), lanes_.end(),
                                  [](const Lane& lane) { return lane.receives && is_slot(lane); }));
    const size_t flags_end = end;
    for (const Lane& lane : lanes_) {
        if (!lane.receives || !is_slot(lane)) continue;
        introduction.slots.push_back(
            {lane.spec.peer, lane.spec.channel, lane.spec.capacity_bytes, flag, end});
        flag += kCacheLine;
        end += round_up_message(lane.spec.capacity_bytes);
    }
    receive_region_ = Region(context_, end);
    std::memset(receive_region_.data(), 0, flags_end);
    size_t next = 0;
    for (Lane& lane : lanes_) {
        if (!lane.receives || !is_slot(lane)) continue;
        const SlotAddress& slot = introduction.slots[next++];
        lane.flag = receive_region_.data() + slot.flag_offset;
        lane.data = receive_region_.data() + slot.data_offset;
    }
    introduction.region_key = receive_region_.pack_key();
    introduction.region = reinterpret_cast<uint64_t>(receive_region_.data());
    return introduction;
}

// Opens the endpoint and chooses how slots travel.
void UcxTransport::meet(Peer& peer, const Introduction& introduction) {
    peer.owner = this;
    const bool same_node = world_.node_of_rank()[peer.rank] == world_.node();
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
    params.address = reinterpret_cast<const ucp_address_t*>(introduction.worker_address.data());
    // Shared memory has no failure detection of its own (the watchdog's heartbeats have), and UCX
    // would refuse to use it if asked.
    ucs_status_t status = UCS_ERR_UNSUPPORTED;
    if (!same_node) {
        ucp_ep_params_t careful = params;
        careful.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
        careful.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        careful.err_handler = {.cb = on_failure, .arg = &peer};
        status = ucp_ep_create(worker_, &careful, &peer.endpoint);
        peer.detects_failure = status == UCS_OK;
    }
    if (status != UCS_OK) status = ucp_ep_create(worker_, &params, &peer.endpoint);
    if (status != UCS_OK)
        throw Error(ErrorKind::communication,
                    "UCX finds no way from rank {} on {} to rank {} on {} ({}); check UCX_TLS and "
                    "UCX_NET_DEVICES, or set exchange.transport: mpi",
                    rank(), host(rank()), peer.rank, host(peer.rank), ucs_status_string(status));

    const char* forced = std::getenv("FERRY_UCX_PATH");
    const std::string_view path = forced != nullptr ? forced : "";
    if (path == "message") return;
    ucx_check(ucp_ep_rkey_unpack(peer.endpoint, introduction.region_key.data(), &peer.key),
              "unpacking a remote key");
    void* mapped = nullptr;
    if (path != "put" && same_node &&
        ucp_rkey_ptr(peer.key, introduction.region, &mapped) == UCS_OK)
        peer.path = Path::mapped;
    else if (has_one_sided_lane(peer.endpoint))
        peer.path = Path::put;
}

// Where this rank's slots are at their receivers.
void UcxTransport::place_send_slots(const std::vector<Introduction>& introductions) {
    size_t put_flags = 0;
    size_t put_bytes = 0;
    for (Lane& lane : lanes_) {
        if (lane.receives || !is_slot(lane)) continue;
        Peer& peer = peers_[lane.spec.peer];
        lane.path = peer.path;
        const Introduction& there = introductions[lane.spec.peer];
        const auto slot =
            std::find_if(there.slots.begin(), there.slots.end(), [&](const SlotAddress& each) {
                return each.peer == rank() && each.channel == lane.spec.channel;
            });
        FERRY_CHECK(slot != there.slots.end() && slot->capacity_bytes == lane.spec.capacity_bytes,
                    "rank {} has no slot for channel {} of rank {}", lane.spec.peer,
                    lane.spec.channel, rank());
        lane.remote_flag = there.region + slot->flag_offset;
        lane.remote_data = there.region + slot->data_offset;
        if (lane.path == Path::mapped) {
            void* flag = nullptr;
            void* data = nullptr;
            ucx_check(ucp_rkey_ptr(peer.key, lane.remote_flag, &flag), "mapping a slot");
            ucx_check(ucp_rkey_ptr(peer.key, lane.remote_data, &data), "mapping a slot");
            lane.flag = static_cast<std::byte*>(flag);
            lane.data = static_cast<std::byte*>(data);
        } else if (lane.path == Path::put) {
            put_flags += kCacheLine;
            put_bytes += round_up_message(lane.spec.capacity_bytes);
        } else {
            allocate(lane, lane.spec.capacity_bytes);
        }
    }
    send_region_ = Region(context_, put_flags + put_bytes);
    std::byte* flag = send_region_.data();
    std::byte* data = flag + put_flags;
    for (Lane& lane : lanes_) {
        if (lane.receives || !is_slot(lane) || lane.path != Path::put) continue;
        lane.flag = flag;
        lane.data = data;
        flag += kCacheLine;
        data += round_up_message(lane.spec.capacity_bytes);
    }
}

void UcxTransport::connect() {
    std::vector<Introduction> introductions;
    for (const std::string& text : world_.all_gather(introduce().pack()))
        introductions.emplace_back(text);
    for (const Lane& lane : lanes_)
        if (lane.self < 0 && peers_[lane.spec.peer].endpoint == nullptr)
            meet(peers_[lane.spec.peer], introductions[lane.spec.peer]);
    place_send_slots(introductions);
    // The first hello tells how slots will come, and has UCX set up its connections; after the
    // second, the peer awaits this rank's messages.
    greet(kHello);
    await_hellos(1);
    awaited_.reserve(lanes_.size());
    completions_.reserve(lanes_.size());
    for (size_t i = 0; i < lanes_.size(); ++i) {
        Lane& lane = lanes_[i];
        if (!lane.receives || !is_slot(lane)) continue;
        lane.path = peers_[lane.spec.peer].path_in;
        expect(static_cast<LaneId>(i), lane.spec.capacity_bytes);
    }
    greet(kHello);
    await_hellos(2);
    world_.barrier();
    if (options_.progress_thread)
        thread_ = std::jthread([this](std::stop_token stop) {
            while (!stop.stop_requested()) {
                bool moved = false;
                {
                    const std::scoped_lock guard(mutex_);
                    moved = ucp_worker_progress(worker_) != 0;
                }
                if (!moved) std::this_thread::sleep_for(std::chrono::microseconds(20));
            }
        });
}

void UcxTransport::greet(unsigned what) {
    for (Peer& peer : peers_) {
        if (peer.endpoint == nullptr || peer.failure != UCS_OK) continue;
        peer.greeting = {rank(), peer.path};
        ucp_request_param_t param = request_param(nullptr);
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
        param.flags = UCP_AM_SEND_FLAG_EAGER;
        started(ucp_am_send_nbx(peer.endpoint, what, &peer.greeting, sizeof peer.greeting, nullptr,
                                0, &param));
    }
    const ucp_request_param_t param = request_param(nullptr);
    started(ucp_worker_flush_nbx(worker_, &param));
}

void UcxTransport::await_hellos(int num) {
    const auto silent = [&](const Peer& peer) {
        return peer.endpoint != nullptr && peer.num_hellos < num;
    };
    const ProgressState& state = progress_state();
    const bool answered = wait_until(
        [&] {
            return lost_ != nullptr || state.failed ||
                   (num_pending_ == 0 && std::none_of(peers_.begin(), peers_.end(), silent));
        },
        world_.deadline_s());
    if (lost_ != nullptr) throw_lost(*lost_, lost_->failure);
    if (state.failed)
        throw Error(ErrorKind::communication, "rank {} on {} stops while it connects over UCX: {}",
                    rank(), host(rank()), state.failure());
    if (answered) return;
    const auto peer = std::find_if(peers_.begin(), peers_.end(), silent);
    const int silent_rank = peer != peers_.end() ? peer->rank : rank();
    throw Error(ErrorKind::communication,
                "rank {} on {} heard nothing from rank {} on {} over UCX for {:.0f} s; check "
                "UCX_TLS and UCX_NET_DEVICES, or set exchange.transport: mpi",
                rank(), host(rank()), silent_rank, host(silent_rank), world_.deadline_s());
}

void UcxTransport::disconnect(Peer& peer, bool force) {
    if (peer.key != nullptr) ucp_rkey_destroy(peer.key);
    if (peer.endpoint == nullptr) return;
    ucp_request_param_t param = request_param(nullptr);
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
    const bool forced = peer.detects_failure && (force || peer.failure != UCS_OK);
    param.flags = forced ? static_cast<uint32_t>(UCP_EP_CLOSE_FLAG_FORCE) : 0u;
    started(ucp_ep_close_nbx(peer.endpoint, &param));
}

void UcxTransport::receive(Lane& lane, size_t size_bytes) {
    const auto guard = lock();
    ucp_request_param_t param = request_param(&lane);
    param.cb.recv = on_received;
    lane.request = ucp_tag_recv_nbx(worker_, lane.data, size_bytes,
                                    tag(lane.spec.peer, lane.spec.channel), ~uint64_t{0}, &param);
    started(lane, lane.request);
}

void UcxTransport::put(Lane& lane, const std::byte* from, size_t size_bytes, uint64_t to) {
    ucp_request_param_t param = request_param(&lane);
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
    param.memh = send_region_.handle();
    const Peer& peer = peers_[lane.spec.peer];
    started(lane, ucp_put_nbx(peer.endpoint, from, size_bytes, to, peer.key, &param));
}

void UcxTransport::send(std::span<const LaneSend> sends) {
    const auto guard = lock();
    bool any_put = false;
    for (const LaneSend& each : sends) {
        Lane& lane = lanes_[each.lane];
        if (lane.self >= 0) {
            self_.send(lane.self, each.size_bytes);
            continue;
        }
        FERRY_CHECK(lane.num_requests == 0 && each.size_bytes % kMessageUnit == 0);
        const uint64_t flag = flag_of(++lane.sequence, each.size_bytes);
        if (lane.path == Path::mapped) {
            store_flag(lane.flag, flag);
        } else if (lane.path == Path::put) {
            any_put = true;
            std::memcpy(lane.flag, &flag, sizeof flag);
            put(lane, lane.data, each.size_bytes, lane.remote_data);
        } else {
            const ucp_request_param_t param = request_param(&lane);
            started(lane,
                    ucp_tag_send_nbx(peers_[lane.spec.peer].endpoint, lane.data, each.size_bytes,
                                     tag(rank(), lane.spec.channel), &param));
        }
    }
    if (!any_put) return;
    // A flag must not overtake its rows.
    ucx_check(ucp_worker_fence(worker_), "ucp_worker_fence");
    for (const LaneSend& each : sends) {
        Lane& lane = lanes_[each.lane];
        if (lane.self < 0 && lane.path == Path::put)
            put(lane, lane.flag, sizeof(uint64_t), lane.remote_flag);
    }
}

bool UcxTransport::move() {
    bool moved = false;
    {
        const auto guard = lock();
        moved = ucp_worker_progress(worker_) != 0;
        if (lost_ != nullptr) throw_lost(*lost_, lost_->failure);
        moved |= finish_completions();
    }
    for (size_t i = 0; i < awaited_.size();) {
        Lane& lane = lanes_[awaited_[i]];
        const uint64_t flag = load_flag(lane.flag);
        if (sequence_of(flag) != lane.sequence) {
            ++i;
            continue;
        }
        lane.arrived = true;
        lane.arrived_bytes = size_of(flag);
        awaited_[i] = awaited_.back();
        awaited_.pop_back();
        moved = true;
    }
    return moved;
}

void UcxTransport::throw_lost(const Peer& peer, ucs_status_t status) const {
    throw Error(ErrorKind::communication, "lost rank {} on {}: UCX reports \"{}\"", peer.rank,
                world_.host(peer.rank), ucs_status_string(status));
}

}  // namespace

std::unique_ptr<Transport> make_ucx_transport(World& world, const TransportOptions& options) {
    return std::make_unique<UcxTransport>(world, options);
}

}  // namespace ferry

#else

namespace ferry {

std::unique_ptr<Transport> make_ucx_transport(World&, const TransportOptions&) {
    throw Error(ErrorKind::usage,
                "exchange.transport: ucx is not in this build (no UCX was found); install "
                "libucx-dev and build again, or use mpi");
}

}  // namespace ferry
#endif
