// Linked against nothing: NCCL comes with the machine (often inside a Python environment), and a
// Ferry that was built with it must also run where there is none. The library is opened when it is
// first wanted.
#include "base/error.h"
#include "comm/block_transport.h"

#if FERRY_HAS_NCCL
#include <dlfcn.h>
#include <nccl.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "comm/progress_state.h"
#include "comm/world.h"

namespace ferry {
namespace {

// The functions that Ferry calls, by NCCL's names.
struct NcclApi {
    decltype(&::ncclGetVersion) GetVersion = nullptr;
    decltype(&::ncclGetErrorString) GetErrorString = nullptr;
    decltype(&::ncclGetLastError) GetLastError = nullptr;
    decltype(&::ncclGetUniqueId) GetUniqueId = nullptr;
    decltype(&::ncclCommInitRankConfig) CommInitRankConfig = nullptr;
    decltype(&::ncclCommGetAsyncError) CommGetAsyncError = nullptr;
    decltype(&::ncclCommFinalize) CommFinalize = nullptr;
    decltype(&::ncclCommDestroy) CommDestroy = nullptr;
    decltype(&::ncclCommAbort) CommAbort = nullptr;
    decltype(&::ncclGroupStart) GroupStart = nullptr;
    decltype(&::ncclGroupEnd) GroupEnd = nullptr;
    decltype(&::ncclSend) Send = nullptr;
    decltype(&::ncclRecv) Recv = nullptr;
    decltype(&::ncclAlltoAll) AlltoAll = nullptr;  // null before 2.28
};

void* open_library() {
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
        throw Error(ErrorKind::usage,
                    "exchange.transport: nccl needs NCCL, which this machine does not have where "
                    "programs look for it ({}); add its folder to LD_LIBRARY_PATH, or use ucx or "
                    "mpi",
                    dlerror());
    return library;
}

template <typename Function>
void find(void* library, const char* name, Function& function, bool optional = false) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr && !optional)
        throw Error(ErrorKind::usage, "exchange.transport: this machine's NCCL has no {}", name);
}

const NcclApi& nccl() {
    static const NcclApi api = [] {
        void* library = open_library();
        NcclApi a;
        find(library, "ncclGetVersion", a.GetVersion);
        find(library, "ncclGetErrorString", a.GetErrorString);
        find(library, "ncclGetLastError", a.GetLastError);
        find(library, "ncclGetUniqueId", a.GetUniqueId);
        find(library, "ncclCommInitRankConfig", a.CommInitRankConfig);
        find(library, "ncclCommGetAsyncError", a.CommGetAsyncError);
        find(library, "ncclCommFinalize", a.CommFinalize);
        find(library, "ncclCommDestroy", a.CommDestroy);
        find(library, "ncclCommAbort", a.CommAbort);
        find(library, "ncclGroupStart", a.GroupStart);
        find(library, "ncclGroupEnd", a.GroupEnd);
        find(library, "ncclSend", a.Send);
        find(library, "ncclRecv", a.Recv);
        find(library, "ncclAlltoAll", a.AlltoAll, true);
        return a;
    }();
    return api;
}

constexpr double kConnectSeconds = 120;

class NcclBlocks final : public BlockTransport {
  public:
    NcclBlocks(World& world, CudaDevice& device, std::span<const int> group)
        : world_(world), device_(device) {
        device.make_current();
        std::vector<int> all(static_cast<size_t>(world.size()));
        std::iota(all.begin(), all.end(), 0);
        for (Channel& channel : channels_) {
            const bool in_group = &channel == &channels_[kGroupChannel];
            for (int i = 0; i < kBlockSlots; ++i) channel.slots.emplace_back(device);
            if (!in_group) channel.stream.emplace(device, /*urgent=*/true);
            if (!in_group) channel.ranks = all;
            if (in_group && group.size() > 1) channel.ranks.assign(group.begin(), group.end());
            connect(channel);
        }
    }
    ~NcclBlocks() override {
        for (Channel& channel : channels_) end(channel);
    }

    std::string_view name() const override { return "nccl"; }
    int rank() const override { return world_.rank(); }
    int num_ranks() const override { return world_.size(); }
    std::string host(int rank) const override { return world_.host(rank); }
    CudaDevice& device() override { return device_; }

