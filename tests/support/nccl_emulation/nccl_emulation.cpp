// Stands in for NCCL's library on the emulated GPUs (tests/support/cuda_emulation), so that
// comm/transport_nccl.cpp runs as it is: the functions that Ferry calls, between processes of one
// host, over sockets. A group is one piece of work of its stream, done each time a graph that it
// was recorded in is launched. What NCCL asks of its callers is checked: that both ends of a
// message name the same size, and that ranks record the same groups and launch the same graphs; who
// does not ends the process and says what was wrong. A peer that is gone is an asynchronous error.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <nccl.h>

#include "tests/support/cuda_emulation/host_calls.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "NCCL emulation: %s\n", what.c_str());
    std::fflush(stderr);
    std::abort();
}

// What goes ahead of a message: where its sender stands.
struct Tag {
    uint64_t graph = 0;  // 0: not recorded; else the how manieth that this communicator is part of
    uint64_t index = 0;  // of the group in its graph
    uint64_t size_bytes = 0;

    bool operator==(const Tag&) const = default;
    std::string text() const {
        return (graph == 0
                    ? "no graph"
                    : "graph " + std::to_string(graph) + ", group " + std::to_string(index)) +
               ", " + std::to_string(size_bytes) + " bytes";
    }
};

bool send_all(int socket, const void* data, size_t size) {
    for (size_t done = 0; done < size;) {
        const ssize_t n =
            ::send(socket, static_cast<const char*>(data) + done, size - done, MSG_NOSIGNAL);
        if (n <= 0) return false;
        done += static_cast<size_t>(n);
    }
    return true;
}
bool receive_all(int socket, void* data, size_t size) {
    for (size_t done = 0; done < size;) {
        const ssize_t n = ::recv(socket, static_cast<char*>(data) + done, size - done, 0);
        if (n <= 0) return false;
        done += static_cast<size_t>(n);
    }
    return true;
}

// Messages to one peer, sent by a thread of their own, as a sender never waits for its receiver's
// host.
class Outbox {
  public:
    explicit Outbox(int socket) : socket_(socket), thread_([this] { run(); }) {}
    ~Outbox() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void post(std::vector<std::byte> message) {
        {
            const std::lock_guard lock(mutex_);
            messages_.push_back(std::move(message));
        }
        changed_.notify_all();
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [&] { return ended_ || !messages_.empty(); });
            if (messages_.empty()) return;
            const std::vector<std::byte> message = std::move(messages_.front());
            messages_.pop_front();
            lock.unlock();
            send_all(socket_, message.data(), message.size());  // who is gone gets nothing
            lock.lock();
        }
    }

    int socket_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::vector<std::byte>> messages_;
    bool ended_ = false;
    std::thread thread_;
};

struct Operation {
    bool sends = false;
    int peer = 0;
    std::byte* data = nullptr;
    size_t size_bytes = 0;
};

struct Group {
    ncclComm* comm = nullptr;
    Tag tag;
    std::vector<Operation> operations;
};

sockaddr_un address_of(const ncclUniqueId& id, int rank, socklen_t& length) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string name =
        std::string("ferry-nccl-") + std::string(id.internal, 16) + "-" + std::to_string(rank);
    std::memcpy(address.sun_path + 1, name.data(), name.size());  // no file
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    return address;
}

}  // namespace

struct ncclComm {
    int rank = 0;
    std::vector<int> sockets;  // by rank
    std::vector<std::unique_ptr<Outbox>> outboxes;
    std::deque<std::vector<std::byte>> to_self;
    std::vector<std::unique_ptr<Group>> recorded;  // graphs may launch them
    uint64_t num_graphs = 0, last_capture = 0, num_recorded = 0;
    std::atomic<ncclResult_t> error{ncclSuccess};

    ~ncclComm() {
        outboxes.clear();
        for (const int socket : sockets)
            if (socket >= 0) ::close(socket);
    }
    Tag next_tag(cudaStream_t stream) {
        const uint64_t capture = cuda_emulation_capture_id(stream);
        if (capture == 0) return {};
        if (capture != last_capture) {
            last_capture = capture;
            ++num_graphs;
            num_recorded = 0;
        }
        return {.graph = num_graphs, .index = ++num_recorded};
    }
    void send(const Operation& operation, Tag tag) {
        tag.size_bytes = operation.size_bytes;
        std::vector<std::byte> message(sizeof tag + operation.size_bytes);
        std::memcpy(message.data(), &tag, sizeof tag);
        std::memcpy(message.data() + sizeof tag, operation.data, operation.size_bytes);
        if (operation.peer == rank)
            to_self.push_back(std::move(message));
        else
            outboxes[static_cast<size_t>(operation.peer)]->post(std::move(message));
    }
    void receive(const Operation& operation, Tag tag) {
        tag.size_bytes = operation.size_bytes;
        Tag sent;
        if (operation.peer == rank) {
            if (to_self.empty()) fail("a message to itself that was not sent");
            std::memcpy(&sent, to_self.front().data(), sizeof sent);
        } else if (!receive_all(sockets[static_cast<size_t>(operation.peer)], &sent, sizeof sent)) {
            error = ncclRemoteError;
            return;
        }
        if (sent != tag)
            fail("rank " + std::to_string(rank) + " receives in " + tag.text() + ", but rank " +
                 std::to_string(operation.peer) + " sends in " + sent.text());
        if (operation.peer == rank) {
            std::memcpy(operation.data, to_self.front().data() + sizeof sent, sent.size_bytes);
            to_self.pop_front();
        } else if (!receive_all(sockets[static_cast<size_t>(operation.peer)], operation.data,
                                sent.size_bytes)) {
            error = ncclRemoteError;
        }
    }
};

