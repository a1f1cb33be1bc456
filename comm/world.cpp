#include "comm/world.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/cores.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/idle.h"
#include "comm/launcher.h"
#include "comm/progress_state.h"
#if FERRY_HAS_MPI
#include "comm/mpi_api.h"
#include "comm/roll_call.h"
#endif

namespace ferry {
namespace {

std::string own_host() {
    char name[256] = {};
    gethostname(name, sizeof name - 1);
    return name;
}

}  // namespace

#if FERRY_HAS_MPI

namespace {

// Every task meets it; one tells.
[[noreturn]] void refuse_lone_tasks(const GetEnv& get) {
    if (launcher_rank(get) > 0) std::_Exit(exit_code(ErrorKind::usage));
    throw Error(ErrorKind::usage,
                "the launcher started {} tasks, but each of them is an MPI world of its own: ferry "
                "was built with {}, which does not understand this launcher; use srun --mpi=pmix "
                "(srun --mpi=list shows what this Slurm has), or that MPI's mpirun",
                launcher_tasks(get), mpi_version());
}

}  // namespace

struct World::Impl {
    MPI_Comm world = MPI_COMM_NULL;
    MPI_Comm node = MPI_COMM_NULL;
};

World::World(int* argc, char*** argv, const std::function<void()>& mpi_started)
    : impl_(std::make_unique<Impl>()), deadline_s_(start_timeout_s(own_environment)) {
    // Open MPI would abort with twenty lines on every rank.
    if (lacks_process_manager(own_environment, mpi_version())) refuse_lone_tasks(own_environment);
    // A process without a launcher needs no daemon beside it, which Open MPI would look for in
    // PATH.
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    int provided = 0;
    mpi_check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    if (mpi_started) mpi_started();
    if (size_ == 1 && launcher_tasks(own_environment) > 1) refuse_lone_tasks(own_environment);
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Comm world = MPI_COMM_NULL;
    mpi_check(MPI_Comm_idup(MPI_COMM_WORLD, &world, &request), "MPI_Comm_idup");
    wait_for_all(*this, request, "MPI_Comm_idup");
    impl_->world = world;
    MPI_Comm_set_errhandler(impl_->world, MPI_ERRORS_RETURN);
    discover_nodes();
    discover_cores();
}

World::World()
    : impl_(std::make_unique<Impl>()),
      owns_mpi_(false),
      deadline_s_(start_timeout_s(own_environment)) {}

std::unique_ptr<World> World::first_ranks(int num_ranks) {
    MPI_Comm part = MPI_COMM_NULL;
    meet(*this, impl_->world, "MPI_Comm_split");
    mpi_check(MPI_Comm_split(impl_->world, rank_ < num_ranks ? 0 : MPI_UNDEFINED, rank_, &part),
              "MPI_Comm_split");
    if (part == MPI_COMM_NULL) return nullptr;
    std::unique_ptr<World> world(new World());
    world->impl_->world = part;
    world->set_deadline(deadline_s_, phase_);
    MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN);
    MPI_Comm_rank(part, &world->rank_);
    MPI_Comm_size(part, &world->size_);
    world->discover_nodes();
    world->discover_cores();
    return world;
}

void World::discover_nodes() {
    meet(*this, impl_->world, "MPI_Comm_split_type");
    mpi_check(
        MPI_Comm_split_type(impl_->world, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &impl_->node),
        "MPI_Comm_split_type");
    MPI_Comm_rank(impl_->node, &node_rank_);
    MPI_Comm_size(impl_->node, &node_size_);
    int leader = rank_;
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Ibcast(&leader, 1, MPI_INT, 0, impl_->node, &request), "MPI_Ibcast");
    wait_for_all(*this, request, "MPI_Ibcast");
    std::vector<int> leader_of_rank(size_);
    mpi_check(MPI_Iallgather(&leader, 1, MPI_INT, leader_of_rank.data(), 1, MPI_INT, impl_->world,
                             &request),
              "MPI_Iallgather");
    wait_for_all(*this, request, "MPI_Iallgather");
    const std::vector<std::string> host_of_rank = all_gather(own_host());
    std::map<int, int> node_of_leader;  // leaders in order of rank
    for (int leader_rank : leader_of_rank) node_of_leader.try_emplace(leader_rank, 0);
    for (auto& [leader_rank, node] : node_of_leader) {
        node = static_cast<int>(host_of_node_.size());
        host_of_node_.push_back(host_of_rank[leader_rank]);
    }
    for (int leader_rank : leader_of_rank) node_of_rank_.push_back(node_of_leader[leader_rank]);
}

