// [1] All ranks of the job: who shares a node with whom, start-up exchanges, the end of the job.
// Built without MPI, or started without a launcher, it is a world of one rank.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ferry {

// MPI is initialised with MPI_THREAD_FUNNELED: only the main thread of a rank calls it. Nothing
// needs more: kernels' threads compute, the watchdog has its own sockets, and THREAD_MULTIPLE would
// cost a lock per call and cut off one-sided components (osc/pt2pt refuses it).
//
// Everything below is for start-up and the end of a run, never for the hot path. Collective calls
// must be made by all ranks in the same order.
class World {
  public:
    // Once per process. Throws Error(usage) when this is a world of one although the launcher
    // started more tasks (an MPI library that does not understand the launcher). `mpi_started` runs
    // when MPI_Init is over, which has no deadline; whatever waits after it has.
    World(int* argc, char*** argv, const std::function<void()>& mpi_started = {});
    // Finalises MPI, unless an error is in flight: then finalise would wait for the dead. A rank
    // that waits there for longer than the deadline ends with the code of Error(communication).
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    // A world of its first `num_ranks` ranks, which keep their numbers; null on the others.
    // Collective. This world must outlive it, and all its ranks must end it alike.
    std::unique_ptr<World> first_ranks(int num_ranks);

    int rank() const { return rank_; }
    int size() const { return size_; }

    // Nodes: ranks that share memory, numbered by their lowest rank.
    int node() const { return node_of_rank_[rank_]; }
    int num_nodes() const { return static_cast<int>(host_of_node_.size()); }
    int node_rank() const { return node_rank_; }  // 0 ... node_size() - 1
    int node_size() const { return node_size_; }
    const std::vector<int>& node_of_rank() const { return node_of_rank_; }
    const std::vector<std::string>& host_of_node() const { return host_of_node_; }
    const std::string& host(int rank) const { return host_of_node_[node_of_rank_[rank]]; }
    const std::string& host() const { return host(rank_); }
    // What set_deadline() said.
    double deadline_s() const { return deadline_s_; }
    const std::string& phase() const { return phase_; }

    // Cores that each rank may run on ("0-3,8"), and this rank's share of its node's cores when
    // each is shared evenly by the ranks that may run on it.
    const std::vector<std::string>& cores_of_rank() const { return cores_of_rank_; }
    const std::string& cores() const { return cores_of_rank_[rank_]; }
    int own_cores() const { return own_cores_; }

    // Ends every rank of the job at once with this exit code.
    [[noreturn]] void abort(int exit_code);

    // Until the next call, a collective that waits for longer ends in Error(communication), naming
    // `phase` ("while the model is loaded") and the ranks that did not come; a rank that the
    // watchdog finds lost ends it at once. At first: "at start-up", start_timeout_s() (launcher.h).
    void set_deadline(double seconds, std::string phase);
    // What a rank does while it waits in a collective (true: it did something): messages of a
    // transport may need their sender's hands until they are taken. Null: nothing.
    void while_waiting(std::function<bool()> work) { while_waiting_ = std::move(work); }
    bool work_while_waiting() const { return while_waiting_ && while_waiting_(); }

    // Collectives. A rank that waits in one leaves its core to others. All throw
    // Error(communication).
    void barrier();
    void barrier(const std::function<bool()>& work);  // while_waiting() for its length
    void wait_quietly();  // a barrier without a deadline: others may be at work for long
    void broadcast(void* data, size_t size_bytes, int root);
    std::string broadcast(const std::string& text, int root);
    std::vector<std::string> all_gather(const std::string& text);  // by rank
    // texts[r] goes to rank r; from every rank what it has for this one.
    std::vector<std::string> all_to_all(const std::vector<std::string>& texts);
    int64_t all_sum(int64_t value);
    int64_t all_max(int64_t value);

    struct Impl;  // MPI's handles, for mpi_api.h
    const Impl* impl() const { return impl_.get(); }
    int64_t count_wait() const { return ++num_waits_; }  // collectives, the same on all ranks

  private:
    World();  // of first_ranks()
    void discover_nodes();
    void discover_cores();

    std::unique_ptr<Impl> impl_;
    bool owns_mpi_ = true;
    mutable int64_t num_waits_ = 0;
    double deadline_s_;
    std::string phase_ = "at start-up";
    std::function<bool()> while_waiting_;
    int rank_ = 0;
    int size_ = 1;
    int node_rank_ = 0;
    int node_size_ = 1;
    std::vector<int> node_of_rank_;
    std::vector<std::string> host_of_node_;
    std::vector<std::string> cores_of_rank_;
    int own_cores_ = 1;
};

// "Open MPI 4.1.4" or "none (built without MPI)".
std::string mpi_version();

// Start-up checks (DESIGN 4.7). All collective, the same outcome on every rank.
// `fingerprint`: of everything that must be equal on all ranks (build, configuration, checkpoint).
// Throws Error(usage) that names the ranks which differ from rank 0, and what differs.
void check_same_everywhere(World& world, const std::string& what, const std::string& fingerprint);
// One line for the log when a node has fewer cores than its ranks' threads need, else empty.
std::string oversubscription_warning(World& world, int threads_per_rank);

}  // namespace ferry
