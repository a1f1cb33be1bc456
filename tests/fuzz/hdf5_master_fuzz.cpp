// Checkpoints whose attributes and datasets are bent by the input, read by Checkpoint. The files
// are written by the HDF5 library itself: raw hostile bytes would test that library, whose 1.10
// series is known to crash on them, and not Ferry's reader.
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/block_sums.h"
#include "runtime/checkpoint.h"
#include "runtime/hdf5_file.h"
#include "runtime/shard_index.h"

namespace {

using namespace ferry;

// Takes numbers from the input until it is used up, then zeros.
class Bytes {
  public:
    Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
    bool empty() const { return at_ == end_; }
    uint8_t next() { return empty() ? 0 : *at_++; }
    int64_t number() {  // mostly small; sometimes at the edges
        const uint8_t kind = next();
        if (kind < 200) return kind % 10;
        if (kind < 220) return int64_t{1} << (next() % 64);
        return static_cast<int8_t>(next());
    }
    std::string text() {
        std::string text(next() % 24, '\0');
        for (char& c : text) c = static_cast<char>(next());
        return text;
    }

  private:
    const uint8_t *at_, *end_;
};

ModelDescription tiny_model() {
    ModelDescription d;
    // One layer, so that a run is short: most of it is the library's work.
    d.model = {.vocab_size = 4,
               .dim = 4,
               .moe_inter_dim = 2,
               .n_layers = 1,
               .n_heads = 1,
               .kv_lora_rank = 2,
               .qk_nope_head_dim = 2,
               .qk_rope_head_dim = 2,
               .v_head_dim = 2,
               .yarn = {},
               .n_routed_experts = 2,
               .n_shared_experts = 1,
               .n_activated_experts = 1};
    return d;
}

struct Files {
    Attributes master;
    std::vector<Hdf5Dataset> shard;
    Attributes shard_root{{"fingerprint", std::string("f")}};
};

Files good_files() {
    Files files;
    files.master = to_attributes(tiny_model());
    files.master["ferry_format"] = int64_t{1};
    files.master["fingerprint"] = std::string("f");
    for (const TensorSpec& spec : model_tensors(tiny_model().model))
        files.shard.push_back({.name = spec.name,
                               .info = {DType::bf16, spec.shape},
                               .offset_bytes = 0,
                               .attributes = {{"dtype", std::string("bf16")},
                                              {"xxh3", std::string(16, '0')},
                                              {"first_row", int64_t{0}}}});
    return files;
}

Attribute any_attribute(Bytes& bytes) {
    switch (bytes.next() % 3) {
        case 0:
            return bytes.number();
        case 1:
            return static_cast<double>(bytes.number()) / 3;
        default:
            return bytes.text();
    }
}

void bend_attribute(Attributes& attributes, Bytes& bytes) {
    if (attributes.empty()) return;
    auto it =
        std::next(attributes.begin(), static_cast<ptrdiff_t>(bytes.next() % attributes.size()));
    if (bytes.next() % 4 == 0)
        attributes.erase(it);
    else
        it->second = any_attribute(bytes);
}

void bend(Files& files, Bytes& bytes) {
    const uint8_t what = bytes.next() % 7;
    if (what == 0) return bend_attribute(files.master, bytes);
    if (what == 1) return bend_attribute(files.shard_root, bytes);
    if (files.shard.empty()) return;
    const size_t idx = bytes.next() % files.shard.size();
    Hdf5Dataset& dataset = files.shard[idx];
    switch (what) {
        case 2:
            return bend_attribute(dataset.attributes, bytes);
        case 3:
            dataset.info.shape[bytes.next() % dataset.info.shape.size()] = bytes.next() % 9;
            return;
        case 4:
            if (dataset.info.shape.size() < 4) dataset.info.shape.push_back(1 + bytes.next() % 3);
            return;
        case 5:
            dataset.info.dtype = bytes.next() % 2 == 0 ? DType::fp8_e4m3 : DType::f32;
            dataset.attributes["dtype"] = std::string(to_string(dataset.info.dtype));
            return;
        default:
            files.shard.erase(files.shard.begin() + static_cast<ptrdiff_t>(idx));
    }
}

// Checksums of the blocks of a shard whose tensors are small, right in number.
std::optional<std::string> some_block_sums(const Files& files, int64_t rows_per_block) {
    std::map<std::string, BlockSums> all;
    for (const Hdf5Dataset& dataset : files.shard) {
        const auto count = checked_count(dataset.info.shape);
        if (!count || *count == 0 || *count > 100000) return std::nullopt;
        const BlockLayout layout(dataset.info, rows_per_block);
        all[dataset.name] = {rows_per_block,
                             std::vector<uint64_t>(static_cast<size_t>(layout.num_blocks()))};
    }
    return to_text(all);
}

void write_files(const Files& files, const std::string& directory, int64_t rows_per_block) {
    const std::string shard_path = directory + "/dense.h5";
    Hdf5File shard = Hdf5File::create(shard_path);
    for (const auto& [name, value] : files.shard_root) shard.set_attribute("", name, value);
    for (const Hdf5Dataset& dataset : files.shard) {
        shard.create_dataset(dataset.name, dataset.info);
        for (const auto& [name, value] : dataset.attributes)
            shard.set_attribute(dataset.name, name, value);
    }
    if (const auto sums = some_block_sums(files, rows_per_block))
        shard.create_text("block_sums", *sums);
    shard.close();
    Hdf5File master = Hdf5File::create(directory + "/model.h5");
    master.set_attribute("", "shards",
                         fmt::format("dense.h5 {}\n", std::filesystem::file_size(shard_path)));
    for (const auto& [name, value] : files.master) master.set_attribute("", name, value);
    master.create_text("config_json", "{}");
    master.close();
}

std::string make_directory() {
    std::string path = (std::filesystem::temp_directory_path() / "ferry-fuzz-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) std::abort();
    return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const std::string directory = make_directory();
    static ThreadPool pool(1, 64);
    static const bool is_swept = std::atexit([] {
                                     std::error_code ignored;
                                     std::filesystem::remove_all(directory, ignored);
                                 }) == 0;
    const std::string text(reinterpret_cast<const char*>(data), size);
    try {  // the same bytes as a shard's index, or as its checksums of blocks
        parse_shard_index(with_checksum(text), "shard");
    } catch (const Error&) {
    }
    try {
        parse_block_sums(with_checksum(text), "shard");
    } catch (const Error&) {
    }
    if (!is_swept || size > 256) return 0;
    Bytes bytes(data, size);
    Files files = good_files();
    while (!bytes.empty()) bend(files, bytes);
    try {
        write_files(files, directory, 1 + static_cast<int64_t>(size) % 5);
    } catch (const Error&) {
        return 0;  // the library cannot even write this
    }
    try {
        Checkpoint checkpoint(directory);
        if (checkpoint.has_block_sums()) checkpoint.check_reads();
        for (const auto& [name, tensor] : checkpoint.tensors()) {
            std::vector<char> out(static_cast<size_t>(size_bytes(tensor.info)));
            checkpoint.read(name, whole_box(tensor.info.shape), out.data());
        }
        checkpoint.require_sound();
        checkpoint.verify(pool);
    } catch (const Error&) {  // what a bent checkpoint must end in
    }
    return 0;
}
