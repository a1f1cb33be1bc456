#include "runtime/checkpoint.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "base/random.h"
#include "runtime/convert.h"
#include "runtime/hdf5_file.h"
#include "runtime/output_file.h"
#include "runtime/shard_index.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_hf_model.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;
using testing::TinyHfModel;

// A converted tiny model to break.
class CheckpointTest : public ::testing::Test {
  protected:
    void SetUp() override {
        TinyHfModel({.dtype = DType::fp8_e4m3}).write(dir_ / "hf");
        convert_checkpoint(dir_ / "hf", out_, {.expert_shards = 2});
    }
    std::string shard(const char* name) const { return out_ + "/" + name; }
    static constexpr const char* kDense = "dense-00000-of-00001.h5";
    static constexpr const char* kExperts = "experts-00001-of-00002.h5";

    // Rewrites a shard without some datasets, or with others in their place.
    void rewrite(const char* name, const std::function<bool(Hdf5Dataset&)>& keep) {
        std::vector<Hdf5Dataset> datasets = Hdf5File::open(shard(name)).datasets();
        const Attributes root = Hdf5File::open(shard(name)).attributes("");
        const auto size = fs::file_size(shard(name));
        Hdf5File file = Hdf5File::create(shard(name));
        for (const auto& [key, value] : root) file.set_attribute("", key, value);
        for (Hdf5Dataset& dataset : datasets) {
            if (!keep(dataset)) continue;
            file.create_dataset(dataset.name, dataset.info);
            for (const auto& [key, value] : dataset.attributes)
                file.set_attribute(dataset.name, key, value);
        }
        file.close();
        if (fs::file_size(shard(name)) <= size) return fs::resize_file(shard(name), size);
        // The master knows the size: only the datasets are to be wrong.
        Hdf5File master = Hdf5File::open_writable(out_ + "/model.h5");
        auto shards = std::get<std::string>(master.attributes("").at("shards"));
        const std::string before = fmt::format("{} {}\n", name, size);
        shards.replace(shards.find(before), before.size(),
                       fmt::format("{} {}\n", name, fs::file_size(shard(name))));
        master.set_attribute("", "shards", shards);
        master.close();
    }
    void refused(std::initializer_list<std::string> parts) const {
        testing::expect_error(
            __FILE__, __LINE__, [&] { Checkpoint{out_}; }, ErrorKind::checkpoint, parts);
    }

    TempDir dir_;
    std::string out_ = dir_ / "out";
};

TEST_F(CheckpointTest, BoxesOfExpertsGoOverShards) {
    Checkpoint checkpoint(out_);
    HfModel model(dir_ / "hf");
    const Range box[] = {{2, 3}, {7, 20}, {130, 30}};  // experts 2 | 3, 4
    std::string got(3 * 20 * 30, '\0'), expected(3 * 20 * 30, '\1');
    checkpoint.read("layers/2/ffn/experts/w1", box, got.data());
    model.read("layers/2/ffn/experts/w1", box, expected.data());
    EXPECT_EQ(got, expected);
    EXPECT_ERROR(checkpoint.read("x", {}, nullptr), ErrorKind::checkpoint, "has no tensor x");
}

TEST_F(CheckpointTest, OpensFolderMasterOrHuggingFaceDirectory) {
    EXPECT_EQ(open_weights(out_)->config().dim, 160);
    EXPECT_EQ(open_weights(out_ + "/model.h5")->config().dim, 160);
    EXPECT_EQ(open_weights(dir_ / "hf")->config().dim, 160);
    EXPECT_ERROR(open_weights(dir_ / "none"), ErrorKind::checkpoint, "no such checkpoint");
    EXPECT_ERROR(open_weights(dir_.path()), ErrorKind::checkpoint, "holds neither");
    EXPECT_ERROR(open_weights(shard(kDense)), ErrorKind::checkpoint, "is not the master file");
}

TEST_F(CheckpointTest, MissingAndMisshapenTensorsAreAllNamed) {
    rewrite(kDense, [](Hdf5Dataset& dataset) {
        if (dataset.name == "layers/2/ffn_norm") dataset.info.shape = {150};
        if (dataset.name == "layers/0/attn/wo") dataset.info.shape = {160, 31};
        if (dataset.name == "layers/0/ffn/w2_scale") dataset.info.shape = {1, 1};
        return dataset.name != "layers/1/attn_norm" && dataset.name != "layers/1/attn/wo_scale";
    });
    refused({"5 problems", "tensor layers/1/attn_norm is missing",
             "tensor layers/1/attn/wo_scale is missing",
             "tensor layers/2/ffn_norm has shape [150], expected [160]",
             "tensor layers/0/attn/wo has shape [160, 31], expected [160, 32]",
             "tensor layers/0/ffn/w2_scale is f32 [1, 1], expected f32 [2, 2]"});
}

