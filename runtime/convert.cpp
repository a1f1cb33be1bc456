#include "runtime/convert.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "comm/node_memory.h"
#include "runtime/block_sums.h"
#include "runtime/checkpoint_format.h"
#include "runtime/checksum.h"
#include "runtime/hdf5_file.h"
#include "runtime/output_file.h"
#include "runtime/parallel.h"
#include "runtime/requantise.h"
#include "runtime/shard_index.h"
#include "runtime/tokenizer.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;
using namespace checkpoint_format;

constexpr const char* kCopiedFiles[] = {"tokenizer.json",
                                        "tiktoken.model",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "chat_template.jinja",
                                        "generation_config.json",
                                        "config.json"};

// A file that is removed unless it was completed.
class PartialFile {
  public:
    explicit PartialFile(std::string final_path)
        : final_path_(std::move(final_path)), path_(final_path_ + ".partial") {}
    ~PartialFile() {
        std::error_code ignored;
        if (!path_.empty()) fs::remove(path_, ignored);
    }
    const std::string& path() const { return path_; }
    void complete() {
        rename_durably(path_, final_path_);
        path_.clear();
    }

  private:
    std::string final_path_, path_;
};

// A dataset whose bytes come in order.
class DatasetWriter {
  public:
    DatasetWriter(OutputFile& file, const TensorInfo& info, int64_t offset_bytes,
                  const std::function<void(int64_t)>& written)
        : file_(file), offset_bytes_(offset_bytes), written_(written), blocks_(info) {}

    void add(const void* data, size_t num_bytes) {
        checksum_.add(data, num_bytes);
        blocks_.add(data, num_bytes);
        file_.write_at(offset_bytes_, num_bytes, data);
        offset_bytes_ += static_cast<int64_t>(num_bytes);
        written_(static_cast<int64_t>(num_bytes));
    }
    std::string checksum_text() const { return fmt::format("{:016x}", checksum_.value()); }
    BlockSums take_block_sums() { return blocks_.take(); }

  private:
    OutputFile& file_;
    int64_t offset_bytes_;
    const std::function<void(int64_t)>& written_;
    Checksum checksum_;
    BlockSummer blocks_;
};

std::string scale_name(const std::string& name) {
    return name + "_scale";
}

// Runs fn; its errors say which tensor it was about.
template <typename Fn>
void naming_tensor(const std::string& name, Fn&& fn) {
    try {
        fn();
    } catch (const Error& error) {
        throw Error(error.kind(), "{} (tensor {})", error.what(), name);
    }
}

// The shard's datasets without their bytes, but with their space taken where the file system can;
// every attribute has its place already, so that nothing grows later. Gives their offsets.
std::map<std::string, int64_t> create_structure(const PlannedShard& shard,
                                                const std::string& fingerprint,
                                                const std::string& path) {
    Hdf5File file = Hdf5File::create(path);
    const auto add = [&](const std::string& name, const TensorInfo& info, int64_t first_row) {
        file.create_dataset(name, info);
        file.set_attribute(name, kDTypeAttribute, std::string(to_string(info.dtype)));
        file.set_attribute(name, kChecksumAttribute, std::string(16, '0'));
        file.set_attribute(name, kFirstRowAttribute, first_row);
    };
    for (const PlannedTensor& tensor : shard.tensors) {
        add(tensor.name, tensor.info, tensor.first_row);
        if (scale_form(tensor.info.dtype))
            add(scale_name(tensor.name), scale_info(tensor.info), tensor.first_row);
    }
    file.set_attribute("", kVersionAttribute, kVersion);
    file.set_attribute("", kFingerprintAttribute, fingerprint);
    std::map<std::string, int64_t> offsets;
    OutputFile space(path);
    for (const Hdf5Dataset& dataset : file.datasets()) {
        offsets[dataset.name] = dataset.offset_bytes;
        naming_tensor(dataset.name,
                      [&] { space.reserve(dataset.offset_bytes, size_bytes(dataset.info)); });
    }
    file.close();
    return offsets;
}

// Whether a file of the folder belongs to this conversion.
bool is_ours(const std::string& path, const std::string& fingerprint) {
    const Attributes attributes = Hdf5File::open(path).attributes("");
    const auto it = attributes.find(kFingerprintAttribute);
    return it != attributes.end() && it->second == Attribute(fingerprint);
}

