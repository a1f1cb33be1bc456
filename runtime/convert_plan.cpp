#include "runtime/convert_plan.h"

#include <sys/stat.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "runtime/checksum.h"
#include "runtime/stored_tensor.h"

namespace ferry {
namespace {

constexpr int kFormat = 1;  // changes with anything that shards hold

int64_t stored_bytes(const TensorInfo& info) {
    return size_bytes(info) + (scale_form(info.dtype) ? size_bytes(scale_info(info)) : 0);
}

int64_t stored_bytes(std::span<const PlannedTensor> tensors) {
    return std::accumulate(
        tensors.begin(), tensors.end(), int64_t{0},
        [](int64_t sum, const PlannedTensor& t) { return sum + stored_bytes(t.info); });
}

// Numbers the shards once their count is known.
void name_shards(std::vector<PlannedShard>& shards, std::string_view kind) {
    for (size_t i = 0; i < shards.size(); ++i)
        shards[i].file = fmt::format("{}-{:05}-of-{:05}.h5", kind, i, shards.size());
}

std::vector<PlannedShard> dense_shards(std::span<const PlannedTensor> tensors, int64_t max_bytes) {
    std::vector<PlannedShard> shards(1);
    int64_t bytes = 0;
    for (const PlannedTensor& tensor : tensors) {
        const int64_t more = stored_bytes(tensor.info);
        if (bytes > 0 && bytes + more > max_bytes) {
            shards.emplace_back();
            bytes = 0;
        }
        shards.back().tensors.push_back(tensor);
        bytes += more;
    }
    name_shards(shards, "dense");
    return shards;
}

std::vector<PlannedShard> expert_shards(std::span<const PlannedTensor> tensors, int64_t num) {
    std::vector<PlannedShard> shards(static_cast<size_t>(num));
    for (int64_t i = 0; i < num; ++i)
        for (PlannedTensor tensor : tensors) {
            const int64_t experts = tensor.info.shape[0];
            tensor.first_row = experts * i / num;
            tensor.info.shape[0] = experts * (i + 1) / num - tensor.first_row;
            shards[static_cast<size_t>(i)].tensors.push_back(std::move(tensor));
        }
    name_shards(shards, "experts");
    return shards;
}

// Says of the inputs all that can change without reading the weights.
std::string fingerprint(const HfModel& model, const ConversionPlan& plan) {
    std::string text = fmt::format("format {}\n{}\n", kFormat, model.config_text());
    for (const auto& file : model.files()) {
        struct stat status {};
        if (::stat(file->file().path().c_str(), &status) != 0) status = {};
        text += fmt::format("{} {} {:016x} {}.{}\n",
                            file->file().path().substr(model.directory().size()),
                            file->file().size_bytes(), file->header_checksum(),
                            status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
    }
    for (const PlannedShard& shard : plan.shards)
        for (const PlannedTensor& tensor : shard.tensors)
            text += fmt::format("{} {} {} {} {}\n", shard.file, tensor.name,
                                to_string(tensor.info.dtype), describe_shape(tensor.info.shape),
                                tensor.first_row);
    return fmt::format("{:016x}", checksum(text.data(), text.size()));
}

}  // namespace

DType planned_dtype(const TensorSpec& spec, DType stored, std::optional<DType> asked,
                    Int4Weights int4) {
    const auto ends_with_any = [&](std::initializer_list<std::string_view> ends) {
        return std::ranges::any_of(ends, [&](auto end) { return spec.name.ends_with(end); });
    };
    const bool is_weight = spec.is_linear || ends_with_any({"embed", "head"});
    if (!asked || !is_weight) return stored;
    if (*asked == DType::int4x2 && !spec.is_expert) {
        const bool is_layer = !ends_with_any({"head", "eh_proj"});
        const bool wanted = int4 == Int4Weights::all || (int4 == Int4Weights::layers && is_layer);
        return wanted && can_be_int4(spec) ? DType::int4x2 : stored;
    }
    if (*asked == DType::fp8_e4m3 && ends_with_any({"embed", "head", "eh_proj"})) return stored;
    return *asked;
}

int64_t PlannedShard::size_bytes() const {
    return stored_bytes(tensors);
}
int64_t ConversionPlan::size_bytes() const {
    return stored_bytes(tensors);
}

ConversionPlan plan_conversion(const HfModel& model, const ConvertOptions& options) {
    const int64_t experts = model.config().n_routed_experts;
    ConversionPlan plan;
    std::vector<PlannedTensor> dense, routed;
    for (const TensorSpec& spec : model.specs()) {
        const DType stored = model.stored(spec.name).info.dtype;
        const DType dtype = planned_dtype(spec, stored, options.dtype, options.int4);
        const auto shape = stored_shape(spec, dtype);
        if (!shape)
            throw Error(ErrorKind::usage, "{} {} cannot be {}: its rows are no multiple of {}",
                        spec.name, describe_shape(spec.shape), to_string(dtype), kInt4Group);
        plan.tensors.push_back({spec.name, {dtype, *shape}, 0});
        (spec.is_expert ? routed : dense).push_back(plan.tensors.back());
    }
    plan.shards = dense_shards(dense, options.max_shard_bytes);
    if (!routed.empty()) {
        const int64_t fitting =
            (stored_bytes(routed) + options.max_shard_bytes - 1) / options.max_shard_bytes;
        const int64_t num = options.expert_shards > 0 ? options.expert_shards
                                                      : std::clamp<int64_t>(fitting, 1, experts);
        if (num > experts)
            throw Error(ErrorKind::usage, "{} expert shards, but the model has {} routed experts",
                        num, experts);
        for (PlannedShard& shard : expert_shards(routed, num))
            plan.shards.push_back(std::move(shard));
    }
    plan.fingerprint = fingerprint(model, plan);
    return plan;
}

}  // namespace ferry
