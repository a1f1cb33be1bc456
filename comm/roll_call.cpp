#include "comm/roll_call.h"

#include <deque>
#include <optional>

#include "comm/idle.h"

namespace ferry {
namespace {

// Beside those of comm/clock_sync.cpp in the same communicator.
constexpr int kAsk = 901, kAnswer = 902, kRequest = 903;

// Never waited for, since the receiver may be dead: what is sent must stay where it is.
void send(int to, int tag, int64_t number, MPI_Comm communicator) {
    static std::deque<int64_t> sent;
    sent.push_back(number);
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Isend(&sent.back(), 1, MPI_INT64_T, to, tag, communicator, &request),
              "MPI_Isend");
    MPI_Request_free(&request);
}

struct Call {
    int rank;
    int64_t number;
};

std::optional<Call> receive(int from, int tag, MPI_Comm communicator) {
    int found = 0;
    MPI_Status status;
    mpi_check(MPI_Iprobe(from, tag, communicator, &found, &status), "MPI_Iprobe");
    if (found == 0) return std::nullopt;
    Call call{.rank = status.MPI_SOURCE, .number = 0};
    mpi_check(
        MPI_Recv(&call.number, 1, MPI_INT64_T, call.rank, tag, communicator, MPI_STATUS_IGNORE),
        "MPI_Recv");
    return call;
}

}  // namespace

RollCall::RollCall(MPI_Comm communicator, int rank, int size, int64_t number)
    : communicator_(communicator), rank_(rank), size_(size), number_(number) {}

bool RollCall::look() {
    if (rank_ == 0) {
        const std::optional<Call> request = receive(MPI_ANY_SOURCE, kRequest, communicator_);
        return request && request->number >= number_;
    }
    // Whichever wait rank 0 is in: who answers is alive.
    if (const std::optional<Call> asked = receive(0, kAsk, communicator_))
        send(0, kAnswer, asked->number, communicator_);
    return false;
}

std::vector<int> RollCall::call(double seconds) {
    std::vector<bool> answered(static_cast<size_t>(size_), false);
    answered[0] = true;
    for (int r = 1; r < size_; ++r) send(r, kAsk, number_, communicator_);
    Idle idle;
    for (int num_missing = size_ - 1; num_missing > 0;) {
        const std::optional<Call> answer = receive(MPI_ANY_SOURCE, kAnswer, communicator_);
        if (!answer) {
            if (idle.pause() && idle.seconds() > seconds) break;
        } else if (answer->number == number_ && !answered[static_cast<size_t>(answer->rank)]) {
            answered[static_cast<size_t>(answer->rank)] = true;
            --num_missing;
        }
    }
    std::vector<int> missing;
    for (int r = 0; r < size_; ++r)
        if (!answered[static_cast<size_t>(r)]) missing.push_back(r);
    return missing;
}

void RollCall::request(double seconds) {
    send(0, kRequest, number_, communicator_);
    Idle idle;
    while (!idle.pause() || idle.seconds() <= seconds) look();
}

}  // namespace ferry