// Counts the bytes that this node's ranks write, and on rank 0 calls the callback now and then.
class ProgressMeter {
  public:
    // `done_bytes` is shared by the ranks of the node.
    ProgressMeter(int64_t& done_bytes, const ConvertProgressFn& report)
        : done_bytes_(done_bytes), report_(report) {}

    void expect(int64_t kept_shards, int64_t kept_bytes, int64_t own_bytes) {
        progress_.kept_shards = kept_shards;
        kept_bytes_ = kept_bytes;
        own_bytes_ = own_bytes;
    }
    void add(int64_t bytes) {
        done_bytes_ += bytes;
        if (!report_) return;
        const std::lock_guard lock(mutex_);
        if (seconds() - progress_.seconds > kInterval_s) report(own_bytes_);
    }
    // Until the other ranks of the node are ready too.
    void wait() {
        if (!report_) return;
        while (done_bytes_ < own_bytes_) {
            std::this_thread::sleep_for(std::chrono::duration<double>(kInterval_s));
            report(own_bytes_);
        }
    }
    // `written_bytes`: of all ranks.
    ConvertProgress finish(int64_t written_bytes) {
        done_bytes_ = written_bytes;
        report(written_bytes);
        return progress_;
    }

  private:
    static constexpr double kInterval_s = 0.2;

    double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    }
    void report(int64_t expected_bytes) {
        const int64_t done_bytes = done_bytes_;
        progress_.seconds = seconds();
        progress_.done_bytes = kept_bytes_ + done_bytes;
        progress_.total_bytes = kept_bytes_ + expected_bytes;
        progress_.bytes_per_second =
            static_cast<double>(done_bytes) / std::max(progress_.seconds, 1e-6);
        if (report_) report_(progress_);
    }

    std::atomic_ref<int64_t> done_bytes_;
    const ConvertProgressFn& report_;
    std::mutex mutex_;
    ConvertProgress progress_;
    int64_t kept_bytes_ = 0;
    int64_t own_bytes_ = 0;  // what the node's ranks will write
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// The ranks of a conversion; one when there is no world.
class Team {
  public:
    explicit Team(World* world) : world_(world) {}
    int rank() const { return world_ == nullptr ? 0 : world_->rank(); }
    int size() const { return world_ == nullptr ? 1 : world_->size(); }
    bool shares_node_with(int rank) const {
        return world_ == nullptr ||
               world_->node_of_rank()[static_cast<size_t>(rank)] == world_->node();
    }
    void barrier() const {
        if (world_ != nullptr) world_->barrier();
    }
    // What rank 0 found.
    std::vector<bool> agree(const std::vector<bool>& flags) const {
        if (world_ == nullptr) return flags;
        std::string text;
        for (const bool flag : flags) text += flag ? '1' : '0';
        text = world_->broadcast(text, 0);
        std::vector<bool> agreed;
        for (const char flag : text) agreed.push_back(flag == '1');
        return agreed;
    }
    // Shared by all ranks of this node. Collective.
    Buffer node_counter() {
        if (world_ == nullptr) {
            Buffer buffer(cpu_device(), sizeof(int64_t));
            *static_cast<int64_t*>(buffer.data()) = 0;
            return buffer;
        }
        return memory_.emplace(*world_, 0).take(sizeof(int64_t));
    }

  private:
    World* world_;
    std::optional<NodeMemory> memory_;
};

// A checkpoint of ours has a config.json too.
void check_input_folder(const std::string& hf_directory) {
    const auto has = [&](const char* file) { return fs::exists(hf_directory + "/" + file); };
    if (has(kMasterFile) && !has("model.safetensors") && !has("model.safetensors.index.json"))
        throw Error(ErrorKind::usage,
                    "{}: is a converted checkpoint already; the Hugging Face folder is needed",
                    hf_directory);
}

void make_output_folder(const std::string& hf_directory, const std::string& out_directory) {
    std::error_code error;
    fs::create_directories(out_directory, error);
    if (error)
        throw Error(ErrorKind::checkpoint, "{}: cannot be made: {}", out_directory,
                    error.message());
    if (fs::equivalent(hf_directory, out_directory, error))
        throw Error(ErrorKind::usage, "{}: is the input folder; choose another one for the output",
                    out_directory);
}

