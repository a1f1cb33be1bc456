#include "runtime/hf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "runtime/hf_names.h"
#include "runtime/json_text.h"
#include "runtime/problems.h"

namespace ferry {
namespace {

constexpr int64_t kMaxJsonBytes = int64_t{256} << 20;

struct Found {
    const SafeTensor* tensor;
    const InputFile* file;
    bool is_used = false;
};
using Tensors = std::unordered_map<std::string, Found>;

// Opens the files of a directory; `tensors` points into `files`.
class FileSet {
  public:
    FileSet(const std::string& directory, std::vector<std::unique_ptr<SafetensorsFile>>& files,
            Problems& problems)
        : directory_(directory), files_(files), problems_(problems) {
        const std::string index = directory + "/model.safetensors.index.json";
        if (std::filesystem::exists(index)) {
            listed_in_ = index;
            open_indexed(index);
        } else {
            listed_in_ = directory + "/model.safetensors";
            open("model.safetensors", /*keep_all=*/true);
        }
    }
    Tensors take() { return std::move(tensors_); }
    // The file that names every tensor.
    const std::string& listed_in() const { return listed_in_; }

  private:
    void open_indexed(const std::string& index) {
        const auto places = parse_safetensors_index(read_text_file(index, kMaxJsonBytes), index);
        std::map<std::string, const SafetensorsFile*> opened;
        std::map<std::string, std::unordered_map<std::string_view, const SafeTensor*>> contents;
        for (const auto& [name, file_name] : places) {
            if (opened.contains(file_name)) continue;
            const SafetensorsFile* file = opened[file_name] = open(file_name, /*keep_all=*/false);
            if (file == nullptr) continue;
            for (const SafeTensor& tensor : file->tensors())
                contents[file_name].emplace(tensor.name, &tensor);
        }
        for (const auto& [name, file_name] : places) {
            if (opened[file_name] == nullptr) continue;
            const auto& content = contents[file_name];
            const auto it = content.find(name);
            if (it == content.end())
                problems_.add("{}/{}: tensor {} is missing (the index says it is there)",
                              directory_, file_name, name);
            else
                tensors_.emplace(name, Found{it->second, &opened[file_name]->file()});
        }
    }

    const SafetensorsFile* open(const std::string& file_name, bool keep_all) {
        try {
            files_.push_back(std::make_unique<SafetensorsFile>(directory_ + "/" + file_name));
        } catch (const Error& error) {
            problems_.add("{}", error.what());
            return nullptr;
        }
        const SafetensorsFile& file = *files_.back();
        for (const SafeTensor& tensor : file.tensors())
            if (keep_all) tensors_.emplace(tensor.name, Found{&tensor, &file.file()});
        return &file;
    }

    const std::string& directory_;
    std::vector<std::unique_ptr<SafetensorsFile>>& files_;
    Problems& problems_;
    std::string listed_in_;
    Tensors tensors_;
};

// Finds Ferry's tensors among the files' tensors.
class Mapper {
  public:
    // `listed_in`: the file that names every tensor. `prefix`: of their names. `int4_experts`:
    // packed ones are expected.
    Mapper(Tensors& tensors, const std::string& listed_in, std::string_view prefix,
           int64_t n_layers, bool int4_experts, Problems& problems)
        : tensors_(tensors),
          listed_in_(listed_in),
          prefix_(prefix),
          n_layers_(n_layers),
          int4_experts_(int4_experts),
          problems_(problems) {}

    bool has(const std::string& name) const {
        const HfPlace place = place_of(name);
        return tensors_.contains(place.of_expert(0)) || tensors_.contains(place.fused_name);
    }

