// Ferry's tensor names <-> those of Hugging Face checkpoints.
#pragma once
#include <string>
#include <vector>

#include "layers/weight_source.h"

namespace ferry {

// The tensors of multi-token-prediction module `idx`: mtp/IDX/{embed, enorm, hnorm, eh_proj,
// head_norm, head} and a MoE block as in layers/N.
std::vector<TensorSpec> mtp_tensors(const ModelConfig& config, int64_t idx);
// A module's embed and head: files may leave them out, then they are the main model's.
bool is_shared_with_model(const TensorSpec& mtp_tensor);

// Where a Ferry tensor may lie in a Hugging Face checkpoint.
struct HfPlace {
    std::string name;        // one tensor; for experts saved one by one with "{}" for the expert
    std::string fused_name;  // experts saved as one tensor [experts, rows, columns]; or empty
    int fused_idx = 0;       // which of `fused_num` equal parts of its rows
    int fused_num = 1;

    std::string of_expert(int64_t expert) const;
};

// `name` is one of model_tensors() or mtp_tensors(); `n_layers` places the MTP modules.
HfPlace hf_place(const std::string& name, int64_t n_layers);
// Where the scales of an fp8 weight at `weight` lie.
HfPlace hf_scale_place(const HfPlace& weight);
// Where the codes, scales, shape and (none is supported) order of columns of an int4 weight at
// `weight` lie, as compressed-tensors saves them. Never fused.
struct HfPackedPlaces {
    HfPlace codes, scales, shape, order;
};
HfPackedPlaces hf_packed_places(const HfPlace& weight);

}  // namespace ferry