// Links of the master: one per dataset, or a virtual dataset over the shards that hold its rows.
void link_tensors(Hdf5File& master, const ConversionPlan& plan) {
    std::map<std::string, std::vector<Hdf5Source>> sources;
    for (const PlannedShard& shard : plan.shards)
        for (const PlannedTensor& tensor : shard.tensors)
            sources[tensor.name].push_back({shard.file, tensor.info.shape[0]});
    const auto link = [&](const std::string& name, const TensorInfo& info,
                          const std::vector<Hdf5Source>& files) {
        if (files.size() == 1) {
            master.link_external(name, files[0].file);
        } else {
            master.create_virtual(name, info, files);
            master.set_attribute(name, kDTypeAttribute, std::string(to_string(info.dtype)));
        }
    };
    for (const PlannedTensor& tensor : plan.tensors) {
        const auto& files = sources.at(tensor.name);
        link(tensor.name, tensor.info, files);
        if (scale_form(tensor.info.dtype))
            link(scale_name(tensor.name), scale_info(tensor.info), files);
    }
}

}  // namespace

std::vector<bool> find_finished_shards(const ConversionPlan& plan,
                                       const std::string& out_directory) {
    const auto refuse = [&](const std::string& file) {
        throw Error(ErrorKind::checkpoint,
                    "{}: belongs to another checkpoint or other options; choose an empty folder, "
                    "or remove it",
                    file);
    };
    std::map<std::string, size_t> planned;
    for (size_t i = 0; i < plan.shards.size(); ++i) planned[plan.shards[i].file] = i;
    std::vector<bool> finished(plan.shards.size(), false);
    for (const auto& entry : fs::directory_iterator(out_directory)) {
        const std::string path = entry.path().string();
        const std::string name = entry.path().filename().string();
        if (name.ends_with(".safetensors")) refuse(path);
        if (entry.path().extension() != ".h5") continue;
        if ((name != kMasterFile && !planned.contains(name)) || !is_ours(path, plan.fingerprint))
            refuse(path);
        if (name != kMasterFile) finished[planned[name]] = true;
    }
    return finished;
}

void convert_shard(const HfModel& model, const ConversionPlan& plan, size_t shard_idx,
                   const std::string& out_directory, ThreadPool& pool,
                   const std::function<void(int64_t bytes)>& written) {
    const PlannedShard& shard = plan.shards[shard_idx];
    PartialFile partial(out_directory + "/" + shard.file);
    const std::map<std::string, int64_t> offsets =
        create_structure(shard, plan.fingerprint, partial.path());

    std::map<std::string, std::string> checksums;
    std::map<std::string, BlockSums> block_sums;
    std::mutex mutex;
    {
        OutputFile file(partial.path());
        parallel_tasks(pool, static_cast<int64_t>(shard.tensors.size()), [&](int64_t task) {
            const PlannedTensor& tensor = shard.tensors[static_cast<size_t>(task)];
            const bool has_scales = scale_form(tensor.info.dtype).has_value();
            const bool had_scales = scale_form(model.stored(tensor.name).info.dtype).has_value();
            DatasetWriter weight(file, tensor.info, offsets.at(tensor.name), written);
            DatasetWriter scales(file, has_scales ? scale_info(tensor.info) : tensor.info,
                                 has_scales ? offsets.at(scale_name(tensor.name)) : 0, written);
            naming_tensor(tensor.name, [&] {
                requantise(
                    model.stored(tensor.name),
                    had_scales ? &model.stored(scale_name(tensor.name)) : nullptr, tensor.first_row,
                    tensor.info.shape[0], tensor.info.dtype,
                    {.weight = [&](const void* data, size_t num) { weight.add(data, num); },
                     .scales = [&](const void* data, size_t num) { scales.add(data, num); }});
            });
            const std::lock_guard lock(mutex);
            const auto keep = [&](const std::string& name, DatasetWriter& written_one) {
                checksums[name] = written_one.checksum_text();
                block_sums[name] = written_one.take_block_sums();
            };
            keep(tensor.name, weight);
            if (has_scales) keep(scale_name(tensor.name), scales);
        });
    }
    Hdf5File file = Hdf5File::open_writable(partial.path());
    for (const auto& [name, text] : checksums) file.set_attribute(name, kChecksumAttribute, text);
    file.create_text(kIndexText, to_shard_index(file.datasets()));
    file.create_text(kBlockSumsText, to_text(block_sums));
    file.close();
    partial.complete();
}

