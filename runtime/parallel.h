// Coarse work in parallel where tasks may fail (files), on top of the thread pool.
#pragma once
#include <atomic>
#include <exception>
#include <mutex>

#include "base/thread_pool.h"

namespace ferry {

// fn(task) for every task, claimed in order by whoever is free. After a failure no further task is
// begun and the first exception is thrown here.
template <typename Fn>
void parallel_tasks(ThreadPool& pool, int64_t num_tasks, Fn&& fn) {
    std::atomic<bool> failed{false};
    std::exception_ptr first;
    std::mutex mutex;
    pool.parallel_for(num_tasks, [&](int64_t task, int) {
        if (failed.load(std::memory_order_relaxed)) return;
        try {
            fn(task);
        } catch (...) {
            const std::lock_guard lock(mutex);
            if (!failed.exchange(true)) first = std::current_exception();
        }
    });
    if (first) std::rethrow_exception(first);
}

}  // namespace ferry