namespace {

// MPI_Finalize waits for all ranks and has no deadline: beyond it, this rank ends at once.
class EndDeadline {
  public:
    explicit EndDeadline(const World& world)
        : thread_([this, &world] {
              std::unique_lock lock(mutex_);
              const std::chrono::duration<double> patience(world.deadline_s());
              if (done_.wait_for(lock, patience, [this] { return is_over_; })) return;
              tell(
                  "ferry: communication: rank {} on {} waited {:.0f} s in MPI_Finalize for "
                  "all ranks: some rank is lost or cut off\n",
                  world.rank(), world.host(), patience.count());
              std::_Exit(exit_code(ErrorKind::communication));
          }) {}
    ~EndDeadline() {
        {
            const std::lock_guard lock(mutex_);
            is_over_ = true;
        }
        done_.notify_one();
        thread_.join();
    }

  private:
    std::mutex mutex_;
    std::condition_variable done_;
    bool is_over_ = false;
    std::thread thread_;  // last: it uses the others
};

}  // namespace

World::~World() {
    if (std::uncaught_exceptions() > 0) return;
    std::optional<EndDeadline> deadline;
    if (owns_mpi_ && size_ > 1) deadline.emplace(*this);
    if (impl_->node != MPI_COMM_NULL) MPI_Comm_free(&impl_->node);
    if (impl_->world != MPI_COMM_NULL) MPI_Comm_free(&impl_->world);
    if (owns_mpi_) MPI_Finalize();
}

void World::abort(int exit_code) {
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
}

namespace {

constexpr double kRollCallS = 5;

std::string name_ranks(const World& world, const std::vector<int>& ranks) {
    constexpr size_t kMaxNamed = 8;
    std::string names = ranks.size() == 1 ? "rank" : "ranks";
    for (size_t i = 0; i < std::min(ranks.size(), kMaxNamed); ++i) {
        names += fmt::format("{} {}", i == 0 ? "" : ",", ranks[i]);
        if (!world.host_of_node().empty()) names += " on " + world.host(ranks[i]);
    }
    if (ranks.size() > kMaxNamed) names += fmt::format(" and {} more", ranks.size() - kMaxNamed);
    return names;
}

// Waited for too long. On rank 0 who is missing becomes known; the others leave it to rank 0 to
// tell and to end the job, unless it is missing itself.
[[noreturn]] void tell_who_is_missing(const World& world, RollCall& roll_call, double waited_s,
                                      const char* what) {
    const double patience_s = std::min(kRollCallS, world.deadline_s());
    std::vector<int> missing{0};
    if (world.rank() == 0)
        missing = roll_call.call(patience_s);
    else
        roll_call.request(2 * patience_s);
    const std::string reason = missing.empty()
                                   ? "all of them answer, so it is the network between them"
                                   : "no answer from " + name_ranks(world, missing) +
                                         ": lost, cut off, or busy with something else";
    throw Error(ErrorKind::communication,
                "rank {} waited {:.0f} s {} for all ranks to take part in {}: {}", world.rank(),
                waited_s, world.phase(), what, reason);
}

}  // namespace

void wait_for_all(const World& world, MPI_Request request, const char* what) {
    const MPI_Comm all = world.impl()->world;
    RollCall roll_call(all == MPI_COMM_NULL ? MPI_COMM_WORLD : all, world.rank(), world.size(),
                       world.count_wait());
    Idle idle;
    for (int done = 0;;) {
        mpi_check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
        if (done != 0) return;
        if (world.work_while_waiting() || !idle.pause()) continue;
        const ProgressState& state = progress_state();
        if (state.failed.load(std::memory_order_relaxed))
            throw Error(ErrorKind::communication,
                        "rank {} stops {}, waiting for all ranks ({}): {}", world.rank(),
                        world.phase(), what, state.failure());
        if (roll_call.look() || idle.seconds() > world.deadline_s())
            tell_who_is_missing(world, roll_call, idle.seconds(), what);
    }
}

void meet(const World& world, MPI_Comm communicator, const char* what) {
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Ibarrier(communicator, &request), what);
    wait_for_all(world, request, what);
}

void World::barrier() {
    meet(*this, impl_->world, "a barrier");
}

void World::barrier(const std::function<bool()>& work) {
    struct Restored {
        std::function<bool()>& place;
        std::function<bool()> before;
        ~Restored() { place = std::move(before); }
    } restored{while_waiting_, std::exchange(while_waiting_, work)};
    barrier();
}

void World::wait_quietly() {
    const double deadline_s = std::exchange(deadline_s_, std::numeric_limits<double>::infinity());
    barrier();
    deadline_s_ = deadline_s;
}

