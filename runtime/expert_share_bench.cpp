#include "runtime/expert_share_bench.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/median.h"
#include "base/random.h"
#include "comm/placement.h"
#include "comm/staging.h"
#include "layers/cpu/rates.h"
#include "layers/experts.h"

namespace ferry {
namespace {

// Rows of every expert when `num_tokens` tokens choose.
std::vector<int64_t> draw_rows(const ModelConfig& config, int64_t num_tokens, uint64_t seed) {
    const auto num_experts = static_cast<size_t>(config.n_routed_experts);
    std::vector<int64_t> rows(num_experts);
    std::vector<size_t> order(num_experts);
    std::iota(order.begin(), order.end(), size_t{0});
    Random random(seed);
    for (int64_t token = 0; token < num_tokens; ++token)
        for (size_t k = 0; k < static_cast<size_t>(config.n_activated_experts); ++k) {
            std::swap(order[k], order[k + random.next_u32() % (num_experts - k)]);
            ++rows[order[k]];
        }
    return rows;
}

// Offsets of the rows of some experts, in memory of the device where kernels take them there.
class Groups {
  public:
    Groups(Device& device, std::span<const int64_t> rows_of_expert, std::span<const int> experts) {
        offsets_.push_back(0);
        for (const int expert : experts)
            offsets_.push_back(offsets_.back() + rows_of_expert[static_cast<size_t>(expert)]);
        if (device.type() == DeviceType::cpu) return;
        on_device_ = Buffer(device, offsets_.size() * sizeof(int64_t));
        device.copy_from_host(on_device_.data(), offsets_.data(), on_device_.size_bytes());
    }
    int64_t num_rows() const { return offsets_.back(); }
    int64_t num_touched() const {
        int64_t touched = 0;
        for (size_t i = 1; i < offsets_.size(); ++i) touched += offsets_[i] > offsets_[i - 1];
        return touched;
    }
    GroupOffsets view() const {
        if (on_device_.size_bytes() == 0) return {offsets_};
        return {{on_device_.as<int64_t>(), offsets_.size()}, true};
    }

  private:
    std::vector<int64_t> offsets_;
    Buffer on_device_;
};

OwnedTensor random_rows(Device& device, int64_t rows, int64_t dim) {
    OwnedTensor x(device, DType::f32, {rows, dim});
    std::vector<float> values(static_cast<size_t>(rows * dim));
    for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(mix64(i) >> 40) * 0x1p-23f - 1;
    device.copy_from_host(x.view().data(), values.data(), values.size() * sizeof(float));
    return x;
}

ExpertShare time_share(Kernels& kernels, const Numerics& numerics, const ModelConfig& config,
                       const Experts& experts, const Groups& groups,
                       const ExpertShareOptions& options) {
    ExpertShare share{.num_experts = experts.num_experts(),
                      .num_touched = groups.num_touched(),
                      .num_rows = groups.num_rows()};
    share.bytes = static_cast<double>(share.num_touched * experts.weight_bytes_per_expert());
    share.flops = 6.0 * static_cast<double>(share.num_rows * config.dim * config.moe_inter_dim);
    if (share.num_rows == 0) return share;
    Device& device = kernels.device();
    const OwnedTensor x = random_rows(device, share.num_rows, config.dim);
    const OwnedTensor y(device, DType::f32, {share.num_rows, config.dim});
    Workspace workspace(device, Experts::workspace_bytes(config, share.num_rows), numerics);
    HostView host(device);
    std::vector<double> seconds;
    std::vector<std::byte> expected;
    for (int i = -options.num_warmups; i < options.num_repetitions; ++i) {
        device.synchronize();
        const double s = BenchClock::wall().seconds([&] {
            experts.forward(kernels, workspace, x, groups.view(), y);
            device.synchronize();
        });
        if (i >= 0) seconds.push_back(s);
        const auto* bytes = static_cast<const std::byte*>(host.of(y).data());
        if (expected.empty()) expected.assign(bytes, bytes + y.size_bytes());
        share.same_bits &= std::memcmp(bytes, expected.data(), expected.size()) == 0;
    }
    share.best_s = std::ranges::min(seconds);
    share.median_s = median(seconds);
    return share;
}

}  // namespace

std::vector<std::vector<ExpertShare>> bench_expert_shares(WeightSource& source,
                                                          const Numerics& numerics,
                                                          Kernels& kernels,
                                                          std::span<const int64_t> tokens,
                                                          const ExpertShareOptions& options) {
    const ModelConfig& config = source.config();
    FERRY_CHECK(
        config.n_dense_layers < config.n_layers && options.num_ranks <= config.n_routed_experts,
        "{} expert ranks", options.num_ranks);
    std::vector<std::vector<int64_t>> rows_of_expert;
    for (const int64_t each : tokens)
        rows_of_expert.push_back(draw_rows(config, each * options.num_ranks, options.seed));
    const Placement placement =
        contiguous_placement(static_cast<int>(config.n_routed_experts), options.num_ranks);
    const std::string prefix = fmt::format("layers/{}/ffn/experts/", config.n_dense_layers);
    std::vector<std::vector<ExpertShare>> shares(tokens.size());
    for (int rank = 0; rank < options.num_ranks; ++rank) {
        const std::span<const int> held = placement.experts(rank);
        WeightLoader loader(source, kernels);
        const Experts experts(loader, prefix, held);
        loader.finish();
        for (size_t i = 0; i < tokens.size(); ++i)
            shares[i].push_back(time_share(kernels, numerics, config, experts,
                                           Groups(kernels.device(), rows_of_expert[i], held),
                                           options));
    }
    return shares;
}

}  // namespace ferry
