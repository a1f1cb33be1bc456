// Rows of light kernels, shared out among threads when there are enough of them.
#pragma once
#include <algorithm>

#include "base/thread_pool.h"

namespace ferry {

// body(first_row, num_rows) over all rows. A task has at least 16 Ki values: some microseconds,
// more than it costs to hand over.
template <typename Body>
void for_row_ranges(ThreadPool& threads, int64_t rows, int64_t values_per_row, Body&& body) {
    constexpr int64_t kMinValues = 16 << 10, kTasksPerThread = 4;
    if (rows == 0) return;
    const int64_t tasks = std::min(
        {rows, rows * values_per_row / kMinValues, kTasksPerThread * threads.num_threads()});
    if (tasks <= 1 || threads.num_threads() == 1) return body(int64_t{0}, rows);
    threads.parallel_for(tasks, [&](int64_t task, int) {
        const int64_t first = rows * task / tasks;
        body(first, rows * (task + 1) / tasks - first);
    });
}

}  // namespace ferry
