// A Hugging Face model directory (config.json, *.safetensors) as a source of weights, without
// conversion.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "layers/weight_source.h"
#include "runtime/hf_config.h"
#include "runtime/safetensors.h"
#include "runtime/stored_tensor.h"

namespace ferry {

class HfModel : public WeightSource {
  public:
    // Opens every file, then finds every tensor; throws one Error(checkpoint) that lists all files
    // that are broken, or else all tensors that are missing, misshapen or of an unusable type.
    explicit HfModel(std::string directory);

    const ModelConfig& config() const override { return description_.model; }
    void add_mtp() override { description_.model.n_mtp_layers = 1; }
    std::optional<TensorInfo> find(const std::string& name) const override;
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override;

    const std::string& directory() const { return directory_; }
    const ModelDescription& description() const { return description_; }
    const std::string& config_text() const { return config_text_; }
    // What a person should know although the model can be used, a line each: keys of config.json
    // that look misspelt, tensors that nothing is made of.
    const std::vector<std::string>& warnings() const { return warnings_; }
    const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }

    // What the model needs and the MTP tensors that are there, in model order, scales apart.
    const std::vector<TensorSpec>& specs() const { return specs_; }
    const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
    // Throws Error(checkpoint) when there is no tensor of that name.
    const StoredTensor& stored(const std::string& name) const;

  private:
    std::string directory_;
    std::string config_text_;
    ModelDescription description_;
    std::vector<std::string> warnings_;
    std::vector<std::unique_ptr<SafetensorsFile>> files_;
    std::vector<TensorSpec> specs_;
    std::map<std::string, StoredTensor> tensors_;
};

}  // namespace ferry