    void exchange(int channel_index, int slot_index, std::span<const PeerBlock> sends,
                  std::span<const PeerBlock> receives) override {
        Channel& channel = channels_[static_cast<size_t>(channel_index)];
        Slot& slot = channel.slots[static_cast<size_t>(slot_index)];
        FERRY_CHECK(channel.comm != nullptr, "channel {} has no ranks", channel_index);
        device_.make_current();
        if (channel.stream) {
            slot.ready.record(device_.stream());
            slot.ready.hold_up(channel.stream->get());
        }
        slot.peers.clear();
        for (const PeerBlock& block : receives) slot.peers.push_back(block.peer);
        for (const PeerBlock& block : sends) slot.peers.push_back(block.peer);
        const size_t size = channel.stream ? all_to_all_bytes(sends, receives) : 0;
        if (size > 0)
            check(channel, slot,
                  nccl().AlltoAll(sends[0].data, receives[0].data, size, ncclUint8, channel.comm,
                                  stream_of(channel)));
        else
            start_group(channel, slot, sends, receives);
        wait_until_in_stream(channel, slot);
        if (!channel.stream) return;  // what comes next in the device's stream comes after it
        slot.finished.record(channel.stream->get());
        slot.state = is_recording(device_) ? Slot::recorded : Slot::started;
    }

    void wait(int channel_index, int slot_index) override {
        const Slot& slot = slot_of(channel_index, slot_index);
        if (slot.state != Slot::settled) slot.finished.hold_up(device_.stream());
    }

    bool done(int channel_index, int slot_index) override {
        Slot& slot = slot_of(channel_index, slot_index);
        check_network(channels_[static_cast<size_t>(channel_index)], slot);
        return slot.state == Slot::settled || slot.finished.done();
    }

    void settle() override {
        for (Channel& channel : channels_)
            for (Slot& slot : channel.slots) {
                if (slot.state == Slot::started) slot.finished.hold_up(device_.stream());
                slot.state = Slot::settled;
            }
    }

    void check() override {
        for (Channel& channel : channels_)
            if (channel.comm != nullptr) check_network(channel, channel.slots[0]);
    }

  private:
    struct Slot {
        explicit Slot(const CudaDevice& device) : ready(device), finished(device) {}
        Event ready, finished;
        enum State { settled, started, recorded } state = settled;  // the last group
        std::vector<int> peers;                                     // of it, for messages
    };
    struct Channel {
        std::vector<int> ranks;  // of the world, in order of their ranks in `comm`
        std::vector<int> rank_of_world;
        std::optional<Stream> stream;  // none: the device's
        std::vector<Slot> slots;
        ncclComm_t comm = nullptr;
    };

    Slot& slot_of(int channel, int slot) {
        return channels_[static_cast<size_t>(channel)].slots[static_cast<size_t>(slot)];
    }

    CUstream_st* stream_of(const Channel& channel) const {
        return channel.stream ? channel.stream->get() : device_.stream();
    }
    static int rank_in(const Channel& channel, int world_rank) {
        const int rank = channel.rank_of_world[static_cast<size_t>(world_rank)];
        FERRY_CHECK(rank >= 0, "rank {} is not in this channel", world_rank);
        return rank;
    }

    // The first of the channel's ranks makes its id. Collective over all ranks, also those whose
    // channel has none.
    ncclUniqueId agree_on_id(const Channel& channel) {
        ncclUniqueId id{};
        std::string made;
        if (!channel.ranks.empty() && channel.ranks.front() == rank()) {
            check_start(nccl().GetUniqueId(&id), channel);
            made.assign(id.internal, sizeof id.internal);
        }
        const std::vector<std::string> all = world_.all_gather(made);
        if (channel.ranks.empty()) return id;
        const std::string& first = all[static_cast<size_t>(channel.ranks.front())];
        FERRY_CHECK(first.size() == sizeof id.internal, "an id of {} bytes", first.size());
        std::copy(first.begin(), first.end(), id.internal);
        return id;
    }

    void connect(Channel& channel) {
        const ncclUniqueId id = agree_on_id(channel);
        if (channel.ranks.empty()) return;
        const auto num_ranks = static_cast<int>(channel.ranks.size());
        channel.rank_of_world.assign(static_cast<size_t>(world_.size()), -1);
        for (int i = 0; i < num_ranks; ++i)
            channel.rank_of_world[static_cast<size_t>(channel.ranks[static_cast<size_t>(i)])] = i;
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        check_start(nccl().CommInitRankConfig(&channel.comm, num_ranks, id,
                                              rank_in(channel, rank()), &config),
                    channel);
        const auto deadline =
            std::chrono::steady_clock::now() + std::chrono::duration<double>(kConnectSeconds);
        ncclResult_t state = ncclInProgress;
        while (state == ncclInProgress) {
            check_start(nccl().CommGetAsyncError(channel.comm, &state), channel);
            if (std::chrono::steady_clock::now() > deadline) {
                nccl().CommAbort(channel.comm);
                throw Error(ErrorKind::communication,
                            "NCCL did not connect the {} ranks within {:.0f} s; NCCL_DEBUG=INFO "
                            "tells more",
                            num_ranks, kConnectSeconds);
            }
            sched_yield();
        }
        check_start(state, channel);
    }
    void check_start(ncclResult_t result, const Channel& channel) {
        if (result == ncclSuccess || result == ncclInProgress) return;
        throw Error(ErrorKind::communication,
                    "NCCL cannot start on rank {} on {}: {} ({}); NCCL_DEBUG=INFO tells more",
                    rank(), host(rank()), nccl().GetErrorString(result),
                    nccl().GetLastError(channel.comm));
    }

