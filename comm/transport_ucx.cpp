// The data path of the transport over UCX: lanes, sends, completions.
#include "comm/transport_ucx.h"

#include "base/error.h"

#if FERRY_HAS_UCX
#include <algorithm>
#include <cstring>

#include "comm/transport_ucx_parts.h"

namespace ferry {
namespace {

constexpr uint64_t tag(int source, int channel) {
    return static_cast<uint64_t>(source) << 16 | static_cast<uint16_t>(channel);
}

}  // namespace

LaneId UcxTransport::open(const LaneSpec& spec, bool receives) {
    FERRY_CHECK(spec.peer >= 0 && spec.peer < num_ranks());
    Lane& lane = lanes_.emplace_back();
    lane.owner = this;
    lane.spec = spec;
    lane.receives = receives;
    if (spec.peer == rank()) lane.self = self_.open(spec, device());
    return static_cast<LaneId>(lanes_.size()) - 1;
}

void UcxTransport::open_board(int channel, size_t capacity_bytes) {
    const std::vector<int>& nodes = world_.node_of_rank();
    if (std::ranges::count(nodes, world_.node()) > 1)
        boards_.push_back({.channel = channel, .capacity_bytes = capacity_bytes});
}

bool UcxTransport::reads_boards(int peer) {
    if (boards_.empty()) return false;
    return peer == rank() ? std::ranges::any_of(peers_, share_memory) : share_memory(peers_[peer]);
}

std::byte* UcxTransport::board(int writer, int channel) {
    const std::vector<Board>& boards = writer == rank() ? boards_ : peers_[writer].boards;
    const auto found = std::ranges::find(boards, channel, &Board::channel);
    return found != boards.end() ? found->data : nullptr;
}

void UcxTransport::allocate(Lane& lane, size_t size_bytes) {
    lane.memory = Buffer();
    lane.memory = Buffer(device(), size_bytes);
    lane.data = lane.memory.as<std::byte>();
}

void UcxTransport::reserve(LaneId id, size_t size_bytes) {
    Lane& lane = lanes_[id];
    if (lane.self >= 0) return self_.reserve(lane.self, size_bytes, device());
    FERRY_CHECK(lane.spec.kind == LaneKind::sized && lane.num_requests == 0);
    if (size_bytes > lane.memory.size_bytes()) allocate(lane, size_bytes + size_bytes / 4);
}

void UcxTransport::expect(LaneId id, size_t size_bytes) {
    Lane& lane = lanes_[id];
    if (lane.self >= 0) return self_.expect(lane.self);
    FERRY_CHECK(lane.num_requests == 0);
    lane.arrived = false;
    if (lane.path == UcxPath::message) return receive(lane, size_bytes);
    ++lane.sequence;
    awaited_.push_back(id);
}

ucp_request_param_t UcxTransport::request_param(Lane* lane) {
    ucp_request_param_t param{};
    param.op_attr_mask =
        UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    param.user_data = lane != nullptr ? static_cast<void*>(lane) : this;
    param.cb.send = lane != nullptr ? on_sent : on_pending_done;
    return param;
}

void UcxTransport::on_sent(void* request, ucs_status_t status, void* lane) {
    static_cast<Lane*>(lane)->owner->completions_.push_back({static_cast<Lane*>(lane), status, 0});
    ucp_request_free(request);
}

void UcxTransport::on_received(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info,
                               void* lane) {
    static_cast<Lane*>(lane)->owner->completions_.push_back(
        {static_cast<Lane*>(lane), status, info->length});
    ucp_request_free(request);
}

void UcxTransport::on_pending_done(void* request, ucs_status_t, void* self) {
    --static_cast<UcxTransport*>(self)->num_pending_;
    ucp_request_free(request);
}

bool UcxTransport::finish_completions() {
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
        if (lane.path == UcxPath::mapped) {
            store_flag(lane.flag, flag);
        } else if (lane.path == UcxPath::put) {
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
        if (lane.self < 0 && lane.path == UcxPath::put)
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