    // The weight and, when its type has them, its scales.
    void map(const TensorSpec& spec, std::map<std::string, StoredTensor>& result) {
        const HfPlace place = place_of(spec.name);
        const HfPackedPlaces packed = hf_packed_places(place);
        if (const std::string name = packed.codes.of_expert(0);
            int4_experts_ && tensors_.contains(name)) {
            if (can_be_int4(spec)) return map_packed(spec, packed, result);
            problems_.add(
                "{}: tensor {} is int4, which rows whose length is no multiple of {} may not be",
                path_of(name), name, kInt4Group);
            return;
        }
        std::optional<StoredTensor> weight = gather(spec, place);
        if (!weight) return;
        if (weight->info.dtype == DType::fp8_e4m3) {
            TensorSpec scale{.name = spec.name + "_scale", .shape = spec.shape};
            for (size_t i = spec.shape.size() - 2; i < spec.shape.size(); ++i)
                scale.shape[i] = (spec.shape[i] + 127) / 128;
            scale.is_expert = spec.is_expert;
            const HfPlace scale_place = hf_scale_place(place);
            if (tensors_.contains(scale_place.fused_name) && place.fused_num > 1 &&
                spec.shape[1] % 128 != 0) {
                problems_.add("{}: tensor {}: scale blocks go over two weights",
                              path_of(scale_place.fused_name), scale_place.fused_name);
                return;
            }
            std::optional<StoredTensor> scales = gather(scale, scale_place);
            if (!scales) return;
            if (scales->info.dtype != DType::f32) {
                const std::string name = tensors_.contains(scale_place.fused_name)
                                             ? scale_place.fused_name
                                             : scale_place.of_expert(0);
                problems_.add("{}: tensor {}: scales are not F32", path_of(name), name);
                return;
            }
            result.emplace(scale.name, std::move(*scales));
        }
        result.emplace(spec.name, std::move(*weight));
    }

  private:
    HfPlace place_of(const std::string& name) const {
        HfPlace place = hf_place(name, n_layers_);
        place.name.insert(0, prefix_);
        if (!place.fused_name.empty()) place.fused_name.insert(0, prefix_);
        return place;
    }

    // Eight codes in an I32, of k in order from its low bits on: as bytes, int4x2.
    void map_packed(const TensorSpec& spec, const HfPackedPlaces& packed,
                    std::map<std::string, StoredTensor>& result) {
        const int64_t num = spec.is_expert ? spec.shape[0] : 1;
        const int64_t out = spec.shape.end()[-2], in = spec.shape.end()[-1];
        StoredTensor codes{.info = {DType::int4x2, *stored_shape(spec, DType::int4x2)},
                           .parts = {}};
        StoredTensor scales{.info = scale_info(codes.info), .parts = {}};
        const auto add = [&](StoredTensor& to, const std::string& name, std::string_view dtype,
                             const std::vector<int64_t>& one, int64_t expert) {
            const Found* found = find(name);
            if (found == nullptr) return false;
            const SafeTensor& tensor = *found->tensor;
            if (tensor.stored_dtype != dtype || tensor.shape != one) {
                problems_.add("{}: tensor {} is {} {}, expected {} {}", found->file->path(), name,
                              tensor.stored_dtype, describe_shape(tensor.shape), dtype,
                              describe_shape(one));
                return false;
            }
            if (spec.is_expert)
                to.parts.push_back({expert, 1, found->file, tensor.offset_bytes});
            else
                to.parts = {{0, out, found->file, tensor.offset_bytes}};
            return true;
        };
        const int64_t num_groups = stored_groups(packed.scales.of_expert(0), in / kInt4Group);
        scales.repeat = in / kInt4Group / num_groups;
        for (int64_t expert = 0; expert < num; ++expert) {
            const bool added =
                add(codes, packed.codes.of_expert(expert), "I32", {out, in / 8}, expert) &&
                add(scales, packed.scales.of_expert(expert), "BF16", {out, num_groups}, expert);
            if (!added) return;
            if (const std::string order = packed.order.of_expert(expert);
                tensors_.contains(order)) {
                problems_.add("{}: tensor {}: columns in another order are not supported",
                              path_of(order), order);
                return;
            }
            // Says [out, in] again.
            if (const auto it = tensors_.find(packed.shape.of_expert(expert)); it != tensors_.end())
                it->second.is_used = true;
        }
        result.emplace(spec.name + "_scale", std::move(scales));
        result.emplace(spec.name, std::move(codes));
    }

    // Of the scales of one matrix: groups in a row, which may be some of those of 32 values each.
    int64_t stored_groups(const std::string& scales, int64_t groups) const {
        const auto it = tensors_.find(scales);
        if (it == tensors_.end() || it->second.tensor->shape.empty()) return groups;
        const int64_t num = it->second.tensor->shape.back();
        return num > 0 && groups % num == 0 ? num : groups;
    }

    const Found* find(const std::string& name) {
        const auto it = tensors_.find(name);
        if (it == tensors_.end()) {
            problems_.add("{}: tensor {} is missing", listed_in_, name);
            return nullptr;
        }
        it->second.is_used = true;
        return &it->second;
    }