    // Bytes of each block when every rank sends one block of the same size to every rank, and
    // blocks lie one after the other in order of ranks; else 0.
    size_t all_to_all_bytes(std::span<const PeerBlock> sends,
                            std::span<const PeerBlock> receives) const {
        if (nccl().AlltoAll == nullptr) return 0;
        const auto in_order = [&](std::span<const PeerBlock> blocks) {
            if (static_cast<int>(blocks.size()) != num_ranks()) return false;
            for (size_t i = 0; i < blocks.size(); ++i)
                if (blocks[i].peer != static_cast<int>(i) ||
                    blocks[i].size_bytes != blocks[0].size_bytes ||
                    blocks[i].data !=
                        static_cast<std::byte*>(blocks[0].data) + i * blocks[0].size_bytes)
                    return false;
            return true;
        };
        return in_order(sends) && in_order(receives) &&
                       sends[0].size_bytes == receives[0].size_bytes
                   ? sends[0].size_bytes
                   : 0;
    }

    void start_group(Channel& channel, Slot& slot, std::span<const PeerBlock> sends,
                     std::span<const PeerBlock> receives) {
        check(channel, slot, nccl().GroupStart());
        for (const PeerBlock& block : sends)
            if (block.size_bytes > 0)
                check(channel, slot,
                      nccl().Send(block.data, block.size_bytes, ncclUint8,
                                  rank_in(channel, block.peer), channel.comm, stream_of(channel)));
        for (const PeerBlock& block : receives)
            if (block.size_bytes > 0)
                check(channel, slot,
                      nccl().Recv(block.data, block.size_bytes, ncclUint8,
                                  rank_in(channel, block.peer), channel.comm, stream_of(channel)));
        check(channel, slot, nccl().GroupEnd());
    }

    void check_network(Channel& channel, const Slot& slot) {
        ncclResult_t state = ncclSuccess;
        check(channel, slot, nccl().CommGetAsyncError(channel.comm, &state));
        if (state != ncclInProgress) check(channel, slot, state);
    }

    // A communicator that does not block may still be connecting peers; events must not be recorded
    // before its work is in the stream.
    void wait_until_in_stream(Channel& channel, const Slot& slot) {
        ncclResult_t state = ncclInProgress;
        while (state == ncclInProgress) {
            check(channel, slot, nccl().CommGetAsyncError(channel.comm, &state));
            if (progress_state().failed)
                throw Error(ErrorKind::communication, "another rank has failed");
            if (state == ncclInProgress) sched_yield();
        }
        check(channel, slot, state);
    }

    void check(Channel& channel, const Slot& slot, ncclResult_t result) {
        if (result == ncclSuccess || result == ncclInProgress) return;
        const std::string reason = nccl().GetErrorString(result);
        const std::string detail = nccl().GetLastError(channel.comm);
        for (Channel& each : channels_)
            if (each.comm != nullptr) nccl().CommAbort(std::exchange(each.comm, nullptr));
        std::string peers;
        for (const int peer : slot.peers)
            if (peer != rank())
                peers += fmt::format("{}{} on {}", peers.empty() ? "" : ", ", peer, host(peer));
        throw Error(ErrorKind::communication, "lost one of the ranks {}: NCCL reports {} ({})",
                    peers.empty() ? std::to_string(rank()) : peers, reason, detail);
    }

    // Waits for peers unless the job has failed, when nobody would answer.
    void end(Channel& channel) noexcept {
        if (channel.comm == nullptr) return;
        if (std::uncaught_exceptions() > 0 || progress_state().failed) {
            nccl().CommAbort(channel.comm);
            return;
        }
        ncclResult_t state = nccl().CommFinalize(channel.comm);
        while (state == ncclInProgress &&
               nccl().CommGetAsyncError(channel.comm, &state) == ncclSuccess)
            sched_yield();
        nccl().CommDestroy(channel.comm);
    }

    World& world_;
    CudaDevice& device_;
    std::array<Channel, kBlockChannels> channels_;
};

}  // namespace

std::unique_ptr<BlockTransport> make_nccl_blocks(World& world, CudaDevice& device,
                                                 std::span<const int> group) {
    return std::make_unique<NcclBlocks>(world, device, group);
}

std::string nccl_build_version() {
    return fmt::format("{}.{}.{}", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
}

}  // namespace ferry

#else

namespace ferry {

std::unique_ptr<BlockTransport> make_nccl_blocks(World&, CudaDevice&, std::span<const int>) {
    throw Error(
        ErrorKind::usage,
        "exchange.transport: nccl is not in this build (no NCCL was found); use ucx or mpi");
}

std::string nccl_build_version() {
    return {};
}

}  // namespace ferry
#endif
