#include "runtime/device_tensor_parallel.h"

#include <algorithm>
#include <array>

#include "comm/staging.h"

namespace ferry {
namespace {

class GroupOfOne final : public TensorParallel {
  public:
    GroupOfOne(std::unique_ptr<TensorParallel> host, Kernels& kernels)
        : host_(std::move(host)), kernels_(kernels) {}

    int size() const override { return 1; }
    int rank() const override { return 0; }
    int first_slice() const override { return 0; }
    int num_local_slices() const override { return host_->num_local_slices(); }

    Gathered gather_rows(const Tensor& x) override {
        offsets_ = {0, x.rows()};
        return {x, offsets_};
    }
    void reduce_scatter(const Tensor& parts, const Tensor& out) override {
        kernels_.tree_sum(parts, out);
    }
    void scatter_columns(const Tensor& local, std::span<const int64_t>,
                         const Tensor& out) override {
        kernels_.tree_sum(local.reshape({1, local.rows(), local.row_size()}), out);
    }
    void lookup_rows(std::span<const int32_t> ids, const Tensor& table, std::span<const int64_t>,
                     const Tensor& out) override {
        kernels_.embed(ids, table, out);
    }

  private:
    std::unique_ptr<TensorParallel> host_;
    Kernels& kernels_;
    std::array<int64_t, 2> offsets_{};
};

class StagedGroup final : public TensorParallel {
  public:
    StagedGroup(std::unique_ptr<TensorParallel> host, Kernels& kernels)
        : host_(std::move(host)),
          kernels_(kernels),
          in_(kernels.device(), StageSide::host),
          out_(kernels.device(), StageSide::host),
          gathered_(kernels.device(), StageSide::device),
          found_(kernels.device(), StageSide::device) {}

    int size() const override { return host_->size(); }
    int rank() const override { return host_->rank(); }
    int first_slice() const override { return host_->first_slice(); }
    int num_local_slices() const override { return host_->num_local_slices(); }

    Gathered gather_rows(const Tensor& x) override {
        const Gathered all = host_->gather_rows(in_.copy_of(x));
        return {gathered_.copy_of(all.rows), all.offsets};
    }
    void reduce_scatter(const Tensor& parts, const Tensor& out) override {
        const Tensor sum = out_.shaped_like(out);
        host_->reduce_scatter(in_.copy_of(parts), sum);
        put(kernels_.device(), sum, out);
    }
    void scatter_columns(const Tensor& local, std::span<const int64_t> column_offsets,
                         const Tensor& out) override {
        const Tensor rows = out_.shaped_like(out);
        host_->scatter_columns(in_.copy_of(local), column_offsets, rows);
        put(kernels_.device(), rows, out);
    }
    void lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                     std::span<const int64_t> row_offsets, const Tensor& out) override;

  private:
    std::unique_ptr<TensorParallel> host_;
    Kernels& kernels_;
    Stage in_, out_, gathered_, found_;
    std::vector<int32_t> wanted_, own_, places_;
    std::vector<int64_t> wanted_offsets_;
};

// The host looks up in a small table: the rows that any member asks for, each once, in order of
// ids, so that they are with members in order too. This rank reads its part from the device's.
void StagedGroup::lookup_rows(std::span<const int32_t> ids, const Tensor& table,
                              std::span<const int64_t> row_offsets, const Tensor& out) {
    const auto num_ids = static_cast<int64_t>(ids.size());
    const Tensor all = host_->gather_rows(Tensor(ids.data(), DType::i32, {num_ids, 1})).rows;
    wanted_.assign(all.as<int32_t>(), all.as<int32_t>() + all.rows());
    std::sort(wanted_.begin(), wanted_.end());
    wanted_.erase(std::unique(wanted_.begin(), wanted_.end()), wanted_.end());
    const auto place = [&](int64_t id) {
        return std::lower_bound(wanted_.begin(), wanted_.end(), id) - wanted_.begin();
    };
    wanted_offsets_.clear();
    for (const int64_t offset : row_offsets) wanted_offsets_.push_back(place(offset));
    const int64_t begin = wanted_offsets_[rank()], end = wanted_offsets_[rank() + 1];
    own_.clear();
    for (int64_t i = begin; i < end; ++i)
        own_.push_back(static_cast<int32_t>(wanted_[i] - row_offsets[rank()]));
    const Tensor found =
        found_.shaped_like(Tensor(nullptr, DType::f32, {end - begin, table.row_size()}));
    kernels_.embed(own_, table, found);
    places_.clear();
    for (const int32_t id : ids) places_.push_back(static_cast<int32_t>(place(id)));
    const Tensor rows = out_.shaped_like(out);
    host_->lookup_rows(places_, in_.copy_of(found), wanted_offsets_, rows);
    put(kernels_.device(), rows, out);
}

}  // namespace

TensorParallelSizes tensor_parallel_sizes(const FabricOptions& options, const ModelConfig& model) {
    return {.dim = model.dim,
            .max_rows = options.max_tokens,
            .num_columns = model.vocab_size,
            .max_wide_rows = options.max_logit_rows};
}

std::unique_ptr<TensorParallel> make_device_tensor_parallel(std::unique_ptr<TensorParallel> host,
                                                            Kernels& kernels,
                                                            const FabricOptions& options,
                                                            std::vector<int> members,
                                                            const ModelConfig& model) {
    if (host->size() == 1) return std::make_unique<GroupOfOne>(std::move(host), kernels);
    if (options.blocks == nullptr) return std::make_unique<StagedGroup>(std::move(host), kernels);
    return kernels.make_tensor_parallel(std::move(host), *options.blocks, std::move(members),
                                        tensor_parallel_sizes(options, model));
}

}  // namespace ferry
