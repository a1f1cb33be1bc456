#include "comm/transport_mpi.h"

#include "base/error.h"

#if FERRY_HAS_MPI
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <vector>

#include "base/check.h"
#include "comm/mpi_api.h"
#include "comm/progress_state.h"
#include "comm/transport_self.h"
#include "comm/world.h"

namespace ferry {
namespace {

// A receive lane has at most one MPI_Irecv posted, a send lane one MPI_Isend; the channel is the
// tag. Slots are received straight into the lane's buffer, posted before the peer may send.
class MpiTransport final : public Transport {
  public:
    explicit MpiTransport(World& world) : world_(world) {
        meet(world, world_communicator(world), "MPI_Comm_dup");
        mpi_check(MPI_Comm_dup(world_communicator(world), &comm_), "MPI_Comm_dup");
        MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
        // Messages are counted in units, so that an int counts any message.
        MPI_Type_contiguous(static_cast<int>(kMessageUnit), MPI_BYTE, &unit_);
        MPI_Type_commit(&unit_);
    }

    // Peers may still be reading this rank's last messages: those are waited for. Slots still
    // expect their next message: those receives are cancelled.
    ~MpiTransport() override {
        if (std::uncaught_exceptions() == 0 && !progress_state().failed && finish_sends()) {
            for (MPI_Request& request : requests_) {
                MPI_Cancel(&request);
                MPI_Wait(&request, MPI_STATUS_IGNORE);
            }
        } else {
            // Somebody is gone and the job is ending: memory that MPI may still touch stays.
            new std::vector<Lane>(std::move(lanes_));
        }
        MPI_Type_free(&unit_);
        // The communicator is left to MPI_Finalize: freeing it is collective, and this may run
        // while another rank is gone.
    }

    std::string_view name() const override { return "mpi"; }
    int rank() const override { return world_.rank(); }
    int num_ranks() const override { return world_.size(); }
    std::string host(int rank) const override { return world_.host(rank); }
    Device& device() override { return cpu_device(); }

    LaneId open_send(const LaneSpec& spec) override { return open(spec, false); }
    LaneId open_receive(const LaneSpec& spec) override { return open(spec, true); }

    void connect() override {
        requests_.reserve(lanes_.size());
        active_.reserve(lanes_.size());
        completed_.resize(lanes_.size());
        statuses_.resize(lanes_.size());
        for (size_t i = 0; i < lanes_.size(); ++i)
            if (lanes_[i].receives && lanes_[i].self < 0 && lanes_[i].spec.kind == LaneKind::slot)
                expect(static_cast<LaneId>(i), lanes_[i].spec.capacity_bytes);
        // Nobody sends before everybody's first receives are posted.
        world_.barrier();
    }

    std::byte* buffer(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.buffer(lane.self) : lane.memory.as<std::byte>();
    }

    void reserve(LaneId id, size_t size_bytes) override {
        Lane& lane = lanes_[id];
        if (lane.self >= 0) return self_.reserve(lane.self, size_bytes, device());
        FERRY_CHECK(lane.spec.kind == LaneKind::sized && !lane.active);
        if (size_bytes > lane.memory.size_bytes()) {
            lane.memory = Buffer();
            lane.memory = Buffer(device(), size_bytes + size_bytes / 4);
        }
    }

    void expect(LaneId id, size_t size_bytes) override {
        Lane& lane = lanes_[id];
        if (lane.self >= 0) return self_.expect(lane.self);
        FERRY_CHECK(!lane.active && size_bytes <= lane.memory.size_bytes());
        lane.arrived = false;
        MPI_Request request = MPI_REQUEST_NULL;
        mpi_check(MPI_Irecv(lane.memory.data(), static_cast<int>(size_bytes / kMessageUnit), unit_,
                            lane.spec.peer, lane.spec.channel, comm_, &request),
                  "MPI_Irecv");
        activate(id, request);
    }

    bool arrived(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.arrived(lane.self) : lane.arrived;
    }
    size_t arrived_bytes(LaneId id) override {
        const Lane& lane = lanes_[id];
        return lane.self >= 0 ? self_.arrived_bytes(lane.self) : lane.arrived_bytes;
    }

