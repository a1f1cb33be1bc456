// A fixed set of threads that run the tasks of one parallel loop at a time. The caller works too.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/buffer.h"

namespace ferry {

// Tasks are claimed in order by whoever is free; results must not depend on which thread ran a
// task. Idle workers look out for the next loop for a few microseconds (kernels of one step follow
// each other closely), giving the core to whoever wants it, then sleep. A loop ends when its tasks
// are done, not when every worker has noticed it: one that sleeps or waits for a core holds up
// nobody.
class ThreadPool {
  public:
    // `num_threads` includes the calling thread; each gets `scratch_bytes` of memory that lives as
    // long as the pool.
    explicit ThreadPool(int num_threads, size_t scratch_bytes = size_t{4} << 20);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }

    // fn(task, thread) for every task in [0, num_tasks), thread in [0, num_threads). Returns when
    // all are done. Not reentrant; one caller at a time. fn must not throw.
    template <typename Fn>
    void parallel_for(int64_t num_tasks, Fn&& fn) {
        if (num_tasks <= 1 || num_threads_ == 1) {
            for (int64_t task = 0; task < num_tasks; ++task) fn(task, 0);
            return;
        }
        run(num_tasks, &fn, [](void* context, int64_t task, int thread) {
            (*static_cast<std::remove_reference_t<Fn>*>(context))(task, thread);
        });
    }

    // Scratch memory of a thread, for the length of one task.
    std::byte* scratch(int thread) const {
        return scratch_.as<std::byte>() + static_cast<size_t>(thread) * scratch_bytes_;
    }
    size_t scratch_bytes() const { return scratch_bytes_; }

  private:
    using Body = void (*)(void* context, int64_t task, int thread);
    void run(int64_t num_tasks, void* context, Body body);
    void work(int thread);
    bool enter();
    void leave();
    void worker_loop(int thread);

    int num_threads_;
    size_t scratch_bytes_;
    Buffer scratch_;

    Body body_ = nullptr;
    void* context_ = nullptr;
    int64_t num_tasks_ = 0;
    alignas(64) std::atomic<int64_t> next_task_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};  // one more per loop
    // Workers inside the loop, and kOpen while more may enter.
    alignas(64) std::atomic<uint32_t> workers_inside_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace ferry
