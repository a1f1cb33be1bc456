// Hugging Face config.json -> the shape of the model.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model_description.h"

namespace ferry {

// Older and newer forms of the file: rope_scaling with `type` or `rope_type`, rope_parameters,
// missing fields that Transformers fills by model_type. `has_gate_bias` follows topk_method: who
// knows the weights corrects it. Throws Error(checkpoint) naming `where` and
// the field when something is missing, has a wrong type, or asks for what Ferry does not compute,
// first of all by its model_type. Of models of text and images only text_config is read.
// `warnings`, when given, gets a line for every key that looks like a misspelling of one that is
// absent; other unknown keys are normal.
ModelDescription parse_hf_config(std::string_view json_text, const std::string& where,
                                 std::vector<std::string>* warnings = nullptr);

}  // namespace ferry
