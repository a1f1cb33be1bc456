#include "comm/node_memory.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#if FERRY_HAS_MPI
#include "comm/mpi_api.h"
#endif

namespace ferry {
namespace {

// Few windows for large models; small ones fit the 64 MiB that a container has by default.
constexpr size_t kFirstWindowBytes = size_t{2} << 20;
constexpr size_t kDoublings = 5;
constexpr size_t kAlignment = 64;

}  // namespace

#if FERRY_HAS_MPI

struct NodeMemory::Impl {
    const World& world;
    MPI_Comm members = MPI_COMM_NULL;
    std::vector<MPI_Win> windows = {};
};

NodeMemory::NodeMemory(World& world, int group) : impl_(new Impl{world, MPI_COMM_NULL, {}}) {
    meet(world, world_communicator(world), "MPI_Comm_split");
    // A colour for each group of each node. Groups are numbered below the size of the world.
    FERRY_CHECK(group < world.size());
    const int colour = group < 0 ? MPI_UNDEFINED : world.node() * world.size() + group;
    mpi_check(MPI_Comm_split(world_communicator(world), colour, world.rank(), &impl_->members),
              "MPI_Comm_split");
    if (group < 0) return;
    MPI_Comm_rank(impl_->members, &rank_);
    MPI_Comm_size(impl_->members, &size_);
}

void NodeMemory::grow(size_t size_bytes) {
    const size_t next_bytes = kFirstWindowBytes << std::min(impl_->windows.size(), kDoublings);
    const size_t window_bytes = std::max(size_bytes + kAlignment, next_bytes);
    MPI_Win window = MPI_WIN_NULL;
    void* own = nullptr;
    meet(impl_->world, impl_->members, "MPI_Win_allocate_shared");
    if (MPI_Win_allocate_shared(rank_ == 0 ? static_cast<MPI_Aint>(window_bytes) : 0, 1,
                                MPI_INFO_NULL, impl_->members, &own, &window) != MPI_SUCCESS)
        throw Error(ErrorKind::memory,
                    "cannot allocate {:.2f} GiB that the ranks of a node share; is /dev/shm large "
                    "enough for them?",
                    static_cast<double>(window_bytes) / (1 << 30));
    impl_->windows.push_back(window);
    MPI_Aint size = 0;
    int unit = 0;
    void* data = nullptr;
    mpi_check(MPI_Win_shared_query(window, 0, &size, &unit, &data), "MPI_Win_shared_query");
    // Members map the window at different addresses, which differ by whole pages.
    const size_t skip = (kAlignment - reinterpret_cast<size_t>(data) % kAlignment) % kAlignment;
    free_ = static_cast<std::byte*>(data) + skip;
    num_free_bytes_ = window_bytes - skip;
}

void NodeMemory::barrier() {
    if (size_ == 1) return;
    meet(impl_->world, impl_->members, "a barrier of the ranks of a node");
}

void NodeMemory::release() {
    for (MPI_Win& window : impl_->windows) mpi_check(MPI_Win_free(&window), "MPI_Win_free");
    impl_->windows.clear();
    if (impl_->members != MPI_COMM_NULL) MPI_Comm_free(&impl_->members);
    free_ = nullptr;
    num_free_bytes_ = 0;
}

#else

struct NodeMemory::Impl {};
NodeMemory::NodeMemory(World&, int) {}
void NodeMemory::grow(size_t) {}
void NodeMemory::barrier() {}
void NodeMemory::release() {}

#endif

NodeMemory::~NodeMemory() = default;

Buffer NodeMemory::take(size_t size_bytes) {
    if (size_ == 1) return Buffer(cpu_device(), size_bytes);
    const size_t taken = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (taken > num_free_bytes_) grow(taken);
    Buffer buffer = Buffer::adopt(free_, size_bytes, [] {});
    free_ += taken;
    num_free_bytes_ -= taken;
    return buffer;
}

}  // namespace ferry
