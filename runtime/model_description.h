// What a checkpoint says about its model: the shape, and how the weights are stored. One list of
// fields, by name (model_fields.h), for HDF5 attributes, printing and YAML shapes alike.
#pragma once
#include <map>
#include <string>
#include <variant>

#include "layers/model_config.h"

namespace ferry {

// No extent of a model is larger; keeps sizes of hostile files from overflowing.
constexpr int64_t kMaxExtent = int64_t{1} << 24;

constexpr int64_t kMostLayers = 1000;  // as far as anybody believes a file

struct ModelDescription {
    ModelConfig model;
    int64_t num_mtp_layers = 0;  // multi-token-prediction modules after the last layer
    bool fp8_weights = false;    // e4m3 in 128x128 blocks
    bool int4_experts = false;   // routed experts in 4 bits, a scale for 32 values
    bool ue8m0_scales = false;   // activation scales are powers of two (V3.1)
};

using Attribute = std::variant<int64_t, double, std::string>;
using Attributes = std::map<std::string, Attribute>;

// Fields by their names in ModelConfig; flags as 0 and 1; `score_func` as "softmax" or "sigmoid";
// `yarn_factor`, `yarn_original_max_positions`, ... are there under YaRN only, those of the indexer
// with index_topk only.
Attributes to_attributes(const ModelDescription& description);
// Fields that are missing keep their defaults, others are ignored. Throws Error(checkpoint) naming
// `where` and the field on a wrong type or an impossible model.
ModelDescription to_model_description(const Attributes& attributes, const std::string& where);

// ModelConfig::validate and limits on the number of layers and experts. Throws Error(checkpoint).
void validate(const ModelDescription& description, const std::string& where,
              const FieldNames& names = {});

// The value as a person or JSON would write it: 7168, 1e-06, sigmoid.
std::string to_string(const Attribute& value);

}  // namespace ferry