    void send(std::span<const LaneSend> sends) override {
        for (const LaneSend& each : sends) {
            Lane& lane = lanes_[each.lane];
            if (lane.self >= 0) {
                self_.send(lane.self, each.size_bytes);
                continue;
            }
            FERRY_CHECK(!lane.active && each.size_bytes <= lane.memory.size_bytes() &&
                        each.size_bytes % kMessageUnit == 0);
            MPI_Request request = MPI_REQUEST_NULL;
            mpi_check(
                MPI_Isend(lane.memory.data(), static_cast<int>(each.size_bytes / kMessageUnit),
                          unit_, lane.spec.peer, lane.spec.channel, comm_, &request),
                "MPI_Isend");
            activate(each.lane, request);
        }
    }
    bool sent(LaneId id) override { return !lanes_[id].active; }

  private:
    bool move() override {
        if (requests_.empty()) return false;
        int num_completed = 0;
        const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(),
                                      &num_completed, completed_.data(), statuses_.data());
        if (code != MPI_SUCCESS) throw_failure(num_completed);
        if (num_completed == MPI_UNDEFINED || num_completed == 0) return false;
        for (int i = 0; i < num_completed; ++i) finish(completed_[i], statuses_[i]);
        remove_finished();
        return true;
    }

    struct Lane {
        LaneSpec spec;
        Buffer memory;
        bool receives = false;
        bool active = false;  // a request is under way
        bool arrived = false;
        size_t arrived_bytes = 0;
        int self = -1;  // index in self_ when the peer is this rank
    };

    LaneId open(const LaneSpec& spec, bool receives) {
        FERRY_CHECK(spec.peer >= 0 && spec.peer < num_ranks());
        Lane lane{.spec = spec, .memory = Buffer(), .receives = receives};
        if (spec.peer == rank())
            lane.self = self_.open(spec, device());
        else
            lane.memory = Buffer(device(), spec.capacity_bytes);
        lanes_.push_back(std::move(lane));
        return static_cast<LaneId>(lanes_.size()) - 1;
    }
    // False when a peer does not take its messages within some seconds, or is known to be gone.
    bool finish_sends() noexcept try {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
        const auto sends = [this](LaneId id) { return !lanes_[id].receives; };
        while (std::any_of(active_.begin(), active_.end(), sends)) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            if (!move()) sched_yield();
        }
        return true;
    } catch (const Error&) {
        return false;
    }
    void activate(LaneId id, MPI_Request request) {
        lanes_[id].active = true;
        requests_.push_back(request);
        active_.push_back(id);
    }
    void finish(int index, const MPI_Status& status) {
        Lane& lane = lanes_[active_[index]];
        lane.active = false;
        if (!lane.receives) return;
        int units = 0;
        MPI_Get_count(&status, unit_, &units);
        lane.arrived = true;
        lane.arrived_bytes = static_cast<size_t>(units) * kMessageUnit;
    }
    void remove_finished() {
        size_t kept = 0;
        for (size_t i = 0; i < requests_.size(); ++i) {
            if (requests_[i] == MPI_REQUEST_NULL) continue;
            requests_[kept] = requests_[i];
            active_[kept++] = active_[i];
        }
        requests_.resize(kept);
        active_.resize(kept);
    }
    [[noreturn]] void throw_failure(int num_completed) {
        for (int i = 0; num_completed != MPI_UNDEFINED && i < num_completed; ++i) {
            if (statuses_[i].MPI_ERROR == MPI_SUCCESS) continue;
            const int peer = lanes_[active_[completed_[i]]].spec.peer;
            throw Error(ErrorKind::communication, "lost rank {} on {}: MPI reports error {}", peer,
                        host(peer), statuses_[i].MPI_ERROR);
        }
        throw Error(ErrorKind::communication, "MPI_Testsome failed on rank {} on {}", rank(),
                    host(rank()));
    }

    World& world_;
    MPI_Comm comm_ = MPI_COMM_NULL;
    MPI_Datatype unit_ = MPI_DATATYPE_NULL;
    SelfLanes self_;
    std::vector<Lane> lanes_;
    std::vector<MPI_Request> requests_;  // under way, densely
    std::vector<LaneId> active_;         // whose they are
    std::vector<int> completed_;
    std::vector<MPI_Status> statuses_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(World& world) {
    return std::make_unique<MpiTransport>(world);
}

}  // namespace ferry

#else

namespace ferry {

std::unique_ptr<Transport> make_mpi_transport(World&) {
    throw Error(ErrorKind::usage,
                "exchange.transport: mpi is not in this build (no MPI was found); install "
                "libopenmpi-dev and build again, or use self");
}

}  // namespace ferry
#endif
