// What is inside a checkpoint, as a value that prints itself for people and for machines.
#pragma once
#include <string>
#include <vector>

#include "layers/weight_source.h"
#include "runtime/model_description.h"

namespace ferry {

struct CheckpointSummary {
    struct File {
        std::string name;
        int64_t size_bytes = 0;
    };
    struct Entry {
        std::string name;
        TensorInfo info;
        int64_t num_parts = 1;  // pieces that it is stored in
    };

    std::string path;
    std::string format;  // "Ferry HDF5 checkpoint", "Hugging Face safetensors"
    bool has_checksums = false;
    ModelDescription description;
    std::vector<File> files;
    std::vector<Entry> tensors;         // by name
    std::vector<std::string> warnings;  // of a Hugging Face folder, a line each

    int64_t num_bytes() const;  // of tensors
};

// `path` as for open_weights. Throws Error(checkpoint).
CheckpointSummary summarise_checkpoint(const std::string& path);

// `all_tensors`: one line per tensor; otherwise layers that look alike share their lines.
std::string to_text(const CheckpointSummary& summary, bool all_tensors);
std::string to_json(const CheckpointSummary& summary);

}  // namespace ferry