void World::broadcast(void* data, size_t size_bytes, int root) {
    constexpr size_t kPiece = size_t{1} << 30;  // counts are ints
    for (size_t done = 0; done < size_bytes; done += kPiece) {
        MPI_Request request = MPI_REQUEST_NULL;
        mpi_check(MPI_Ibcast(static_cast<std::byte*>(data) + done,
                             static_cast<int>(std::min(kPiece, size_bytes - done)), MPI_BYTE, root,
                             impl_->world, &request),
                  "MPI_Ibcast");
        wait_for_all(*this, request, "a broadcast");
    }
}

std::string World::broadcast(const std::string& text, int root) {
    uint64_t size = text.size();
    broadcast(&size, sizeof size, root);
    std::string result = rank_ == root ? text : std::string(size, '\0');
    broadcast(result.data(), size, root);
    return result;
}

namespace {

// Texts by rank that lie one after the other; counts and offsets are ints.
struct Joined {
    std::vector<int> sizes, offsets;
    std::string text;

    explicit Joined(const std::vector<int64_t>& all_sizes) : offsets(all_sizes.size() + 1, 0) {
        const int64_t total = std::accumulate(all_sizes.begin(), all_sizes.end(), int64_t{0});
        FERRY_CHECK(total <= std::numeric_limits<int>::max(), "{} bytes are too many to gather",
                    total);
        sizes.assign(all_sizes.begin(), all_sizes.end());
        std::partial_sum(sizes.begin(), sizes.end(), offsets.begin() + 1);
        text.resize(static_cast<size_t>(total));
    }
    std::vector<std::string> split() const {
        std::vector<std::string> texts;
        for (size_t r = 0; r < sizes.size(); ++r)
            texts.push_back(text.substr(offsets[r], sizes[r]));
        return texts;
    }
};

}  // namespace

std::vector<std::string> World::all_gather(const std::string& text) {
    const int64_t size = std::ssize(text);
    std::vector<int64_t> sizes(size_);
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(
        MPI_Iallgather(&size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, impl_->world, &request),
        "MPI_Iallgather");
    wait_for_all(*this, request, "a gather of sizes");
    Joined all(sizes);
    mpi_check(
        MPI_Iallgatherv(text.data(), all.sizes[rank_], MPI_CHAR, all.text.data(), all.sizes.data(),
                        all.offsets.data(), MPI_CHAR, impl_->world, &request),
        "MPI_Iallgatherv");
    wait_for_all(*this, request, "a gather");
    return all.split();
}

std::vector<std::string> World::all_to_all(const std::vector<std::string>& texts) {
    FERRY_CHECK(std::ssize(texts) == size_);
    std::vector<int64_t> own_sizes, sizes(size_);
    for (const std::string& text : texts) own_sizes.push_back(std::ssize(text));
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Ialltoall(own_sizes.data(), 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T,
                            impl_->world, &request),
              "MPI_Ialltoall");
    wait_for_all(*this, request, "an exchange of sizes");
    Joined own(own_sizes), all(sizes);
    for (int r = 0; r < size_; ++r)
        texts[r].copy(own.text.data() + own.offsets[r], texts[r].size());
    mpi_check(MPI_Ialltoallv(own.text.data(), own.sizes.data(), own.offsets.data(), MPI_CHAR,
                             all.text.data(), all.sizes.data(), all.offsets.data(), MPI_CHAR,
                             impl_->world, &request),
              "MPI_Ialltoallv");
    wait_for_all(*this, request, "an exchange");
    return all.split();
}

namespace {

int64_t all_reduce(const World& world, int64_t value, MPI_Op operation, const char* what) {
    MPI_Request request = MPI_REQUEST_NULL;
    int64_t result = 0;
    mpi_check(MPI_Iallreduce(&value, &result, 1, MPI_INT64_T, operation, world_communicator(world),
                             &request),
              "MPI_Iallreduce");
    wait_for_all(world, request, what);
    return result;
}

}  // namespace

int64_t World::all_sum(int64_t value) {
    return all_reduce(*this, value, MPI_SUM, "a sum");
}

int64_t World::all_max(int64_t value) {
    return all_reduce(*this, value, MPI_MAX, "a maximum");
}

MPI_Comm world_communicator(const World& world) {
    return world.impl()->world;
}

std::string mpi_version() {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    const std::string version(text, static_cast<size_t>(length));
    return version.substr(0, version.find_first_of(",\n"));
}

#else  // one rank

struct World::Impl {};