void finish_conversion(const HfModel& model, const ConversionPlan& plan,
                       const std::string& out_directory) {
    for (const char* name : kCopiedFiles)
        if (fs::exists(model.directory() + "/" + name))
            copy_durably(model.directory() + "/" + name, out_directory + "/" + name);

    ModelDescription description = model.description();
    description.fp8_weights = description.int4_experts = false;
    for (const PlannedTensor& tensor : plan.tensors) {
        description.fp8_weights |= tensor.info.dtype == DType::fp8_e4m3;
        description.int4_experts |= tensor.info.dtype == DType::int4x2;
    }
    std::string shards;
    for (const PlannedShard& shard : plan.shards)
        shards +=
            fmt::format("{} {}\n", shard.file, fs::file_size(out_directory + "/" + shard.file));

    PartialFile partial(out_directory + "/" + kMasterFile);
    Hdf5File master = Hdf5File::create(partial.path());
    master.set_attribute("", kVersionAttribute, kVersion);
    master.set_attribute("", kFingerprintAttribute, plan.fingerprint);
    master.set_attribute("", kShardsAttribute, shards);
    for (const auto& [name, value] : to_attributes(description))
        master.set_attribute("", name, value);
    master.create_text(kConfigText, model.config_text());
    link_tensors(master, plan);
    master.close();
    partial.complete();
}

std::vector<int> assign_shards(const ConversionPlan& plan, const std::vector<bool>& finished,
                               int num_ranks) {
    std::vector<int> ranks(plan.shards.size(), -1);
    std::vector<size_t> left;
    for (size_t i = 0; i < plan.shards.size(); ++i)
        if (!finished[i]) left.push_back(i);
    std::ranges::stable_sort(left, std::ranges::greater{},
                             [&](size_t i) { return plan.shards[i].size_bytes(); });
    std::vector<int64_t> load(static_cast<size_t>(num_ranks), 0);
    for (const size_t i : left) {
        const auto least = std::ranges::min_element(load);
        ranks[i] = static_cast<int>(least - load.begin());
        *least += plan.shards[i].size_bytes();
    }
    return ranks;
}

ConvertProgress convert_checkpoint(const std::string& hf_directory,
                                   const std::string& out_directory, const ConvertOptions& options,
                                   const ConvertProgressFn& progress, World* world) {
    Team team(world);
    check_input_folder(hf_directory);
    const HfModel model(hf_directory);
    const ConversionPlan plan = plan_conversion(model, options);
    std::optional<FolderLock> lock;
    std::vector<bool> finished;
    if (team.rank() == 0) {
        for (const std::string& warning : model.warnings()) log_warn("{}", warning);
        if (Tokenizer::find(hf_directory).empty())
            log_warn(
                "{}: has no tokenizer.json: text prompts and text output will not work, "
                "prompt_tokens do",
                hf_directory);
        make_output_folder(hf_directory, out_directory);
        lock.emplace(out_directory);
        finished = find_finished_shards(plan, out_directory);
    }
    finished = team.agree(finished);
    const std::vector<int> ranks = assign_shards(plan, finished, team.size());

    const Buffer counter = team.node_counter();
    const ConvertProgressFn silent;
    ProgressMeter meter(*static_cast<int64_t*>(counter.data()),
                        team.rank() == 0 ? progress : silent);
    int64_t kept_shards = 0, kept_bytes = 0, node_bytes = 0;
    for (size_t i = 0; i < plan.shards.size(); ++i) {
        const int64_t bytes = plan.shards[i].size_bytes();
        kept_shards += finished[i] ? 1 : 0;
        kept_bytes += finished[i] ? bytes : 0;
        node_bytes += !finished[i] && team.shares_node_with(ranks[i]) ? bytes : 0;
    }
    meter.expect(kept_shards, kept_bytes, node_bytes);
    ThreadPool pool(std::max(1, options.threads), /*scratch_bytes=*/64);
    for (size_t i = 0; i < plan.shards.size(); ++i)
        if (ranks[i] == team.rank())
            convert_shard(model, plan, i, out_directory, pool,
                          [&](int64_t bytes) { meter.add(bytes); });
    meter.wait();
    team.barrier();
    if (team.rank() == 0) finish_conversion(model, plan, out_directory);
    team.barrier();
    return meter.finish(plan.size_bytes() - kept_bytes);
}

}  // namespace ferry
