// Figures of the checkpoint code. Not a test: what it prints goes to RESULTS.md.
//   checkpoint_bench make HF_DIR GIB        a random bf16 Hugging Face model of that size
//   checkpoint_bench load CHECKPOINT        loading against plain sequential reads, page cache warm
//   checkpoint_bench dummy                  making dummy weights
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint.h"
#include "runtime/dummy_weights.h"
#include "runtime/hf_model.h"
#include "runtime/hf_names.h"
#include "runtime/parallel.h"

namespace {

using namespace ferry;
using Json = nlohmann::ordered_json;

constexpr int64_t kChunkBytes = int64_t{4} << 20;

double seconds_of(const std::function<void()>& fn) {
    const auto begin = std::chrono::steady_clock::now();
    fn();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The best of five, after one that fills the page cache.
double best_rate(int64_t num_bytes, const std::function<void()>& fn) {
    fn();
    double best = 1e30;
    for (int i = 0; i < 5; ++i) best = std::min(best, seconds_of(fn));
    return static_cast<double>(num_bytes) / best / 1e9;
}

Json hf_config(int64_t gib) {  // a layer is 0.19 GiB
    return {{"model_type", "deepseek_v3"},
            {"vocab_size", 32000},
            {"hidden_size", 1024},
            {"intermediate_size", 4096},
            {"moe_intermediate_size", 512},
            {"num_hidden_layers", gib * 5 + 1},
            {"first_k_dense_replace", 1},
            {"num_attention_heads", 8},
            {"q_lora_rank", 384},
            {"kv_lora_rank", 256},
            {"qk_nope_head_dim", 64},
            {"qk_rope_head_dim", 32},
            {"v_head_dim", 64},
            {"n_routed_experts", 64},
            {"n_shared_experts", 1},
            {"num_experts_per_tok", 4},
            {"n_group", 4},
            {"topk_group", 2},
            {"max_position_embeddings", 4096}};
}

struct HfTensor {
    std::string name, source;
    std::vector<Range> box;
    std::vector<int64_t> shape;
    int64_t size_bytes;
};

void make_hf_model(const std::string& directory, int64_t gib) {
    std::filesystem::create_directories(directory);
    const std::string config = hf_config(gib).dump(2);
    std::ofstream(directory + "/config.json") << config;
    DummyWeights weights(parse_hf_config(config, "config.json").model, {.dtype = DType::bf16});

    std::vector<HfTensor> tensors;
    for (const TensorSpec& spec : model_tensors(weights.config())) {
        const HfPlace place = hf_place(spec.name, weights.config().n_layers);
        const int64_t element = size_bytes(weights.find(spec.name)->dtype);
        std::vector<Range> box = whole_box(spec.shape);
        std::vector<int64_t> shape = spec.shape;
        if (spec.is_expert) shape.erase(shape.begin());
        for (int64_t expert = 0; expert < (spec.is_expert ? spec.shape[0] : 1); ++expert) {
            if (spec.is_expert) box[0] = {expert, 1};
            tensors.push_back({spec.is_expert ? place.of_expert(expert) : place.name, spec.name,
                               box, shape, *checked_count(shape) * element});
        }
    }
    Json header, index;
    constexpr int64_t kFileBytes = int64_t{512} << 20;
    for (size_t first = 0, file_idx = 0; first < tensors.size(); ++file_idx) {
        const std::string name = fmt::format("model-{:05}.safetensors", file_idx);
        header = Json::object();
        int64_t bytes = 0;
        size_t last = first;
        for (; last < tensors.size() && bytes < kFileBytes; ++last) {
            const HfTensor& t = tensors[last];
            header[t.name] = {
                {"dtype", weights.find(t.source)->dtype == DType::f32 ? "F32" : "BF16"},
                {"shape", t.shape},
                {"data_offsets", {bytes, bytes + t.size_bytes}}};
            bytes += t.size_bytes;
            index["weight_map"][t.name] = name;
        }
        const std::string text = header.dump();
        const uint64_t length = text.size();
        std::ofstream file(directory + "/" + name, std::ios::binary);
        file.write(reinterpret_cast<const char*>(&length), 8);
        file << text;
        for (std::vector<char> data; first < last; ++first) {
            data.resize(static_cast<size_t>(tensors[first].size_bytes));
            weights.read(tensors[first].source, tensors[first].box, data.data());
            file.write(data.data(), static_cast<std::streamsize>(data.size()));
        }
    }
    std::ofstream(directory + "/model.safetensors.index.json") << index.dump();
}

void bench_load(const std::string& path) {
    Checkpoint checkpoint(path);
    int64_t bytes = 0;
    for (const auto& [name, tensor] : checkpoint.tensors()) bytes += size_bytes(tensor.info);
    fmt::print("{}: {:.2f} GB of tensors; GB/s, page cache warm, best of 5\n", path,
               static_cast<double>(bytes) / 1e9);
    const double opening = seconds_of([&] { Checkpoint again(path); });
    for (int threads : {1, 2}) {
        ThreadPool pool(threads, 64);
        std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(threads),
                                                    std::vector<std::byte>(size_t{256} << 20));
        struct Chunk {
            const InputFile* file;
            int64_t offset, num;
        };
        std::vector<Chunk> chunks;
        int64_t file_bytes = 0;
        for (const auto& shard : checkpoint.shards()) {
            file_bytes += shard->size_bytes();
            for (int64_t at = 0; at < shard->size_bytes(); at += kChunkBytes)
                chunks.push_back(
                    {shard.get(), at, std::min(kChunkBytes, shard->size_bytes() - at)});
        }
        const double plain = best_rate(file_bytes, [&] {
            pool.parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t i, int thread) {
                const Chunk& c = chunks[static_cast<size_t>(i)];
                c.file->read_at(c.offset, static_cast<size_t>(c.num),
                                buffers[static_cast<size_t>(thread)].data());
            });
        });
        std::vector<const std::pair<const std::string, StoredTensor>*> tensors;
        for (const auto& entry : checkpoint.tensors()) tensors.push_back(&entry);
        // Into memory that was touched before, 256 MiB at most at a time.
        const double load = best_rate(bytes, [&] {
            pool.parallel_for(static_cast<int64_t>(tensors.size()), [&](int64_t i, int thread) {
                const auto& [name, tensor] = *tensors[static_cast<size_t>(i)];
                std::vector<Range> box = whole_box(tensor.info.shape);
                const int64_t row_bytes = size_bytes(tensor.info) / tensor.info.shape[0];
                const int64_t rows = std::max<int64_t>(1, (int64_t{256} << 20) / row_bytes);
                for (int64_t row = 0; row < tensor.info.shape[0]; row += rows) {
                    box[0] = {row, std::min(rows, tensor.info.shape[0] - row)};
                    checkpoint.read(name, box, buffers[static_cast<size_t>(thread)].data());
                }
            });
        });
        const double verify = best_rate(bytes, [&] { checkpoint.verify(pool); });
        fmt::print(
            "{} threads: plain reads of 4 MiB {:.2f}; load {:.2f} ({:.0f} %); verify {:.2f}; "
            "verify, then load {:.2f}\n",
            threads, plain, load, 100 * load / plain, verify, 1 / (1 / load + 1 / verify));
    }
    fmt::print("opening and checking names and shapes: {:.1f} ms\n", opening * 1e3);
}

void bench_dummy() {
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
        ModelConfig config = parse_hf_config(hf_config(2).dump(), "config.json").model;
        DummyWeights weights(config, {.dtype = dtype});
        const std::string name = "layers/1/ffn/experts/w1";
        const TensorInfo info = weights.find(name).value();
        std::vector<std::byte> out(static_cast<size_t>(size_bytes(info)));
        const double rate = best_rate(
            size_bytes(info), [&] { weights.read(name, whole_box(info.shape), out.data()); });
        fmt::print("dummy weights {}: {:.2f} GB/s on one thread\n", to_string(dtype), rate);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const std::string command = argc > 1 ? argv[1] : "";
    if (command == "make" && argc == 4) {
        make_hf_model(argv[2], std::atoll(argv[3]));
    } else if (command == "load" && argc == 3) {
        bench_load(argv[2]);
    } else if (command == "dummy") {
        bench_dummy();
    } else {
        fmt::print(stderr, "checkpoint_bench make HF_DIR GIB | load CHECKPOINT | dummy\n");
        return 2;
    }
    return 0;
}
