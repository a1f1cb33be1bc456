#include <filesystem>

#include "base/error.h"
#include "runtime/checkpoint.h"
#include "runtime/checkpoint_format.h"
#include "runtime/hf_model.h"

namespace ferry {
namespace {

bool exists(const std::string& path) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    if (status.type() == std::filesystem::file_type::none)
        throw Error(ErrorKind::checkpoint, "{}: {}", path, error.message());
    return std::filesystem::exists(status);
}

// Shards without the master file, which is written last.
bool is_unfinished_conversion(const std::string& folder) {
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator(folder, unreadable))
        if (entry.path().extension() == ".partial" || entry.path().extension() == ".h5")
            return true;
    return false;
}

}  // namespace

std::unique_ptr<WeightSource> open_weights(const std::string& path) {
    if (!exists(path))
        throw Error(ErrorKind::checkpoint, "{}: no such checkpoint, neither folder nor model.h5",
                    path);
    if (!std::filesystem::is_directory(path) || exists(path + "/" + checkpoint_format::kMasterFile))
        return std::make_unique<Checkpoint>(path);
    if (exists(path + "/config.json")) return std::make_unique<HfModel>(path);
    if (is_unfinished_conversion(path))
        throw Error(ErrorKind::checkpoint,
                    "{}: a conversion that is not finished: run ferry convert again, it goes on",
                    path);
    throw Error(ErrorKind::checkpoint,
                "{}: holds neither model.h5 nor the config.json of a Hugging Face model", path);
}

}  // namespace ferry
