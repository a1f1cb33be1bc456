#include "layers/cuda/tensor_parallel.h"

#include <algorithm>

#include "base/cuda_api.h"
#include "base/error.h"
#include "base/trace.h"
#include "layers/cuda/tensor_parallel_launch.h"

namespace ferry {

CudaTensorParallel::CudaTensorParallel(CudaKernels& kernels, std::unique_ptr<TensorParallel> host,
                                       BlockTransport& blocks, std::vector<int> members,
                                       const TensorParallelSizes& sizes)
    : kernels_(kernels),
      host_(std::move(host)),
      blocks_(blocks),
      members_(std::move(members)),
      sizes_(sizes),
      offsets_(members_.size() + 1) {
    FERRY_CHECK(static_cast<int>(members_.size()) == size(), "{} members of {}", members_.size(),
                size());
    const int num_slices = num_local_slices() * size();
    order_nodes(0, num_slices);
    if (nodes_.size() > kMostSumNodes)
        throw Error(ErrorKind::usage,
                    "layout.tp_size {} of numerics.tp_slices {}: GPUs would add {} parts, at most "
                    "{} are built in",
                    size(), num_slices, nodes_.size(), kMostSumNodes);
    const TensorParallelMemory memory = tensor_parallel_memory(num_slices, size(), rank(), sizes);
    CudaDevice& device = kernels.cuda_device();
    gathered_ = Buffer(device, static_cast<size_t>(memory.gathered));
    ids_ = Buffer(device, static_cast<size_t>(memory.ids));
    sums_ = Buffer(device, static_cast<size_t>(memory.sums));
    received_ = Buffer(device, static_cast<size_t>(memory.received));
}

// The parts of [begin, end) that travel, and after each how many sums it completes.
void CudaTensorParallel::order_nodes(int begin, int end) {
    const int per_rank = num_local_slices(), owner = begin / per_rank;
    if (end <= (owner + 1) * per_rank) {
        nodes_.push_back({{begin, end}, owner});
        merges_.push_back(0);
        return;
    }
    const int middle = begin + (end - begin) / 2;
    order_nodes(begin, middle);
    order_nodes(middle, end);
    ++merges_.back();
}

void CudaTensorParallel::count_rows(int64_t num_rows) {
    if (equal_rows_) {
        for (int p = 0; p <= size(); ++p) offsets_[static_cast<size_t>(p)] = p * num_rows;
    } else {
        const auto own = static_cast<int32_t>(num_rows);
        const Tensor counts = host_->gather_rows(Tensor(&own, DType::i32, {1, 1})).rows;
        for (int p = 0; p < size(); ++p)
            offsets_[static_cast<size_t>(p) + 1] = first_row_of(p) + *counts.row<int32_t>(p);
    }
    for (int p = 0; p < size(); ++p)
        FERRY_CHECK(rows_of(p) <= sizes_.max_rows, "{} rows of rank {}, at most {}", rows_of(p),
                    members_[static_cast<size_t>(p)], sizes_.max_rows);
}

void CudaTensorParallel::send(int member, const void* data, int64_t size_bytes) {
    if (size_bytes > 0)
        sends_.push_back({members_[static_cast<size_t>(member)], const_cast<void*>(data),
                          static_cast<size_t>(size_bytes)});
}
void CudaTensorParallel::receive(int member, void* data, int64_t size_bytes) {
    if (size_bytes > 0)
        receives_.push_back(
            {members_[static_cast<size_t>(member)], data, static_cast<size_t>(size_bytes)});
}
void CudaTensorParallel::swap() {
    if (!sends_.empty() || !receives_.empty())
        blocks_.exchange(kGroupChannel, 0, sends_, receives_);
    sends_.clear();
    receives_.clear();
}

void CudaTensorParallel::gather(const void* own, int64_t row_bytes, void* all) {
    auto* to = static_cast<std::byte*>(all);
    const int64_t own_bytes = own_rows() * row_bytes;
    if (own_bytes > 0)
        check_cuda(
            cudaMemcpyAsync(to + first_row_of(rank()) * row_bytes, own,
                            static_cast<size_t>(own_bytes), cudaMemcpyDefault, kernels_.stream()),
            "copy a rank's own rows");
    for (int p = 0; p < size(); ++p) {
        if (p == rank()) continue;
        send(p, own, own_bytes);
        receive(p, to + first_row_of(p) * row_bytes, rows_of(p) * row_bytes);
    }
    swap();
}

TensorParallel::Gathered CudaTensorParallel::gather_rows(const Tensor& x) {
    ScopedZone zone(Zone::tensor_parallel);
    FERRY_CHECK(
        x.rank() == 2 && size_bytes(x.dtype()) == 4 && x.contiguous() && x.row_size() <= sizes_.dim,
        "gather_rows of {}, at most {} columns", x.describe(), sizes_.dim);
    count_rows(x.rows());
    const Tensor all(gathered_.data(), x.dtype(), {offsets_.back(), x.row_size()});
    gather(x.data(), 4 * x.row_size(), all.data());
    zone.bytes = 4 * all.count();
    return {all, offsets_};
}

const float* CudaTensorParallel::sum_of(const SliceNode& node, const Tensor& parts, float*& free) {
    const Tensor slices =
        parts.slice_rows(node.begin - first_slice(), static_cast<int64_t>(node.end) - node.begin);
    if (slices.rows() == 1) return slices.as<float>();
    const Tensor sum(free, DType::f32, {parts.dim(1), parts.dim(2)});
    free += sum.count();
    kernels_.tree_sum(slices, sum);
    return sum.as<float>();
}

void CudaTensorParallel::reduce_scatter(const Tensor& parts, const Tensor& out) {
    ScopedZone zone(Zone::tensor_parallel);
    const int64_t dim = out.row_size(), rows = own_rows();
    check_shape(parts, "parts", DType::f32, {num_local_slices(), offsets_.back(), dim});
    check_shape(out, "out", DType::f32, {rows, dim});
    FERRY_CHECK(parts.contiguous() && out.contiguous() && dim <= sizes_.dim, "{} into {}",
                parts.describe(), out.describe());
    NodeSum sum{.num_nodes = static_cast<int32_t>(nodes_.size()),
                .out = out.as<float>(),
                .count = out.count()};
    auto *free = sums_.as<float>(), *to = received_.as<float>();
    for (size_t i = 0; i < nodes_.size(); ++i) {
        const auto& [node, owner] = nodes_[i];
        sum.merges[i] = static_cast<uint8_t>(merges_[i]);
        if (owner != rank()) {
            receive(owner, to, 4 * rows * dim);
            sum.nodes[i] = to;
            to += rows * dim;
            continue;
        }
        const float* of_all = sum_of(node, parts, free);
        for (int p = 0; p < size(); ++p)
            if (p != rank()) send(p, of_all + first_row_of(p) * dim, 4 * rows_of(p) * dim);
        sum.nodes[i] = of_all + first_row_of(rank()) * dim;
    }
    swap();
    launch_node_sum(sum, kernels_.stream());
    zone.bytes = 4 * static_cast<int64_t>(nodes_.size()) * rows * dim;
}

void CudaTensorParallel::scatter_columns(const Tensor& local,
                                         std::span<const int64_t> column_offsets,
                                         const Tensor& out) {
    ScopedZone zone(Zone::tensor_parallel);
    FERRY_CHECK(static_cast<int>(column_offsets.size()) == size() + 1 &&
                    column_offsets.back() <= sizes_.num_columns &&
                    own_rows() <= sizes_.max_wide_rows,
                "{} rows of {} columns, at most {} of {}", own_rows(), column_offsets.back(),
                sizes_.max_wide_rows, sizes_.num_columns);
    JoinedColumns joined{
        .num_rows = own_rows(), .out_stride = out.row_stride(), .out = out.as<float>()};
    joined.from.num_members = size();
    for (int p = 0; p <= size(); ++p)
        joined.from.offsets[p] = static_cast<int32_t>(column_offsets[static_cast<size_t>(p)]);
    const auto columns_of = [&](int p) {
        return static_cast<int64_t>(joined.from.offsets[p + 1]) - joined.from.offsets[p];
    };
    const int64_t columns = columns_of(rank());
    check_shape(local, "local", DType::f32, {offsets_.back(), columns});
    check_shape(out, "out", DType::f32, {own_rows(), column_offsets.back()});
    FERRY_CHECK(local.contiguous());
    auto* to = received_.as<float>();
    for (int p = 0; p < size(); ++p) {
        const float* rows = local.as<float>() + first_row_of(p) * columns;
        joined.from.blocks[p] = p == rank() ? rows : to;
        if (p == rank()) continue;
        send(p, rows, 4 * rows_of(p) * columns);
        receive(p, to, 4 * own_rows() * columns_of(p));
        to += own_rows() * columns_of(p);
    }
    swap();
    launch_joined_columns(joined, kernels_.stream());
    zone.bytes = 4 * own_rows() * column_offsets.back();
}

void CudaTensorParallel::lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                                     std::span<const int64_t> row_offsets, const Tensor& out) {
    ScopedZone zone(Zone::tensor_parallel);
    const auto num_ids = static_cast<int64_t>(ids.size());
    const int64_t dim = table.row_size();
    check_shape(out, "out", DType::f32, {num_ids, dim});
    FERRY_CHECK(out.contiguous() && table.contiguous() && dim <= sizes_.dim &&
                    (table.dtype() == DType::f32 || table.dtype() == DType::bf16),
                "{} from {}", out.describe(), table.describe());
    FERRY_CHECK(static_cast<int>(row_offsets.size()) == size() + 1);
    for (const int32_t id : ids)
        FERRY_CHECK(id >= row_offsets[0] && id < row_offsets.back(), "row {} of a table of {}", id,
                    row_offsets.back());
    count_rows(num_ids);
    const int32_t* own_ids = kernels_.step_arrays().on_device(ids);
    gather(own_ids, sizeof(int32_t), ids_.data());

    auto *held = gathered_.as<float>(), *to = received_.as<float>();
    const int64_t first = row_offsets[static_cast<size_t>(rank())];
    FERRY_CHECK(table.rows() == row_offsets[static_cast<size_t>(rank()) + 1] - first);
    launch_held_rows({.ids = ids_.as<int32_t>(),
                      .num_ids = offsets_.back(),
                      .table = table.data(),
                      .dtype = table.dtype(),
                      .first = first,
                      .num_held = table.rows(),
                      .dim = dim,
                      .out = held},
                     kernels_.stream());
    ChosenRows chosen{.ids = own_ids, .num_ids = num_ids, .dim = dim, .out = out.as<float>()};
    chosen.from.num_members = size();
    for (int p = 0; p < size(); ++p) {
        float* rows = held + first_row_of(p) * dim;
        chosen.from.offsets[p] = static_cast<int32_t>(row_offsets[static_cast<size_t>(p)]);
        chosen.from.blocks[p] = p == rank() ? rows : to;
        if (p == rank()) continue;
        send(p, rows, 4 * rows_of(p) * dim);
        receive(p, to, 4 * num_ids * dim);
        to += num_ids * dim;
    }
    chosen.from.offsets[size()] = static_cast<int32_t>(row_offsets.back());
    swap();
    launch_chosen_rows(chosen, kernels_.stream());
    zone.bytes = 4 * size() * num_ids * dim;
}

}  // namespace ferry
