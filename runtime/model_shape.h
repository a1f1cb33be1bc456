// The shape of a published model from a YAML file (configs/models/*.yaml): for dummy weights and
// for the planner. A shape stands in place of a checkpoint, so errors are Error(checkpoint).
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "layers/model_config.h"
#include "runtime/fields.h"

namespace ferry {

struct ModelShape {
    std::string name;
    DType weights = DType::bf16;  // of linear weights as published: f32, bf16, fp8_e4m3 or int4x2
    ModelConfig config;
};

// Keys are the names of ModelConfig's fields, `yarn` a mapping of YarnConfig's; all but `name`,
// `weights` and what has a sensible default must be there, or the shape is found impossible.
ModelShape load_model_shape(const std::string& path);
ModelShape parse_model_shape(std::string_view text, const std::string& name);

}  // namespace ferry
