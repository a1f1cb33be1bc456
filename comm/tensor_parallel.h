// Tensor parallelism inside a group of attention ranks: every rank has its own rows; the group
// computes all rows together, each rank a part of the columns or of the sum.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "comm/transport.h"

namespace ferry {

struct TensorParallelOptions {
    int num_slices = 1;  // tp_slices: k-slices of row-parallel sums, a multiple of the group size
    int64_t inline_bytes = 1 << 16;  // rows up to this size travel with their count in one message
    double stall_timeout_s = 60;
};

// All members make the same calls in the same order, with zero rows if they have none. Calls return
// when this rank's part is complete; they throw Error(communication) after the stall timeout. A
// group of one needs no messages and copies little.
class TensorParallel {
  public:
    struct Gathered {
        Tensor rows;                       // [all rows, dim], in order of members
        std::span<const int64_t> offsets;  // size() + 1: rows of member i are [i], [i + 1)
    };

    virtual ~TensorParallel() = default;
    virtual int size() const = 0;
    virtual int rank() const = 0;  // in the group
    // k-slices that this rank computes: [first_slice(), first_slice() + num_local_slices()).
    virtual int first_slice() const = 0;
    virtual int num_local_slices() const = 0;

    // Until told otherwise, every member gathers as many rows as this one: then a group of GPUs
    // exchanges no counts, and its calls pass through no host, so that they can be recorded
    // (CudaGraph). All members say it between the same calls.
    virtual void expect_equal_rows(bool /*equal*/) {}

    // x: [n, dim] of a 4-byte type, n may differ between members, dim may not. The result is valid
    // until the next gather; its offsets are what the calls below go by.
    virtual Gathered gather_rows(const Tensor& x) = 0;

    // parts: [num_local_slices, all rows, dim] f32, partial sums of this rank's slices. out [n,
    // dim] becomes the sum over all slices of this rank's own rows, added by halves over slices,
    // sum[0, s) = sum[0, s/2) + sum[s/2, s): the same bits whatever the size of the group.
    virtual void reduce_scatter(const Tensor& parts, const Tensor& out) = 0;

    // Columns [column_offsets[i], column_offsets[i + 1]) of every gathered row are with member i.
    // local: [all rows, this rank's columns]; out: [n, all columns] of this rank's own rows. f32.
    virtual void scatter_columns(const Tensor& local, std::span<const int64_t> column_offsets,
                                 const Tensor& out) = 0;

    // out[i] = row ids[i] of a table whose rows [row_offsets[m], row_offsets[m + 1]) are with
    // member m. table: this rank's rows [.., dim] f32 or bf16; out: [ids, dim] f32. Gathers (see
    // above).
    virtual void lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                             std::span<const int64_t> row_offsets, const Tensor& out) = 0;
};

// members: world ranks of the group in order, this rank among them. Opens lanes: before
// transport.connect(). `threads` may be null.
std::unique_ptr<TensorParallel> make_tensor_parallel(Transport& transport, std::vector<int> members,
                                                     const TensorParallelOptions& options,
                                                     ThreadPool* threads);

// The largest parts of the tree over [0, num_slices) that lie inside [begin, end), in order;
// exposed for tests. {0, 12} split for [4, 8): (4, 5+6 ...) as the tree has them.
struct SliceNode {
    int begin = 0;
    int end = 0;
    bool operator==(const SliceNode&) const = default;
};
std::vector<SliceNode> slice_nodes(int num_slices, int begin, int end);

// What a group of GPUs that exchange rows themselves is made for (Kernels::make_tensor_parallel).
struct TensorParallelSizes {
    int64_t dim = 0;            // of rows that are gathered, summed and looked up, at most
    int64_t max_rows = 0;       // of a member in one call
    int64_t num_columns = 0;    // of scatter_columns, of all members
    int64_t max_wide_rows = 0;  // of a member in scatter_columns
};
// Bytes of device memory that a member allocates.
struct TensorParallelMemory {
    int64_t gathered = 0, ids = 0, sums = 0, received = 0;
    int64_t total() const { return gathered + ids + sums + received; }
};
TensorParallelMemory tensor_parallel_memory(int num_slices, int size, int rank,
                                            const TensorParallelSizes& sizes);

}  // namespace ferry
