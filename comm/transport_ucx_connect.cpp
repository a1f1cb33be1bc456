// How ranks of the transport over UCX find each other and take their leave.
#if FERRY_HAS_UCX
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "comm/progress_state.h"
#include "comm/transport_ucx_parts.h"

namespace ferry {
namespace {

constexpr size_t kCacheLine = 64;
constexpr unsigned kHello = 1;    // active messages
constexpr unsigned kGoodbye = 2;  // the peer's end of the connection may fail from now on

std::string_view forced_path() {
    const char* forced = std::getenv("FERRY_UCX_PATH");
    const std::string_view path = forced != nullptr ? forced : "";
    if (!path.empty() && path != "put" && path != "message")
        throw Error(ErrorKind::usage, "FERRY_UCX_PATH: must be put or message; is {}", path);
    return path;
}

}  // namespace

UcxTransport::UcxTransport(World& world, const TransportOptions& options)
    : world_(world), options_(options) {
    forced_path();  // refused before anything is made
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

// UCX gives headers at any address.
UcxTransport::Greeting UcxTransport::greeting_at(const void* header) {
    Greeting greeting;
    std::memcpy(&greeting, header, sizeof greeting);
    return greeting;
}

void UcxTransport::set_handler(unsigned id, ucp_am_recv_callback_t callback) {
    ucp_am_handler_param_t params{};
    params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                        UCP_AM_HANDLER_PARAM_FIELD_ARG;
    params.id = id;
    params.cb = callback;
    params.arg = this;
    ucx_check(ucp_worker_set_am_recv_handler(worker_, &params), "ucp_worker_set_am_recv_handler");
}

void UcxTransport::on_failure(void* failed, ucp_ep_h, ucs_status_t status) {
    Peer& peer = *static_cast<Peer*>(failed);
    peer.failure = status;
    if (!peer.left) peer.owner->lost_ = &peer;
}

// Peers are told, so that they do not take the end of this rank for its death, and all have told it
// before any connection ends: none fails under what another still has under way. Destroying the
// worker ends them, without the words that a flush of a connection would find whose peer is gone.
// After a failure nothing is taken apart: the job is ending, and UCX may still touch the memory.
UcxTransport::~UcxTransport() {
    thread_ = {};
    closing_ = true;
    if (std::uncaught_exceptions() > 0 || progress_state().failed || lost_ != nullptr) {
        new Region(std::move(receive_region_));
        new Region(std::move(send_region_));
        new std::deque<Lane>(std::move(lanes_));
        return;
    }
    wait_until([&] { return std::none_of(lanes_.begin(), lanes_.end(), sends); });
    for (Lane& lane : lanes_)
        if (lane.receives && lane.request != nullptr) ucp_request_cancel(worker_, lane.request);
    greet(kGoodbye);
    wait_until(
        [&] { return num_pending_ == 0 && std::none_of(peers_.begin(), peers_.end(), stays); });
    for (Peer& peer : peers_)
        if (peer.key != nullptr) ucp_rkey_destroy(peer.key);
    receive_region_ = {};
    send_region_ = {};
    ucp_worker_destroy(worker_);
    ucp_cleanup(context_);
}

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
    for (const Board& board : boards_) {
        introduction.boards.push_back({board.channel, end});
        end += round_up_message(board.capacity_bytes);
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
    for (size_t i = 0; i < boards_.size(); ++i)
        boards_[i].data = receive_region_.data() + introduction.boards[i].data_offset;
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
    }
    if (status != UCS_OK) status = ucp_ep_create(worker_, &params, &peer.endpoint);
    if (status != UCS_OK)
        throw Error(ErrorKind::communication,
                    "UCX finds no way from rank {} on {} to rank {} on {} ({}); check UCX_TLS and "
                    "UCX_NET_DEVICES, or set exchange.transport: mpi",
                    rank(), host(rank()), peer.rank, host(peer.rank), ucs_status_string(status));

    const std::string_view path = forced_path();
    if (path == "message") return;
    ucx_check(ucp_ep_rkey_unpack(peer.endpoint, introduction.region_key.data(), &peer.key),
              "unpacking a remote key");
    void* found = nullptr;
    if (path != "put" && same_node && ucp_rkey_ptr(peer.key, introduction.region, &found) == UCS_OK)
        peer.path = UcxPath::mapped;
    else if (has_one_sided_lane(peer.endpoint))
        peer.path = UcxPath::put;
    if (peer.path == UcxPath::mapped)
        for (const BoardAddress& board : introduction.boards)
            peer.boards.push_back({.channel = board.channel,
                                   .data = mapped(peer, introduction.region + board.data_offset)});
}

std::byte* UcxTransport::mapped(const Peer& peer, uint64_t address) {
    void* here = nullptr;
    ucx_check(ucp_rkey_ptr(peer.key, address, &here), "mapping a peer's memory");
    return static_cast<std::byte*>(here);
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
        const auto slot = std::ranges::find(there.slots, lane.spec.channel, &SlotAddress::channel);
        FERRY_CHECK(slot != there.slots.end() && slot->capacity_bytes == lane.spec.capacity_bytes,
                    "rank {} has no slot for channel {} of rank {}", lane.spec.peer,
                    lane.spec.channel, rank());
        lane.remote_flag = there.region + slot->flag_offset;
        lane.remote_data = there.region + slot->data_offset;
        if (lane.path == UcxPath::mapped) {
            lane.flag = mapped(peer, lane.remote_flag);
            lane.data = mapped(peer, lane.remote_data);
        } else if (lane.path == UcxPath::put) {
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
        if (lane.receives || !is_slot(lane) || lane.path != UcxPath::put) continue;
        lane.flag = flag;
        lane.data = data;
        flag += kCacheLine;
        data += round_up_message(lane.spec.capacity_bytes);
    }
}

// Peers hear of their own slots only: all of them would be too much for each of a thousand ranks.
std::vector<Introduction> UcxTransport::exchange_introductions() {
    Introduction introduction = introduce();
    const std::vector<SlotAddress> slots = std::exchange(introduction.slots, {});
    std::vector<std::string> texts(peers_.size());
    for (const Lane& lane : lanes_) {
        std::string& text = texts[lane.spec.peer];
        if (lane.self >= 0 || !text.empty()) continue;
        introduction.slots.clear();
        std::ranges::copy_if(slots, std::back_inserter(introduction.slots),
                             [&](const SlotAddress& slot) { return slot.peer == lane.spec.peer; });
        text = introduction.pack();
    }
    std::vector<Introduction> introductions;
    for (const std::string& text : world_.all_to_all(texts))
        introductions.push_back(text.empty() ? Introduction() : Introduction(text));
    return introductions;
}

void UcxTransport::connect() {
    const std::vector<Introduction> introductions = exchange_introductions();
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
    // What others still greet, and whether that has arrived, takes this rank's hands too.
    world_.barrier([this] {
        const bool moved = ucp_worker_progress(worker_) != 0;
        finish_completions();
        return moved;
    });
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

}  // namespace ferry
#endif