World::World(int*, char***, const std::function<void()>& mpi_started)
    : deadline_s_(start_timeout_s(own_environment)) {
    if (mpi_started) mpi_started();
    const int tasks = launcher_tasks(own_environment);
    if (tasks > 1)
        throw Error(ErrorKind::usage,
                    "the launcher started {} tasks, but this ferry was built without MPI; install "
                    "libopenmpi-dev and build again, or start one task",
                    tasks);
    discover_nodes();
    discover_cores();
}
void World::discover_nodes() {
    node_of_rank_ = {0};
    host_of_node_ = {own_host()};
}
World::~World() = default;
void World::abort(int exit_code) {
    std::fflush(nullptr);
    std::_Exit(exit_code);
}
void World::barrier() {}
void World::barrier(const std::function<bool()>& /*work*/) {}
void World::wait_quietly() {}
World::World() : owns_mpi_(false), deadline_s_(start_timeout_s(own_environment)) {
    discover_nodes();
}
std::unique_ptr<World> World::first_ranks(int num_ranks) {
    return num_ranks > 0 ? std::unique_ptr<World>(new World()) : nullptr;
}
void World::broadcast(void*, size_t, int) {}
std::string World::broadcast(const std::string& text, int) {
    return text;
}
std::vector<std::string> World::all_gather(const std::string& text) {
    return {text};
}
std::vector<std::string> World::all_to_all(const std::vector<std::string>& texts) {
    return texts;
}
int64_t World::all_sum(int64_t value) {
    return value;
}
int64_t World::all_max(int64_t value) {
    return value;
}
std::string mpi_version() {
    return "none (built without MPI)";
}

#endif

void World::set_deadline(double seconds, std::string phase) {
    deadline_s_ = seconds;
    phase_ = std::move(phase);
}

namespace {

// Of `text`, its line where it differs from `other` first; without the spaces that it begins with.
std::string differing_line(const std::string& text, const std::string& other) {
    const auto [at, end] = std::mismatch(text.begin(), text.end(), other.begin(), other.end());
    const auto index = static_cast<size_t>(at - text.begin());
    const size_t before = index == 0 ? std::string::npos : text.rfind('\n', index - 1);
    const size_t begin = before == std::string::npos ? 0 : before + 1;
    const std::string line = text.substr(begin, text.find('\n', index) - begin);
    const size_t word = line.find_first_not_of(' ');
    return word == std::string::npos ? "nothing" : line.substr(word);
}

}  // namespace

void check_same_everywhere(World& world, const std::string& what, const std::string& fingerprint) {
    const std::vector<std::string> all = world.all_gather(fingerprint);
    std::string others, first;
    int count = 0;
    for (int r = 1; r < world.size(); ++r) {
        if (all[r] == all[0] || ++count > 4) continue;
        if (count == 1) first = differing_line(all[0], all[r]);
        others += fmt::format("{}rank {} on {} has {}", others.empty() ? "" : ", ", r,
                              world.host(r), differing_line(all[r], all[0]));
    }
    if (count == 0) return;
    throw Error(ErrorKind::usage,
                "{} differs between ranks: rank 0 on {} has {}, but {}{}; start the same binary "
                "with the same files on every node",
                what, world.host(0), first, others,
                count > 4 ? fmt::format(" and {} more", count - 4) : "");
}

void World::discover_cores() {
    const std::vector<int> own = allowed_cores();
    cores_of_rank_ = all_gather(core_ranges(own));
    std::vector<std::vector<int>> of_node;
    for (int r = 0; r < size_; ++r)
        if (node_of_rank_[r] == node()) of_node.push_back(parse_core_ranges(cores_of_rank_[r]));
    own_cores_ = usable_cores(share_of_cores(own, of_node), static_cast<int>(of_node.size()));
}

std::string oversubscription_warning(World& world, int threads_per_rank) {
    const std::vector<std::string> threads = world.all_gather(std::to_string(threads_per_rank));
    std::vector<int> needed(world.num_nodes(), 0);
    // Ranks may be bound to different cores of the node: the union is what they have.
    std::vector<std::set<int>> cores(world.num_nodes());
    for (int r = 0; r < world.size(); ++r) {
        const int node = world.node_of_rank()[r];
        needed[node] += std::atoi(threads[r].c_str());
        for (const int core : parse_core_ranges(world.cores_of_rank()[r])) cores[node].insert(core);
    }
    for (int node = 0; node < world.num_nodes(); ++node) {
        const int available = static_cast<int>(cores[node].size());
        if (needed[node] > available)
            return fmt::format(
                "{} has {} cores for {} threads of its ranks ({} each): expect low speed; start "
                "fewer ranks per node or set engine.threads lower",
                world.host_of_node()[node], available, needed[node], threads_per_rank);
    }
    return "";
}

}  // namespace ferry
