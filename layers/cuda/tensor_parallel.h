// Tensor parallelism between GPUs: rows go from device to device, in the order of the stream that
// computes, and nothing waits for the host (comm/tensor_parallel.h, block_transport.h).
#pragma once
#include <memory>
#include <vector>

#include "comm/block_transport.h"
#include "comm/tensor_parallel.h"
#include "layers/cuda/cuda_kernels.h"

namespace ferry {

class CudaTensorParallel final : public TensorParallel {
  public:
    // Allocates all that it will use, so that what was recorded stays true. `kernels` and `blocks`
    // must outlive it.
    CudaTensorParallel(CudaKernels& kernels, std::unique_ptr<TensorParallel> host,
                       BlockTransport& blocks, std::vector<int> members,
                       const TensorParallelSizes& sizes);

    int size() const override { return host_->size(); }
    int rank() const override { return host_->rank(); }
    int first_slice() const override { return host_->first_slice(); }
    int num_local_slices() const override { return host_->num_local_slices(); }

    void expect_equal_rows(bool equal) override { equal_rows_ = equal; }
    Gathered gather_rows(const Tensor& x) override;
    void reduce_scatter(const Tensor& parts, const Tensor& out) override;
    void scatter_columns(const Tensor& local, std::span<const int64_t> column_offsets,
                         const Tensor& out) override;
    // Every member sends, for each id that was asked for, a row, which is the wanted one if it
    // holds that: who asks takes it from who holds it. So no host must know the ids.
    void lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                     std::span<const int64_t> row_offsets, const Tensor& out) override;

  private:
    struct OwnedNode {
        SliceNode node;
        int owner = 0;
    };

    void order_nodes(int begin, int end);
    int64_t rows_of(int member) const {
        return offsets_[static_cast<size_t>(member) + 1] - offsets_[static_cast<size_t>(member)];
    }
    int64_t first_row_of(int member) const { return offsets_[static_cast<size_t>(member)]; }
    int64_t own_rows() const { return rows_of(rank()); }

    // The members' numbers of rows, this one's being `num_rows`, into offsets_.
    void count_rows(int64_t num_rows);
    // All members' rows, of which this one's are `own`.
    void gather(const void* own, int64_t row_bytes, void* all);
    // The messages of one call: send() and receive() in the same order at both ends, then swap().
    void send(int member, const void* data, int64_t size_bytes);
    void receive(int member, void* data, int64_t size_bytes);
    void swap();
    // The sum of a node of this rank's slices, [all rows, dim], which takes its memory from `free`.
    const float* sum_of(const SliceNode& node, const Tensor& parts, float*& free);

    CudaKernels& kernels_;
    std::unique_ptr<TensorParallel> host_;
    BlockTransport& blocks_;
    std::vector<int> members_;
    TensorParallelSizes sizes_;
    std::vector<OwnedNode> nodes_;  // the parts of the tree that travel, in its order
    std::vector<int> merges_;       // sums that are complete after each (NodeSum)
    std::vector<int64_t> offsets_;
    bool equal_rows_ = false;
    std::vector<PeerBlock> sends_, receives_;
    Buffer gathered_, ids_, sums_, received_;
};

}  // namespace ferry
