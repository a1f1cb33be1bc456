// Hugging Face config.json -> the shape of the model.
#pragma once
#include <string>
#include <string_view>

#include "runtime/model_description.h"

namespace ferry {

// Older and newer forms of the file: rope_scaling with `type` or `rope_type`, rope_parameters,
// missing fields that Transformers fills by model_type. `has_gate_bias` follows topk_method: who
// knows the weights corrects it. Throws Error(checkpoint) naming `where` and
// the field when something is missing, has a wrong type, or asks for what Ferry does not compute.
ModelDescription parse_hf_config(std::string_view json_text, const std::string& where);

}  // namespace ferry
