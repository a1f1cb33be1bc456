#include <filesystem>

#include "base/error.h"
#include "runtime/checkpoint.h"
#include "runtime/checkpoint_format.h"
#include "runtime/hf_model.h"

namespace ferry {

std::unique_ptr<WeightSource> open_weights(const std::string& path) {
    namespace fs = std::filesystem;
    if (!fs::exists(path))
        throw Error(ErrorKind::checkpoint, "{}: no such checkpoint, neither folder nor model.h5",
                    path);
    if (!fs::is_directory(path) || fs::exists(path + "/" + checkpoint_format::kMasterFile))
        return std::make_unique<Checkpoint>(path);
    if (fs::exists(path + "/config.json")) return std::make_unique<HfModel>(path);
    throw Error(ErrorKind::checkpoint,
                "{}: holds neither model.h5 nor the config.json of a Hugging Face model", path);
}

}  // namespace ferry
