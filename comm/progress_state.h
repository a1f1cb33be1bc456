// Where a rank is, for the watchdog and for error messages: written by the worker's main thread,
// read by the watchdog's thread at any moment.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "base/trace.h"

namespace ferry {

// Amounts that a job's watchdog adds up over all ranks, for the progress that rank 0 shows.
enum class Tally : uint8_t {
    loaded_bytes,
    verified_bytes,
    done,
    failed,
    running,  // unfinished requests, those that wait for room included
    tokens,
    waiting,  // of the unfinished ones
    cache_pages,
    cache_pages_used
};
constexpr size_t kNumTallies = 9;

// What a rank tells of itself with every heartbeat.
struct RankStatus {
    std::array<int64_t, kNumTallies> tallies{};
    std::array<int64_t, kNumZones> zone_ns{};  // without zones inside
};

enum class Activity : uint8_t {
    starting,
    loading,
    computing,
    waiting_dispatch,
    waiting_combine,
    waiting_tensor_parallel,
    waiting_requests,
    finishing
};
const char* to_string(Activity activity);

struct ProgressState {
    std::atomic<int64_t> step{-1};
    std::atomic<int32_t> layer{-1};
    std::atomic<int32_t> micro_batch{-1};
    std::atomic<Activity> activity{Activity::starting};
    std::atomic<uint64_t> beats{0};  // grows with everything that counts as progress

    std::array<std::atomic<int64_t>, kNumTallies> tallies{};
    void set(Tally tally, int64_t value) {
        tallies[static_cast<size_t>(tally)].store(value, std::memory_order_relaxed);
    }
    int64_t get(Tally tally) const {
        return tallies[static_cast<size_t>(tally)].load(std::memory_order_relaxed);
    }

    // Time in zones as of the last publish(), by the main thread.
    std::array<std::atomic<int64_t>, kNumZones> zone_ns{};
    void publish(const Trace& trace);
    RankStatus status() const;

    // World ranks that the current wait is for; the first kMaxWaiting of them.
    static constexpr int kMaxWaiting = 16;
    std::array<std::atomic<int32_t>, kMaxWaiting> waiting_for{};
    std::atomic<int32_t> num_waiting{0};  // may be larger than kMaxWaiting

    // A watchdog runs: it reports a stall first, on all ranks; deadlines of waits come a little
    // later.
    std::atomic<bool> watched{false};
    double longest_wait_s(double stall_timeout_s) const;
    // Set by the watchdog (any thread): the run cannot go on. Waits turn it into Error.
    std::atomic<bool> failed{false};
    void fail(const std::string& why);  // sets `failed`; the first reason is kept
    std::string failure() const;        // empty while all is well
    void forget_failure();              // for tests

    void beat() { beats.fetch_add(1, std::memory_order_relaxed); }
    void enter(Activity what) {
        activity.store(what, std::memory_order_relaxed);
        beat();
    }
    // "step 12, layer 3, micro-batch 1, waiting for expert outputs of ranks 4, 5"
    std::string describe() const;

  private:
    mutable std::mutex mutex_;
    std::string failure_;
};

// The one of this process.
ProgressState& progress_state();

}  // namespace ferry
