#include "base/thread_pool.h"

#include <chrono>

#include "base/check.h"

namespace ferry {
namespace {

constexpr std::chrono::microseconds kSpin{50};
constexpr uint32_t kOpen = uint32_t{1} << 31;

// Waits until `value` differs from `old`: yields the core for a short while, then sleeps in the
// kernel.
template <typename T>
T wait_change(const std::atomic<T>& value, T old) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    for (;;) {
        const T now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        if (std::chrono::steady_clock::now() > deadline) break;
        std::this_thread::yield();
    }
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, size_t scratch_bytes)
    : num_threads_(num_threads),
      scratch_bytes_(scratch_bytes),
      scratch_(cpu_device(), scratch_bytes * static_cast<size_t>(num_threads)) {
    FERRY_CHECK(num_threads >= 1, "a thread pool of {} threads", num_threads);
    for (int thread = 1; thread < num_threads; ++thread)
        workers_.emplace_back([this, thread] { worker_loop(thread); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t num_tasks, void* context, Body body) {
    // Nobody is inside: the last loop ended when all had left, and none may enter yet.
    body_ = body;
    context_ = context;
    num_tasks_ = num_tasks;
    next_task_.store(0, std::memory_order_relaxed);
    workers_inside_.store(kOpen, std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    work(0);
    uint32_t inside = workers_inside_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
    while (inside != 0) inside = wait_change(workers_inside_, inside);
}

void ThreadPool::work(int thread) {
    for (;;) {
        const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
        if (task >= num_tasks_) return;
        body_(context_, task, thread);
    }
}

bool ThreadPool::enter() {
    uint32_t inside = workers_inside_.load(std::memory_order_relaxed);
    while ((inside & kOpen) != 0)
        if (workers_inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire,
                                                  std::memory_order_relaxed))
            return true;
    return false;
}

void ThreadPool::leave() {
    if (workers_inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) workers_inside_.notify_one();
}

void ThreadPool::worker_loop(int thread) {
    uint32_t seen = 0;
    for (;;) {
        seen = wait_change(generation_, seen);
        if (stop_.load(std::memory_order_relaxed)) return;
        if (!enter()) continue;
        work(thread);
        leave();
    }
}

}  // namespace ferry