namespace {

thread_local int depth = 0;
thread_local std::unique_ptr<Group> open_group;
thread_local cudaStream_t open_stream = nullptr;

void run_group(void* argument) {
    auto* given = static_cast<Group*>(argument);
    const std::unique_ptr<Group> once(given->tag.graph == 0 ? given : nullptr);
    const Group& group = *given;
    if (group.comm->error != ncclSuccess) return;
    for (const Operation& operation : group.operations)
        if (operation.sends) group.comm->send(operation, group.tag);
    for (const Operation& operation : group.operations)
        if (!operation.sends) group.comm->receive(operation, group.tag);
}

ncclResult_t add(ncclComm_t comm, cudaStream_t stream, const Operation& operation) {
    if (depth == 0) fail("an operation outside of a group");
    if (open_group == nullptr) open_group = std::make_unique<Group>();
    if (open_group->comm != nullptr && (open_group->comm != comm || open_stream != stream))
        fail("a group of several communicators or streams");
    open_group->comm = comm;
    open_stream = stream;
    open_group->operations.push_back(operation);
    return ncclSuccess;
}

bool connect_ranks(ncclComm& comm, int num_ranks, const ncclUniqueId& id) {
    comm.sockets.assign(static_cast<size_t>(num_ranks), -1);
    const int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = 0;
    const sockaddr_un own = address_of(id, comm.rank, length);
    if (::bind(listener, reinterpret_cast<const sockaddr*>(&own), length) != 0 ||
        ::listen(listener, num_ranks) != 0)
        return false;
    for (int peer = 0; peer < comm.rank; ++peer) {
        const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const sockaddr_un address = address_of(id, peer, length);
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
        while (::connect(socket, reinterpret_cast<const sockaddr*>(&address), length) != 0) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        if (!send_all(socket, &comm.rank, sizeof comm.rank)) return false;
        comm.sockets[static_cast<size_t>(peer)] = socket;
    }
    for (int i = comm.rank + 1; i < num_ranks; ++i) {
        const int socket = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        int peer = 0;
        if (socket < 0 || !receive_all(socket, &peer, sizeof peer)) return false;
        comm.sockets[static_cast<size_t>(peer)] = socket;
    }
    ::close(listener);
    return true;
}

}  // namespace

// The declarations are nccl.h's.

ncclResult_t ncclGetVersion(int* version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
    return result == ncclSuccess       ? "no error"
           : result == ncclRemoteError ? "remote process exited or there was a network error"
                                       : "invalid usage";
}
const char* ncclGetLastError(ncclComm_t) {
    return "emulated";
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    std::random_device random;
    *id = {};
    std::snprintf(id->internal, 17, "%08x%08x", random(), random());
    return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int num_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t*) {
    auto made = std::make_unique<ncclComm>();
    made->rank = rank;
    if (!connect_ranks(*made, num_ranks, id)) return ncclSystemError;
    for (const int socket : made->sockets)
        made->outboxes.push_back(socket >= 0 ? std::make_unique<Outbox>(socket) : nullptr);
    *comm = made.release();
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    *error = comm->error;
    return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) {
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    for (const int socket : comm->sockets)
        if (socket >= 0) ::shutdown(socket, SHUT_RDWR);
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclGroupStart() {
    ++depth;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
    if (--depth > 0 || open_group == nullptr) return ncclSuccess;
    ncclComm& comm = *open_group->comm;
    open_group->tag = comm.next_tag(open_stream);
    Group* group = open_group.release();
    if (group->tag.graph != 0) comm.recorded.emplace_back(group);
    cuda_emulation_submit(open_stream, run_group, group);
    return ncclSuccess;
}
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, {true, peer, static_cast<std::byte*>(const_cast<void*>(data)), count});
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(comm, stream, {false, peer, static_cast<std::byte*>(data), count});
}
ncclResult_t ncclAlltoAll(const void* from, void* to, size_t count, ncclDataType_t type,
                          ncclComm_t comm, cudaStream_t stream) {
    ncclGroupStart();
    for (size_t peer = 0; peer < comm->sockets.size(); ++peer) {
        ncclSend(static_cast<const std::byte*>(from) + peer * count, count, type,
                 static_cast<int>(peer), comm, stream);
        ncclRecv(static_cast<std::byte*>(to) + peer * count, count, type, static_cast<int>(peer),
                 comm, stream);
    }
    return ncclGroupEnd();
}
