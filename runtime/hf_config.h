// Hugging Face config.json -> the shape of the model.
#pragma once
#include <string>
#include <string_view>

#include "layers/model_config.h"

namespace ferry {

// What config.json says.
struct HfConfig {
    ModelConfig model;           // has_gate_bias follows topk_method until the weights are seen
    int64_t num_mtp_layers = 0;  // multi-token-prediction modules after the last layer
    bool fp8_weights = false;    // e4m3 in 128x128 blocks
    bool ue8m0_scales = false;   // activation scales are powers of two (V3.1)
};

// Older and newer forms of the file: rope_scaling with `type` or `rope_type`, rope_parameters,
// missing fields that Transformers fills by model_type. Throws Error(checkpoint) naming `where` and
// the field when something is missing, has a wrong type, or asks for what Ferry does not compute.
HfConfig parse_hf_config(std::string_view json_text, const std::string& where);

}  // namespace ferry
