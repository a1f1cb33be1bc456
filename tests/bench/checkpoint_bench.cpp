// Figures of the checkpoint code. Not a test: what it prints goes to RESULTS.md.
//   checkpoint_bench make HF_DIR GIB        a random bf16 Hugging Face model of that size
//   checkpoint_bench load CHECKPOINT        loading against plain sequential reads, page cache warm
//   checkpoint_bench whole CHECKPOINT THREADS [compressed]
//                                           all that `ferry generate` loads, against plain reads
//                                           into fresh memory and through a small buffer, in turns;
//                                           compressed: as engine.compress_weights holds it
//   checkpoint_bench dummy                  making dummy weights
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/buffer.h"
#include "comm/transport.h"
#include "runtime/checkpoint.h"
#include "runtime/dummy_weights.h"
#include "runtime/hf_model.h"
#include "runtime/hf_names.h"
#include "runtime/parallel.h"
#include "runtime/rank_model.h"

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

// A piece of the checkpoint's bytes, and where in memory it goes.
struct Piece {
    size_t memory_offset;
    std::function<void(std::byte* to)> read;
};

void read_pieces(ThreadPool& pool, const std::vector<Piece>& pieces,
                 const std::function<std::byte*(const Piece&, int thread)>& to) {
    pool.parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t i, int thread) {
        const Piece& piece = pieces[static_cast<size_t>(i)];
        piece.read(to(piece, thread));
    });
}

double piece_rate(ThreadPool& pool, int64_t num_bytes, const std::vector<Piece>& pieces,
                  const std::function<std::byte*(const Piece&, int thread)>& to) {
    return best_rate(num_bytes, [&] { read_pieces(pool, pieces, to); });
}

// The files from end to end, 4 MiB at a time.
std::vector<Piece> file_pieces(const Checkpoint& checkpoint) {
    std::vector<Piece> pieces;
    size_t memory = 0;
    for (const auto& shard : checkpoint.shards())
        for (int64_t at = 0; at < shard->size_bytes(); at += kChunkBytes) {
            const size_t num = static_cast<size_t>(std::min(kChunkBytes, shard->size_bytes() - at));
            pieces.push_back({memory, [file = shard.get(), at, num](std::byte* to) {
                                  file->read_at(at, num, to);
                              }});
            memory += num;
        }
    return pieces;
}

// Every tensor, in rows of 4 MiB together.
std::vector<Piece> tensor_pieces(Checkpoint& checkpoint) {
    std::vector<Piece> pieces;
    size_t memory = 0;
    for (const auto& [name, tensor] : checkpoint.tensors()) {
        const std::vector<int64_t>& shape = tensor.info.shape;
        const int64_t row_bytes = size_bytes(tensor.info) / shape[0];
        const int64_t rows = std::max<int64_t>(1, kChunkBytes / row_bytes);
        for (int64_t row = 0; row < shape[0]; row += rows) {
            std::vector<Range> box = whole_box(shape);
            box[0] = {row, std::min(rows, shape[0] - row)};
            const size_t num = static_cast<size_t>(box[0].num * row_bytes);
            pieces.push_back({memory, [&checkpoint, name = name, box](std::byte* to) {
                                  checkpoint.read(name, box, to);
                              }});
            memory += num;
        }
    }
    return pieces;
}

// Takes that much memory and gives it back, so that the kernel has it at hand for who asks next: on
// a virtual machine that returns memory to its host when it is free for some seconds, getting it
// again costs several times a whole load.
void have_memory_at_hand(size_t num_bytes) {
    const Buffer memory(cpu_device(), num_bytes);
    for (size_t at = 0; at < num_bytes; at += 4096) memory.as<std::byte>()[at] = std::byte{1};
}

void bench_load(const std::string& path) {
    Checkpoint checkpoint(path);
    int64_t bytes = 0, file_bytes = 0;
    for (const auto& [name, tensor] : checkpoint.tensors()) bytes += size_bytes(tensor.info);
    for (const auto& shard : checkpoint.shards()) file_bytes += shard->size_bytes();
    fmt::print("{}: {:.2f} GB of tensors; GB/s, page cache warm, best of 5\n", path,
               static_cast<double>(bytes) / 1e9);
    const double opening = seconds_of([&] { Checkpoint again(path); });
    const std::vector<Piece> files = file_pieces(checkpoint), tensors = tensor_pieces(checkpoint);
    const size_t memory_bytes = static_cast<size_t>(std::max(bytes, file_bytes));
    // What this machine gives fresh memory at, which every load of weights pays once.
    const double fresh = best_rate(bytes, [&] { have_memory_at_hand(static_cast<size_t>(bytes)); });
    const Buffer memory(cpu_device(), memory_bytes);
    std::memset(memory.data(), 1, memory_bytes);
    for (int threads : {1, 2}) {
        ThreadPool pool(threads, 64);
        std::vector<std::vector<std::byte>> small(static_cast<size_t>(threads),
                                                  std::vector<std::byte>(size_t{16} << 20));
        const auto in_cache = [&](const Piece&, int thread) {
            return small[static_cast<size_t>(thread)].data();
        };
        const auto in_memory = [&](const Piece& piece, int) {
            return memory.as<std::byte>() + piece.memory_offset;
        };
        const double plain_cache = piece_rate(pool, file_bytes, files, in_cache);
        const double load_cache = piece_rate(pool, bytes, tensors, in_cache);
        const double plain = piece_rate(pool, file_bytes, files, in_memory);
        const double load = piece_rate(pool, bytes, tensors, in_memory);
        const double verify = best_rate(bytes, [&] { checkpoint.verify(pool); });
        fmt::print(
            "{} threads: into one small buffer: plain reads {:.2f}, load {:.2f} ({:.0f} %); into "
            "memory, touched before: plain reads {:.2f}, load {:.2f} ({:.0f} %); verify {:.2f}\n",
            threads, plain_cache, load_cache, 100 * load_cache / plain_cache, plain, load,
            100 * load / plain, verify);
    }
    fmt::print("fresh memory, first touch by one thread: {:.2f}\n", fresh);
    fmt::print("opening and checking names and shapes: {:.1f} ms\n", opening * 1e3);
}

