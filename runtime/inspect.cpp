#include "runtime/inspect.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "runtime/checkpoint.h"
#include "runtime/hf_model.h"
#include "runtime/json_text.h"

namespace ferry {
namespace {

std::string human_bytes(int64_t num_bytes) {
    constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    auto value = static_cast<double>(num_bytes);
    int unit = 0;
    for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
    return unit == 0 ? fmt::format("{} B", num_bytes)
                     : fmt::format("{:.2f} {}", value, kUnits[unit]);
}

std::string human_count(int64_t count) {
    const auto value = static_cast<double>(count);
    if (value >= 1e9) return fmt::format("{:.2f} billion", value / 1e9);
    if (value >= 1e6) return fmt::format("{:.2f} million", value / 1e6);
    return fmt::format("{}", count);
}

// "layers/12/attn/wo" -> 12 and "layers/N/attn/wo"; nothing for other names.
std::optional<std::pair<int64_t, std::string>> split_layer(const std::string& name) {
    constexpr std::string_view kPrefix = "layers/";
    if (!name.starts_with(kPrefix)) return std::nullopt;
    int64_t layer = 0;
    const auto [end, error] =
        std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
    if (error != std::errc{}) return std::nullopt;
    return std::pair(layer, "layers/N" + std::string(end, name.data() + name.size()));
}

// "0", "1-60", "0-2,5".
std::string describe_layers(const std::vector<int64_t>& layers) {
    std::string text;
    for (size_t i = 0; i < layers.size();) {
        size_t last = i;
        while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
        text += fmt::format("{}{}", text.empty() ? "" : ",", layers[i]);
        if (last > i) text += fmt::format("-{}", layers[last]);
        i = last + 1;
    }
    return text;
}

using Entry = CheckpointSummary::Entry;

struct Line {
    std::string name;
    TensorInfo info;
    int64_t num_parts;
    std::vector<int64_t> layers;  // in increasing order
};

// Tensors of layers that agree in all but the layer's number become one line.
std::vector<Line> fold_layers(const std::vector<Entry>& tensors) {
    std::vector<Line> lines;
    std::map<std::string, size_t> places;
    for (const Entry& entry : tensors) {
        const auto split = split_layer(entry.name);
        const std::string name = split ? split->second : entry.name;
        const std::string key = fmt::format("{} {} {} {}", name, to_string(entry.info.dtype),
                                            describe_shape(entry.info.shape), entry.num_parts);
        const auto [place, is_new] = places.emplace(key, lines.size());
        if (is_new) lines.push_back({name, entry.info, entry.num_parts, {}});
        if (split) lines[place->second].layers.push_back(split->first);
    }
    for (Line& line : lines) std::ranges::sort(line.layers);
    return lines;
}

std::string tensor_table(const std::vector<Line>& lines) {
    size_t width = 0;
    for (const Line& line : lines) width = std::max(width, line.name.size());
    std::string text;
    for (const Line& line : lines) {
        const auto times = static_cast<int64_t>(std::max<size_t>(line.layers.size(), 1));
        text += fmt::format("  {:<{}}  {:<8}  {:<22} {:>12}", line.name, width,
                            to_string(line.info.dtype), describe_shape(line.info.shape),
                            human_bytes(size_bytes(line.info) * times));
        if (!line.layers.empty()) text += "  N = " + describe_layers(line.layers);
        if (line.num_parts > 1) text += fmt::format("  in {} parts", line.num_parts);
        text += '\n';
    }
    return text;
}

}  // namespace

int64_t CheckpointSummary::num_bytes() const {
    int64_t sum = 0;
    for (const Entry& entry : tensors) sum += size_bytes(entry.info);
    return sum;
}

CheckpointSummary summarise_checkpoint(const std::string& path) {
    const std::unique_ptr<WeightSource> weights = open_weights(path);
    CheckpointSummary summary{.path = path,
                              .format = {},
                              .has_checksums = false,
                              .description = {},
                              .files = {},
                              .tensors = {},
                              .warnings = {}};
    const auto add_file = [&](const InputFile& file) {
        summary.files.push_back(
            {std::filesystem::path(file.path()).filename().string(), file.size_bytes()});
    };
    const std::map<std::string, StoredTensor>* tensors = nullptr;
    if (const auto* checkpoint = dynamic_cast<const Checkpoint*>(weights.get())) {
        summary.format = "Ferry HDF5 checkpoint";
        summary.has_checksums = true;
        summary.description = checkpoint->description();
        for (const auto& shard : checkpoint->shards()) add_file(*shard);
        tensors = &checkpoint->tensors();
    } else {
        const auto& model = dynamic_cast<const HfModel&>(*weights);
        summary.format = "Hugging Face safetensors";
        summary.description = model.description();
        for (const auto& file : model.files()) add_file(file->file());
        tensors = &model.tensors();
        summary.warnings = model.warnings();
    }
    for (const auto& [name, tensor] : *tensors)
        summary.tensors.push_back({name, tensor.info, static_cast<int64_t>(tensor.parts.size())});
    return summary;
}

std::string to_text(const CheckpointSummary& summary, bool all_tensors) {
    const ModelConfig& model = summary.description.model;
    std::string text = fmt::format("{}\n  {}; {} parameters, {} used per token\n", summary.path,
                                   summary.format, human_count(model.num_parameters()),
                                   human_count(model.num_active_parameters()));
    for (const auto& [name, value] : to_attributes(summary.description))
        text += fmt::format("  {:<28}{}\n", name, to_string(value));

    int64_t file_bytes = 0;
    text += "files\n";
    for (const CheckpointSummary::File& file : summary.files) {
        text += fmt::format("  {:<40} {:>12}\n", file.name, human_bytes(file.size_bytes));
        file_bytes += file.size_bytes;
    }
    text += "tensors\n";
    if (all_tensors) {
        std::vector<Line> lines;
        for (const Entry& entry : summary.tensors)
            lines.push_back({entry.name, entry.info, entry.num_parts, {}});
        text += tensor_table(lines);
    } else {
        text += tensor_table(fold_layers(summary.tensors));
    }
    text += fmt::format("{} tensors, {}; {} files, {}\n", summary.tensors.size(),
                        human_bytes(summary.num_bytes()), summary.files.size(),
                        human_bytes(file_bytes));
    return text;
}

std::string to_json(const CheckpointSummary& summary) {
    const ModelConfig& model = summary.description.model;
    Json json = {{"path", summary.path},
                 {"format", summary.format},
                 {"parameters", model.num_parameters()},
                 {"active_parameters", model.num_active_parameters()},
                 {"tensor_bytes", summary.num_bytes()},
                 {"model", Json::object()},
                 {"files", Json::array()},
                 {"tensors", Json::array()}};
    for (const auto& [name, value] : to_attributes(summary.description))
        std::visit([&, &key = name](const auto& v) { json["model"][key] = v; }, value);
    for (const CheckpointSummary::File& file : summary.files)
        json["files"].push_back({{"name", file.name}, {"bytes", file.size_bytes}});
    for (const Entry& entry : summary.tensors)
        json["tensors"].push_back({{"name", entry.name},
                                   {"dtype", to_string(entry.info.dtype)},
                                   {"shape", entry.info.shape},
                                   {"bytes", size_bytes(entry.info)},
                                   {"parts", entry.num_parts}});
    return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace ferry