    std::optional<StoredTensor> gather(const TensorSpec& spec, const HfPlace& place) {
        StoredTensor stored{.info = {.dtype = DType::f32, .shape = spec.shape}, .parts = {}};
        if (!spec.is_expert) {
            const Found* found = check(place.name, spec, spec.shape, stored.info.dtype, true);
            if (found == nullptr) return std::nullopt;
            stored.parts = {{0, spec.shape[0], found->file, found->tensor->offset_bytes}};
            return stored;
        }
        if (tensors_.contains(place.fused_name)) return gather_fused(spec, place, stored);
        const std::vector<int64_t> one(spec.shape.begin() + 1, spec.shape.end());
        for (int64_t expert = 0; expert < spec.shape[0]; ++expert) {
            const Found* found =
                check(place.of_expert(expert), spec, one, stored.info.dtype, expert == 0);
            if (found == nullptr) return std::nullopt;
            stored.parts.push_back({expert, 1, found->file, found->tensor->offset_bytes});
        }
        return stored;
    }

    std::optional<StoredTensor> gather_fused(const TensorSpec& spec, const HfPlace& place,
                                             StoredTensor& stored) {
        std::vector<int64_t> fused = spec.shape;
        fused[1] *= place.fused_num;
        const Found* found = check(place.fused_name, spec, fused, stored.info.dtype, true);
        if (found == nullptr) return std::nullopt;
        const int64_t one_bytes = spec.shape[1] * spec.shape[2] * size_bytes(stored.info.dtype);
        for (int64_t expert = 0; expert < spec.shape[0]; ++expert)
            stored.parts.push_back({expert, 1, found->file,
                                    found->tensor->offset_bytes +
                                        (expert * place.fused_num + place.fused_idx) * one_bytes});
        return stored;
    }

    // The tensor `name` if it is there with this shape and a type that Ferry computes with; the
    // first one of an expert weight sets `dtype`, the others must have it too.
    const Found* check(const std::string& name, const TensorSpec& spec,
                       const std::vector<int64_t>& shape, DType& dtype, bool is_first) {
        const Found* found = find(name);
        if (found == nullptr) return nullptr;
        const SafeTensor& tensor = *found->tensor;
        const std::string& path = found->file->path();
        if (tensor.shape != shape) {
            problems_.add("{}: tensor {} has shape {}, expected {}", path, name,
                          describe_shape(tensor.shape), describe_shape(shape));
            return nullptr;
        }
        const bool usable = tensor.dtype == DType::f32 || tensor.dtype == DType::bf16 ||
                            (tensor.dtype == DType::fp8_e4m3 && spec.is_linear);
        if (!usable) {
            problems_.add("{}: tensor {} has dtype {}, expected F32, BF16{}", path, name,
                          tensor.stored_dtype, spec.is_linear ? " or F8_E4M3" : "");
            return nullptr;
        }
        if (!is_first && tensor.dtype != dtype) {
            problems_.add("{}: tensor {} has dtype {}, other experts have {}", path, name,
                          tensor.stored_dtype, to_string(dtype));
            return nullptr;
        }
        dtype = *tensor.dtype;
        return found;
    }

    const std::string& path_of(const std::string& name) const {
        return tensors_.at(name).file->path();
    }