// Opens a checkpoint and reads and packs all of it for one rank, as `ferry generate` does.
double whole_load_seconds(const std::string& path, int threads, bool verify,
                          const CpuOptions& options) {
    const auto kernels = make_cpu_kernels(threads, options);
    const auto transport = make_self_transport();
    std::unique_ptr<Checkpoint> checkpoint;
    std::unique_ptr<RankModel> model;  // its end is not part of the time
    return seconds_of([&] {
        checkpoint = std::make_unique<Checkpoint>(path);
        const bool on_the_way = verify && checkpoint->has_block_sums();
        if (on_the_way)
            checkpoint->check_reads();
        else if (verify)
            checkpoint->verify(kernels->threads());
        const Numerics numerics{.power_of_two_scales = checkpoint->description().ue8m0_scales};
        model =
            std::make_unique<RankModel>(*checkpoint, *kernels, numerics,
                                        single_rank_fabric(checkpoint->config(), 1, 1), *transport);
        checkpoint->require_sound();
    });
}

// The same files from end to end into memory that was never touched, and is kept.
double fresh_read_seconds(ThreadPool& pool, const std::vector<Piece>& files, size_t num_bytes) {
    Buffer memory;
    return seconds_of([&] {
        memory = Buffer(cpu_device(), num_bytes);
        read_pieces(pool, files, [&](const Piece& piece, int) {
            return memory.as<std::byte>() + piece.memory_offset;
        });
    });
}

struct Times {
    std::vector<double> seconds;
    double best() const { return *std::ranges::min_element(seconds); }
    double median() const {
        std::vector<double> sorted = seconds;
        std::ranges::sort(sorted);
        return sorted[sorted.size() / 2];
    }
};

// In turns, in an order that changes too. Memory may be returned to the host at any time: hence the
// best, of many.
void bench_whole(const std::string& path, int threads, const CpuOptions& options) {
    constexpr int kTurns = 11;
    const Checkpoint checkpoint(path);
    const std::vector<Piece> files = file_pieces(checkpoint);
    size_t bytes = 0;
    for (const auto& shard : checkpoint.shards()) bytes += static_cast<size_t>(shard->size_bytes());
    ThreadPool pool(threads, static_cast<size_t>(kChunkBytes));
    const auto in_cache = [&](const Piece&, int thread) { return pool.scratch(thread); };
    read_pieces(pool, files, in_cache);  // fills the page cache
    fmt::print("{}: {:.2f} GB, {} threads; seconds\n", path, static_cast<double>(bytes) / 1e9,
               threads);
    for (bool verify : {false, true}) {
        Times small, fresh, load;
        for (int turn = 0; turn < kTurns; ++turn) {
            small.seconds.push_back(seconds_of([&] { read_pieces(pool, files, in_cache); }));
            for (int side = 0; side < 2; ++side) {
                have_memory_at_hand(bytes + bytes / 2);  // weights are more than their files
                if (side == turn % 2)
                    fresh.seconds.push_back(fresh_read_seconds(pool, files, bytes));
                else
                    load.seconds.push_back(whole_load_seconds(path, threads, verify, options));
            }
        }
        const auto print = [](const char* what, const Times& times) {
            fmt::print("  {}: best {:.3f}, median {:.3f} of [{:.2f}]\n", what, times.best(),
                       times.median(), fmt::join(times.seconds, ", "));
        };
        fmt::print("checksum {}\n", verify ? "on" : "off");
        print("plain reads through a small buffer", small);
        print("plain reads into fresh memory", fresh);
        print("whole load", load);
        fmt::print(
            "  best: {:.2f} GB/s, {:.0f} % of plain reads into fresh memory, {:.0f} % of plain "
            "reads through a small buffer\n",
            static_cast<double>(bytes) / load.best() / 1e9, 100 * fresh.best() / load.best(),
            100 * small.best() / load.best());
        std::fflush(stdout);
    }
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
    } else if (command == "whole" && (argc == 4 || argc == 5)) {
        bench_whole(argv[2], std::max(1, std::atoi(argv[3])), {.compress_weights = argc == 5});
    } else if (command == "dummy") {
        bench_dummy();
    } else {
        fmt::print(stderr,
                   "checkpoint_bench make HF_DIR GIB | load CHECKPOINT | whole CHECKPOINT THREADS "
                   "[compressed] | dummy\n");
        return 2;
    }
    return 0;
}