TEST_F(CheckpointTest, ExpertsThatAreMissingAreNamed) {
    rewrite(kExperts, [](Hdf5Dataset& dataset) {
        if (dataset.name == "layers/2/ffn/experts/w2") dataset.attributes["first_row"] = int64_t{4};
        return dataset.name != "layers/1/ffn/experts/w3";
    });
    refused({"2 problems", "tensor layers/1/ffn/experts/w3 has shape [3, 40, 160], expected [6",
             "tensor layers/2/ffn/experts/w2 has shape [3, 160, 40], expected [6"});
}

TEST_F(CheckpointTest, WrongAttributesAreNamed) {
    rewrite(kDense, [](Hdf5Dataset& dataset) {
        if (dataset.name == "norm") dataset.attributes.erase("xxh3");
        if (dataset.name == "head") dataset.attributes["xxh3"] = std::string("not hexadecimal!");
        if (dataset.name == "embed") dataset.attributes["first_row"] = int64_t{-1};
        return true;
    });
    refused({"3 problems", "tensor norm has no checksum", "tensor head has no checksum",
             "tensor embed has a wrong first_row"});
}

TEST_F(CheckpointTest, Fp8WithoutItsAttributeIsAnUnknownType) {
    rewrite(kDense, [](Hdf5Dataset& dataset) {
        if (dataset.name == "layers/0/attn/wo") dataset.attributes.erase("dtype");
        return true;
    });
    refused({kDense, "/layers/0/attn/wo", "unknown element type"});
}

TEST_F(CheckpointTest, ShardsListTheirTensors) {
    for (const char* name : {kDense, kExperts}) {
        const Hdf5File file = Hdf5File::open(shard(name));
        const std::vector<Hdf5Dataset> stored = file.datasets();
        const std::string text = file.find_text("index").value();
        EXPECT_EQ(to_shard_index(stored), text);
        const std::vector<Hdf5Dataset> listed = parse_shard_index(text, name);
        EXPECT_EQ(to_shard_index(listed), text);
    }
    const std::string good = "norm bf16 4096 0 0123456789abcdef 160";
    EXPECT_EQ(parse_shard_index(with_checksum(good + "\n"), "x").at(0).info.shape,
              std::vector<int64_t>{160});
    for (const std::string& bad :
         {good + " x", good + " -1", good + " 1 1 1 1", std::string("norm bf16 4096 0 0123"),
          std::string("norm i32 4096 0 0123 160"), std::string("norm bf16 4096 none 0123 160"),
          good + " 999999999999 999999999999", std::string("norm"), std::string()})
        EXPECT_ERROR(parse_shard_index(with_checksum(bad + "\n"), "x.h5"), ErrorKind::checkpoint,
                     "x.h5", "index of tensors cannot be read");
    std::string flipped = with_checksum(good + "\n");
    ++flipped[10];
    for (const std::string& damaged : {flipped, good + "\n", std::string()})
        EXPECT_ERROR(parse_shard_index(damaged, "x.h5"), ErrorKind::checkpoint, "x.h5",
                     "fails its checksum");
}

TEST_F(CheckpointTest, IndexesThatLieAreRefused) {
    const auto rewrite_index = [&](const std::string& from, const std::string& to) {
        rewrite(kDense, [](Hdf5Dataset&) { return true; });
        Hdf5File file = Hdf5File::open_writable(shard(kDense));
        std::string text = to_shard_index(file.datasets());
        text.erase(text.rfind("xxh3 "));
        text.replace(text.find(from), from.size(), to);
        file.create_text("index", with_checksum(text));
        file.close();
        Hdf5File master = Hdf5File::open_writable(out_ + "/model.h5");
        auto shards = std::get<std::string>(master.attributes("").at("shards"));
        const size_t entry = shards.find(kDense);
        shards.replace(entry, shards.find('\n', entry) - entry,
                       fmt::format("{} {}", kDense, fs::file_size(shard(kDense))));
        master.set_attribute("", "shards", shards);
        master.close();
    };
    rewrite_index("norm ", "norms ");
    refused({"is missing"});
    rewrite_index("norm bf16 ", "norm bf16 99");
    refused({"goes beyond the end of the file (truncated?)"});
    rewrite_index("norm bf16 ", "norm i8 ");
    refused({kDense, "its index of tensors cannot be read"});
}

TEST_F(CheckpointTest, BrokenShardsAreNamed) {
    fs::remove(shard(kExperts));
    fs::resize_file(shard(kDense), fs::file_size(shard(kDense)) / 2);
    refused({"2 problems", std::string(kExperts) + ": cannot be opened: No such file",
             std::string(kDense) + ": cannot be opened as HDF5", "truncated"});
}

