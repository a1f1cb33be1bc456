// Tiny Hugging Face model directories, whole or broken on purpose.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "layers/model_config.h"
#include "layers/weight_source.h"

namespace ferry::testing {

struct HfTensor {
    std::string dtype;  // as safetensors writes it
    std::vector<int64_t> shape;
    std::string bytes;
};

// One safetensors file of these tensors, in this order.
std::string safetensors_bytes(const std::vector<std::pair<std::string, HfTensor>>& tensors);
// The same around a header of the caller's making.
std::string safetensors_bytes(const std::string& header, const std::string& data);

// All bytes of a tensor, as stored.
std::string read_whole(WeightSource& source, const std::string& name);

struct TinyHfOptions {
    // Of the linear weights (int4x2: of the routed experts, as compressed-tensors packs them; of
    // the others bf16); norms and embedding are bf16 then (or f32).
    DType dtype = DType::f32;
    bool fused_experts = false;
    bool mtp = false;  // adds a multi-token-prediction module
    bool tied = false;
    int64_t experts = 6;
    int64_t moe_inter = 0;  // 0: 40, of int4x2 64
    int num_files = 2;
};

// A DeepSeek-V3-like model of 3 layers (1 dense), dim 160, with random weights from names.
class TinyHfModel {
  public:
    explicit TinyHfModel(const TinyHfOptions& options);

    std::string config_json;
    std::map<std::string, HfTensor> tensors;

    // Of the int4 matrix `name`: so many scales in a row, the first of those that it has.
    void set_groups(const std::string& name, int64_t num);
    // config.json, the files and the index (when num_files > 1), tokenizer.json.
    void write(const std::string& directory) const;

  private:
    int num_files_;
};

}  // namespace ferry::testing
