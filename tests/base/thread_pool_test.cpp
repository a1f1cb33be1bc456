#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>

namespace ferry {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
    for (int num_threads : {1, 2, 3, 8}) {
        ThreadPool pool(num_threads, 64);
        for (int64_t num_tasks : {0, 1, 2, 7, 1000}) {
            std::vector<int> runs(static_cast<size_t>(num_tasks));
            pool.parallel_for(num_tasks, [&](int64_t task, int thread) {
                ASSERT_LT(thread, num_threads);
                ++runs[static_cast<size_t>(task)];
            });
            EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), int64_t{0}), num_tasks);
            for (int count : runs) EXPECT_EQ(count, 1);
        }
    }
}

TEST(ThreadPool, ManyShortLoopsAndSleepsBetween) {
    ThreadPool pool(3, 64);
    std::atomic<int64_t> sum{0};
    for (int round = 0; round < 3000; ++round) {
        pool.parallel_for(5, [&](int64_t task, int) { sum += task; });
        if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_EQ(sum, 3000 * 10);
}

// More threads than cores: loops end while some workers have not even noticed them.
TEST(ThreadPool, LateWorkersTouchNoLaterLoop) {
    ThreadPool pool(16, 64);
    for (int64_t round = 0; round < 2000; ++round) {
        const int64_t num_tasks = 2 + round % 20;
        std::vector<int64_t> results(static_cast<size_t>(num_tasks), -1);
        pool.parallel_for(num_tasks, [&](int64_t task, int) {
            ASSERT_EQ(results[static_cast<size_t>(task)], -1);
            results[static_cast<size_t>(task)] = round + task;
        });
        for (int64_t task = 0; task < num_tasks; ++task)
            ASSERT_EQ(results[static_cast<size_t>(task)], round + task);
    }
}

TEST(ThreadPool, ScratchOfThreadsDoesNotOverlap) {
    ThreadPool pool(2, 128);
    EXPECT_EQ(pool.scratch(1) - pool.scratch(0), 128);
    pool.scratch(1)[127] = std::byte{1};
}

}  // namespace
}  // namespace ferry