    Tensors& tensors_;
    const std::string& listed_in_;
    std::string_view prefix_;
    int64_t n_layers_;
    bool int4_experts_;
    Problems& problems_;
};

// N of "model.layers.N.REST", -1 of other names.
int64_t layer_of(std::string_view name) {
    constexpr std::string_view kPrefix = "model.layers.";
    int64_t layer = -1;
    if (name.starts_with(kPrefix))
        std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
    return layer;
}

// What the names of a text model begin with, if it is a part of a model of images too.
std::string_view text_prefix(const Tensors& tensors) {
    constexpr std::string_view kPrefix = "language_model.";
    const bool found = std::ranges::any_of(
        tensors, [&](const auto& entry) { return entry.first.starts_with(kPrefix); });
    return found ? kPrefix : "";
}

// A line about parts that are no text model, one about layers after the last one of which nothing
// is used, and one about other tensors.
void note_unused(const Tensors& tensors, const std::string& listed_in, std::string_view prefix,
                 const ModelDescription& description, std::vector<std::string>& notes) {
    const int64_t n_layers = description.model.n_layers;
    const int64_t num_mtp = description.num_mtp_layers;
    std::set<int64_t> used_layers, left_out;
    for (const auto& [name, found] : tensors)
        if (found.is_used) used_layers.insert(layer_of(name.substr(prefix.size())));
    size_t num_left_out = 0, num_of_images = 0;
    std::set<std::string> image_parts;
    std::vector<std::string> unused;
    for (const auto& [name, found] : tensors) {
        // Tables that old versions of Transformers wrote: Ferry computes them.
        if (found.is_used || name.find("rotary_emb.") != std::string::npos) continue;
        if (!name.starts_with(prefix)) {
            image_parts.insert(in_quotes(name.substr(0, name.find('.'))));
            ++num_of_images;
            continue;
        }
        const int64_t layer = layer_of(name.substr(prefix.size()));
        if (layer < n_layers || used_layers.contains(layer)) {
            unused.push_back(in_quotes(name));
        } else {
            left_out.insert(layer);
            ++num_left_out;
        }
    }
    if (num_of_images > 0)
        notes.push_back(fmt::format("{}: only the text model is loaded; left out: {} ({} tensors)",
                                    listed_in, fmt::join(image_parts, ", "), num_of_images));
    if (!left_out.empty()) {
        const int64_t first = *left_out.begin(), last = *left_out.rbegin();
        const std::string layers = first == last ? fmt::format("layer {}", first)
                                                 : fmt::format("layers {} to {}", first, last);
        notes.push_back(
            last < n_layers + num_mtp
                ? fmt::format("{}: multi-token prediction layers are left out: {} ({} tensors)",
                              listed_in, layers, num_left_out)
                : fmt::format("{}: nothing of {} is used ({} tensors): config.json has "
                              "num_hidden_layers {}, num_nextn_predict_layers {}",
                              listed_in, layers, num_left_out, n_layers, num_mtp));
    }
    if (unused.empty()) return;
    std::ranges::sort(unused);
    const size_t num = unused.size();
    constexpr size_t kShown = 4;
    unused.resize(std::min(num, kShown));
    notes.push_back(fmt::format("{}: {} not used: {}{}", listed_in,
                                num == 1 ? "1 tensor is" : fmt::format("{} tensors are", num),
                                fmt::join(unused, ", "), num > kShown ? ", ..." : ""));
}

}  // namespace

HfModel::HfModel(std::string directory) : directory_(std::move(directory)) {
    const std::string config_path = directory_ + "/config.json";
    config_text_ = read_text_file(config_path, kMaxJsonBytes);
    description_ = parse_hf_config(config_text_, config_path, &warnings_);
    ModelConfig& model = description_.model;

    Problems problems;
    FileSet file_set(directory_, files_, problems);
    problems.throw_if_any(directory_);  // a broken file would make all of its tensors missing
    Tensors found = file_set.take();
    const std::string_view prefix = text_prefix(found);
    Mapper mapper(found, file_set.listed_in(), prefix, model.n_layers, description_.int4_experts,
                  problems);
    model.has_gate_bias = false;
    for (int64_t layer = model.n_dense_layers; layer < model.n_layers; ++layer)
        model.has_gate_bias |= mapper.has(fmt::format("layers/{}/ffn/gate/bias", layer));

    specs_ = model_tensors(model);
    for (int64_t idx = 0; idx < description_.num_mtp_layers; ++idx) {
        if (!mapper.has(fmt::format("mtp/{}/eh_proj", idx))) continue;
        for (const TensorSpec& spec : mtp_tensors(model, idx))
            if (!is_shared_with_model(spec) || mapper.has(spec.name)) specs_.push_back(spec);
    }
    for (const TensorSpec& spec : specs_) mapper.map(spec, tensors_);
    problems.throw_if_any(directory_);
    note_unused(found, file_set.listed_in(), prefix, description_, warnings_);
}

const StoredTensor& HfModel::stored(const std::string& name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end())
        throw Error(ErrorKind::checkpoint, "{}: has no tensor {}", directory_, name);
    return it->second;
}

std::optional<TensorInfo> HfModel::find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? std::nullopt : std::optional(it->second.info);
}

void HfModel::read(const std::string& name, std::span<const Range> ranges, void* dst) {
    read_box(stored(name), ranges, dst);
}

}  // namespace ferry
