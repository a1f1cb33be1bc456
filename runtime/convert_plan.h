// What a conversion will write, as a plain value: it prints itself, is tested without files, and
// can be split over processes shard by shard.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/weight_source.h"
#include "runtime/hf_model.h"

namespace ferry {

// Which weights become int4: the routed experts, as published models do; of all layers; head, too.
// Of those that can (can_be_int4), except that experts must.
enum class Int4Weights : uint8_t { experts, layers, all };

struct ConvertOptions {
    std::optional<DType> dtype = {};  // of linear weights, embedding and head; nothing: as they are
    Int4Weights int4 = Int4Weights::experts;
    int64_t expert_shards = 0;  // 0: so many that none is larger than max_shard_bytes
    int64_t max_shard_bytes = int64_t{8} << 30;  // of dense shards, and of expert shards by default
    int threads = 2;
};

// Rows of one tensor that a shard holds. An fp8 or int4 tensor has its scales beside it.
struct PlannedTensor {
    std::string name;
    TensorInfo info;        // in the shard
    int64_t first_row = 0;  // of dimension 0 of the whole tensor
};

struct PlannedShard {
    std::string file;  // dense-00000-of-00002.h5, experts-00001-of-00004.h5
    std::vector<PlannedTensor> tensors;

    int64_t size_bytes() const;
};

struct ConversionPlan {
    std::vector<PlannedShard> shards;
    std::vector<PlannedTensor> tensors;  // whole ones, in model order
    std::string fingerprint;             // of the inputs and the options: equal plans, equal files

    int64_t size_bytes() const;
};

// The type in which a tensor is stored. Asked-for types apply to weights of linear layers,
// embedding and head; norms, gates and biases stay exact. fp8 leaves embedding, head and eh_proj as
// they are, int4 all but those that `int4` says.
DType planned_dtype(const TensorSpec& spec, DType stored, std::optional<DType> asked,
                    Int4Weights int4 = Int4Weights::experts);

// Throws Error(usage) for options that do not fit the model.
ConversionPlan plan_conversion(const HfModel& model, const ConvertOptions& options);

}  // namespace ferry
