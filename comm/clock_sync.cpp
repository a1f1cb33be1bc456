#include "comm/clock_sync.h"

#include <algorithm>
#include <array>
#include <cmath>

#if FERRY_HAS_MPI
#include "comm/mpi_api.h"
#endif

namespace ferry {
namespace {

// A drift that two measurements this close would give says more of their errors than of clocks.
constexpr int64_t kLeastDistanceNs = 100'000'000;

}  // namespace

#if FERRY_HAS_MPI
namespace {

constexpr int kRounds = 40;
constexpr int kTag = 7301;

void send(MPI_Comm comm, int rank, const int64_t* values, int num) {
    mpi_check(MPI_Send(values, num, MPI_INT64_T, rank, kTag, comm), "MPI_Send");
}

void receive(MPI_Comm comm, int rank, int64_t* values, int num) {
    mpi_check(MPI_Recv(values, num, MPI_INT64_T, rank, kTag, comm, MPI_STATUS_IGNORE), "MPI_Recv");
}

ClockOffset ask(MPI_Comm comm, int rank, const std::function<int64_t()>& now) {
    ClockOffset best{.round_trip_ns = INT64_MAX};
    for (int round = 0; round < kRounds; ++round) {
        int64_t remote_ns = 0;
        const int64_t asked_ns = now();
        send(comm, rank, &asked_ns, 1);
        receive(comm, rank, &remote_ns, 1);
        const int64_t round_trip_ns = now() - asked_ns;
        if (round_trip_ns < best.round_trip_ns)
            best = {.at_ns = remote_ns,
                    .offset_ns = remote_ns - (asked_ns + round_trip_ns / 2),
                    .round_trip_ns = round_trip_ns};
    }
    return best;
}

ClockOffset answer(MPI_Comm comm, const std::function<int64_t()>& now) {
    for (int round = 0; round < kRounds; ++round) {
        int64_t asked_ns = 0;
        receive(comm, 0, &asked_ns, 1);
        const int64_t local_ns = now();
        send(comm, 0, &local_ns, 1);
    }
    std::array<int64_t, 3> result{};
    receive(comm, 0, result.data(), 3);
    return {result[0], result[1], result[2]};
}

}  // namespace

ClockOffset measure_clock_offset(World& world, const std::function<int64_t()>& now) {
    const MPI_Comm comm = world_communicator(world);
    if (world.rank() != 0) return answer(comm, now);
    for (int rank = 1; rank < world.size(); ++rank) {
        const ClockOffset offset = ask(comm, rank, now);
        const std::array<int64_t, 3> result{offset.at_ns, offset.offset_ns, offset.round_trip_ns};
        send(comm, rank, result.data(), 3);
    }
    return {.at_ns = now()};
}

#else  // one rank

ClockOffset measure_clock_offset(World&, const std::function<int64_t()>& now) {
    return {.at_ns = now()};
}

#endif

double ClockMap::drift() const {
    const int64_t distance_ns = end_.at_ns - begin_.at_ns;
    if (distance_ns < kLeastDistanceNs) return 0;
    return static_cast<double>(end_.offset_ns - begin_.offset_ns) /
           static_cast<double>(distance_ns);
}

int64_t ClockMap::to_rank_0(int64_t local_ns) const {
    const double since_ns = static_cast<double>(local_ns - begin_.at_ns);
    return local_ns - begin_.offset_ns - std::llround(drift() * since_ns);
}

int64_t ClockMap::error_ns() const {
    return std::max(begin_.round_trip_ns, end_.round_trip_ns) / 2;
}

}  // namespace ferry