TEST_F(CheckpointTest, ShardsOfAnotherCheckpointAreNamed) {
    Hdf5File file = Hdf5File::open_writable(shard(kExperts));
    file.set_attribute("", "fingerprint", std::string("0123456789abcdef"));
    file.close();
    refused({kExperts, "belongs to another checkpoint"});
}

TEST_F(CheckpointTest, MastersThatLieAreRefused) {
    const auto with = [&](const std::string& name, const Attribute& value, const char* part) {
        fs::remove_all(out_);
        SetUp();
        Hdf5File file = Hdf5File::open_writable(out_ + "/model.h5");
        file.set_attribute("", name, value);
        file.close();
        refused({"model.h5", part});
    };
    with("ferry_format", int64_t{2}, "has format 2");
    with("shards", std::string("../x.h5 7\n"), "leaves the folder");
    with("shards", std::string("x.h5"), "cannot be read");
    with("shards", std::string(), "cannot be read");
    with("n_layers", int64_t{4}, "tensor layers/3/attn_norm is missing");
    with("n_heads", std::string("many"), "n_heads is not an integer");
    with("fingerprint", int64_t{7}, "not the master file");
}

TEST_F(CheckpointTest, VerifyNamesEveryTensorThatDiffers) {
    ThreadPool pool(2, 64);
    int64_t bytes = 0;
    {
        const Checkpoint checkpoint(out_);
        std::atomic<int64_t> read{0};
        checkpoint.verify(pool, [&](int64_t n) { read += n; });
        for (const auto& piece : checkpoint.pieces()) bytes += piece.size_bytes;
        EXPECT_EQ(read, bytes);
        for (const char* name : {"layers/0/ffn/w1", "layers/2/ffn/experts/w3_scale"})
            for (const auto& piece : checkpoint.pieces())
                if (piece.name == name)
                    OutputFile(piece.part.file->path())
                        .write_at(piece.part.offset_bytes + piece.size_bytes - 1, 1, "\x5a");
    }
    const Checkpoint checkpoint(out_);  // shapes are as they were
    EXPECT_ERROR(checkpoint.verify(pool), ErrorKind::checkpoint,
                 "tensor layers/0/ffn/w1 fails its checksum",
                 "tensor layers/2/ffn/experts/w3_scale fails its checksum", kDense, kExperts);
    int failed_parts = 0;
    for (size_t part = 0; part < 3; ++part) {
        try {
            checkpoint.verify(pool, {}, part, 3);
        } catch (const Error&) {
            ++failed_parts;
        }
    }
    EXPECT_GE(failed_parts, 1);
}

TEST_F(CheckpointTest, ShardsOfBuildsBeforeHaveNoBlockSums) {
    EXPECT_TRUE(Checkpoint(out_).has_block_sums());
    rewrite(kDense, [](Hdf5Dataset&) { return true; });
    EXPECT_FALSE(Checkpoint(out_).has_block_sums());
}

// The demo model, whose embedding has several blocks.
class CheckedReads : public ::testing::Test {
  protected:
    static constexpr const char* kName = "embed";

    void SetUp() override {
        convert_checkpoint(FERRY_SOURCE_DIR "/configs/demo", out_, {.expert_shards = 2});
        Checkpoint checkpoint(out_);
        const TensorInfo info = checkpoint.find(kName).value();
        rows_ = info.shape[0];
        columns_ = info.shape[1];
        block_rows_ = BlockLayout(info).rows_per_block;
        ASSERT_GT(rows_, 3 * block_rows_);
    }
    void damage(const std::string& name, int64_t byte) {
        const Checkpoint checkpoint(out_);
        for (const Checkpoint::Piece& piece : checkpoint.pieces())
            if (piece.name == name)
                OutputFile(piece.part.file->path())
                    .write_at(piece.part.offset_bytes + byte, 1, "\x5a");
    }
    // Reads rows and columns of the embedding, and says whether that showed damage.
    bool shows(Range rows, Range columns) {
        Checkpoint checkpoint(out_);
        checkpoint.check_reads();
        const Range box[] = {rows, columns};
        std::vector<uint16_t> values(static_cast<size_t>(rows.num * columns.num));
        checkpoint.read(kName, box, values.data());
        try {
            checkpoint.require_sound();
        } catch (const Error& error) {
            EXPECT_THAT(error.what(), ::testing::HasSubstr("tensor embed fails its checksum"));
            return true;
        }
        return false;
    }

    TempDir dir_;
    std::string out_ = dir_ / "out";
    int64_t rows_ = 0, columns_ = 0, block_rows_ = 0;
};

