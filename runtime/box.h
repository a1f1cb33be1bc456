// Boxes of row-major tensors as runs of neighbouring elements.
#pragma once
#include <span>
#include <vector>

#include "base/check.h"
#include "layers/weight_source.h"

namespace ferry {

// fn(first, num, done): elements [first, first + num) of the tensor are those from `done` on of the
// box `ranges` (one per dimension, inside the shape). Runs are as long as the shape allows.
template <typename Fn>
void for_each_run(std::span<const int64_t> shape, std::span<const Range> ranges, Fn&& fn) {
    const int rank = static_cast<int>(shape.size());
    FERRY_CHECK(ranges.size() == shape.size() && rank >= 1, "a box of {} dimensions of {}",
                ranges.size(), describe_shape(shape));
    for (int i = 0; i < rank; ++i)
        FERRY_CHECK(ranges[i].begin >= 0 && ranges[i].num >= 0 &&
                        ranges[i].begin + ranges[i].num <= shape[i],
                    "dimension {}: {}+{} of {}", i, ranges[i].begin, ranges[i].num,
                    describe_shape(shape));
    for (const Range& range : ranges)
        if (range.num == 0) return;

    // Dimensions after `inner` are whole, so one run covers them and the range of `inner`.
    int inner = rank - 1;
    while (inner > 0 && ranges[inner].num == shape[inner]) --inner;
    std::vector<int64_t> stride(static_cast<size_t>(rank), 1);
    for (int i = rank - 2; i >= 0; --i) stride[i] = stride[i + 1] * shape[i + 1];
    const int64_t run = ranges[inner].num * stride[inner];

    std::vector<int64_t> at(static_cast<size_t>(inner), 0);
    int64_t done = 0;
    for (bool more = true; more; done += run) {
        int64_t first = ranges[inner].begin * stride[inner];
        for (int i = 0; i < inner; ++i) first += (ranges[i].begin + at[i]) * stride[i];
        fn(first, run, done);
        more = false;
        for (int i = inner - 1; i >= 0 && !more; --i) {
            more = ++at[i] < ranges[i].num;
            if (!more) at[i] = 0;
        }
    }
}

}  // namespace ferry