TEST_F(CheckedReads, WholeTensorsAndBoxesOfThemAreSound) {
    Checkpoint checkpoint(out_);
    ASSERT_TRUE(checkpoint.has_block_sums());
    checkpoint.check_reads();
    HfModel model(FERRY_SOURCE_DIR "/configs/demo");
    Random random(3);
    for (const auto& [name, tensor] : checkpoint.tensors()) {
        std::vector<std::byte> got(static_cast<size_t>(size_bytes(tensor.info))), expected(got);
        checkpoint.read(name, whole_box(tensor.info.shape), got.data());
        model.read(name, whole_box(tensor.info.shape), expected.data());
        EXPECT_EQ(got, expected) << name;
        for (int i = 0; i < 5; ++i) {
            std::vector<Range> box;
            for (const int64_t extent : tensor.info.shape) {
                const int64_t begin = random.next_u32() % extent;
                box.push_back({begin, 1 + random.next_u32() % (extent - begin)});
            }
            checkpoint.read(name, box, got.data());
        }
    }
    checkpoint.require_sound();
}

TEST_F(CheckedReads, ABlockIsSoundOrNotAsAWhole) {
    damage(kName, (2 * block_rows_ * columns_ + 7) * 2);  // row 2 * block_rows_, column 7
    EXPECT_FALSE(shows({0, 2 * block_rows_}, {0, columns_}));
    EXPECT_FALSE(shows({3 * block_rows_, rows_ - 3 * block_rows_}, {0, columns_}));
    EXPECT_FALSE(shows({5, block_rows_}, {0, 3}));
    EXPECT_TRUE(shows({0, rows_}, {0, columns_}));
    EXPECT_TRUE(shows({2 * block_rows_, block_rows_}, {0, columns_}));
    EXPECT_TRUE(shows({3 * block_rows_ - 1, 1}, {0, columns_}));
    EXPECT_TRUE(shows({2 * block_rows_ - 1, 2}, {9, 4}));
}

TEST_F(CheckedReads, EveryTensorThatDiffersIsNamed) {
    damage("norm", 0);
    damage("layers/1/ffn/experts/w2", 1234);
    Checkpoint checkpoint(out_);
    checkpoint.check_reads();
    std::vector<std::byte> data;
    for (const auto& [name, tensor] : checkpoint.tensors()) {
        data.resize(static_cast<size_t>(size_bytes(tensor.info)));
        checkpoint.read(name, whole_box(tensor.info.shape), data.data());
    }
    EXPECT_ERROR(checkpoint.require_sound(), ErrorKind::checkpoint, "problems",
                 "tensor norm fails its checksum",
                 "tensor layers/1/ffn/experts/w2 fails its checksum");
}

std::string output_of(const std::string& command) {
    std::string text;
    FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
    if (pipe == nullptr) return text;
    char chunk[4096];
    for (size_t n; (n = std::fread(chunk, 1, sizeof chunk, pipe)) > 0;) text.append(chunk, n);
    return ::pclose(pipe) == 0 ? text : "failed: " + text;
}

TEST_F(CheckpointTest, H5dumpSeesEveryTensorThroughTheMaster) {
    if (output_of("h5dump --version").starts_with("failed")) GTEST_SKIP() << "h5dump is missing";
    const std::string text = output_of("cd " + out_ + " && h5dump -H model.h5");
    EXPECT_THAT(text, ::testing::HasSubstr("EXTERNAL_LINK \"embed\""));
    EXPECT_THAT(text,
                ::testing::HasSubstr("DATASPACE  SIMPLE { ( 6, 40, 160 ) / ( 6, 40, 160 ) }"));
    EXPECT_THAT(text, ::testing::HasSubstr("ATTRIBUTE \"kv_lora_rank\""));
    EXPECT_THAT(output_of("cd " + out_ + " && h5dump -H -d /layers/0/attn/wo model.h5"),
                ::testing::HasSubstr("( 160, 32 )"));
}

TEST_F(CheckpointTest, H5pySeesEveryTensorThroughTheMaster) {
    if (output_of("/usr/bin/python3 -c 'import h5py'") != "") GTEST_SKIP() << "h5py is missing";
    const std::string text = output_of(
        "cd " + out_ +
        " && /usr/bin/python3 -c \"\nimport h5py\nf = h5py.File('model.h5')\n"
        "def walk(g, p):\n"
        "  for k in g:\n"
        "    o = g[k]\n"
        "    walk(o, p + k + '/') if isinstance(o, h5py.Group) else print(p + k, list(o.shape))\n"
        "walk(f, '')\nprint('dim', f.attrs['dim'], f.attrs['score_func'])\n\"");
    const Checkpoint checkpoint(out_);
    for (const auto& [name, tensor] : checkpoint.tensors())
        EXPECT_THAT(text, ::testing::HasSubstr(name + " " + describe_shape(tensor.info.shape)));
    EXPECT_THAT(text, ::testing::HasSubstr("dim 160 "));
    EXPECT_THAT(text, ::testing::HasSubstr("sigmoid"));
}

}  // namespace
}  // namespace ferry
