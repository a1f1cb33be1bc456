#include "runtime/convert.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "runtime/checkpoint.h"
#include "runtime/hdf5_file.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_hf_model.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;
using testing::read_whole;
using testing::TempDir;
using testing::TinyHfModel;
using testing::TinyHfOptions;

// Every tensor of `from`, scales and prediction modules too, is in `to` with the same bytes.
void expect_same_tensors(HfModel& from, Checkpoint& to) {
    size_t num = 0;
    for (const TensorSpec& spec : from.specs())
        for (const std::string& name : {spec.name, spec.name + "_scale"}) {
            if (!from.find(name)) continue;
            ASSERT_TRUE(to.find(name)) << name;
            EXPECT_EQ(to.find(name)->dtype, from.find(name)->dtype) << name;
            EXPECT_EQ(to.find(name)->shape, from.find(name)->shape) << name;
            EXPECT_EQ(read_whole(to, name), read_whole(from, name)) << name;
            ++num;
        }
    EXPECT_EQ(to.tensors().size(), num);
}

std::vector<std::string> files_in(const std::string& directory) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory))
        names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
}

// Small shards, so that there are several of each kind.
ConvertOptions small_shards() {
    return {.dtype = {}, .expert_shards = 4, .max_shard_bytes = 60'000, .threads = 2};
}

struct Case {
    const char* name;
    TinyHfOptions options;
};
class RoundTrip : public ::testing::TestWithParam<Case> {};

TEST_P(RoundTrip, KeepsEveryByte) {
    const TempDir dir;
    TinyHfModel(GetParam().options).write(dir / "hf");
    for (const ConvertOptions& options : {ConvertOptions{}, small_shards()}) {
        const std::string out = dir / ("out" + std::to_string(options.expert_shards));
        const ConvertProgress done = convert_checkpoint(dir / "hf", out, options);
        EXPECT_EQ(done.done_bytes, done.total_bytes);
        HfModel from(dir / "hf");
        Checkpoint to(out);
        expect_same_tensors(from, to);
        ThreadPool pool(2, 64);
        to.verify(pool);
        EXPECT_EQ(to.config_text(), from.config_text());
        EXPECT_EQ(to_attributes(to.description()), to_attributes(from.description()));
        EXPECT_EQ(testing::read_file(out + "/tokenizer.json"),
                  testing::read_file(dir / "hf/tokenizer.json"));
        for (const std::string& file : files_in(out)) EXPECT_FALSE(file.ends_with(".partial"));
    }
    EXPECT_EQ(Checkpoint(dir / "out4/model.h5").shards().size() > 5, true);
}

INSTANTIATE_TEST_SUITE_P(
    Convert, RoundTrip,
    ::testing::Values(Case{"f32", {.dtype = DType::f32}}, Case{"bf16", {.dtype = DType::bf16}},
                      Case{"fp8", {.dtype = DType::fp8_e4m3, .mtp = true}},
                      Case{"int4", {.dtype = DType::int4x2, .mtp = true}},
                      Case{"fused", {.dtype = DType::bf16, .fused_experts = true}},
                      Case{"tied", {.dtype = DType::bf16, .tied = true, .num_files = 1}}),
    [](const auto& param) { return param.param.name; });

TEST(Convert, DTypes) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    convert_checkpoint(dir / "hf", dir / "f32", {.dtype = DType::f32});
    convert_checkpoint(dir / "hf", dir / "fp8", {.dtype = DType::fp8_e4m3});
    const Checkpoint f32(dir / "f32"), fp8(dir / "fp8");
    EXPECT_EQ(f32.find("layers/1/ffn/experts/w1")->dtype, DType::f32);
    EXPECT_EQ(f32.find("embed")->dtype, DType::f32);
    EXPECT_EQ(f32.find("norm")->dtype, DType::bf16);
    EXPECT_EQ(fp8.find("layers/1/ffn/experts/w1")->dtype, DType::fp8_e4m3);
    EXPECT_EQ(fp8.find("layers/1/ffn/experts/w1_scale")->shape, (std::vector<int64_t>{6, 1, 2}));
    EXPECT_EQ(fp8.find("layers/0/attn/wo")->dtype, DType::fp8_e4m3);
    EXPECT_EQ(fp8.find("head")->dtype, DType::bf16);
    EXPECT_EQ(fp8.find("embed")->dtype, DType::bf16);
    EXPECT_TRUE(fp8.description().fp8_weights);
    EXPECT_FALSE(f32.description().fp8_weights);
}

// Of the routed experts, whose rows must be multiples of 32.
TEST(Convert, Int4) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::int4x2}).write(dir / "hf");
    EXPECT_EQ(HfModel(dir / "hf").warnings(), std::vector<std::string>());
    convert_checkpoint(dir / "hf", dir / "f32", {.dtype = DType::f32});
    const Checkpoint f32(dir / "f32");
    EXPECT_EQ(f32.find("layers/1/ffn/experts/w2")->dtype, DType::f32);
    EXPECT_EQ(f32.find("layers/1/ffn/experts/w2")->shape, (std::vector<int64_t>{6, 160, 64}));
    EXPECT_FALSE(f32.find("layers/1/ffn/experts/w2_scale"));
    EXPECT_FALSE(f32.description().int4_experts);
    // bf16 experts of the same shape, and back.
    convert_checkpoint(dir / "hf", dir / "kept", {.dtype = DType::int4x2});
    const Checkpoint kept(dir / "kept");
    EXPECT_EQ(kept.find("layers/1/ffn/experts/w2")->dtype, DType::int4x2);
    EXPECT_EQ(kept.find("layers/1/ffn/experts/w2")->shape, (std::vector<int64_t>{6, 160, 32}));
    EXPECT_EQ(kept.find("layers/1/ffn/experts/w2_scale")->dtype, DType::bf16);
    EXPECT_EQ(kept.find("layers/1/ffn/experts/w2_scale")->shape, (std::vector<int64_t>{6, 160, 2}));
    EXPECT_EQ(kept.find("layers/1/attn/wo")->dtype, DType::bf16);
    EXPECT_TRUE(kept.description().int4_experts);
    // Groups of 160 become groups of 32.
    TinyHfModel larger({.dtype = DType::int4x2});
    for (int expert = 0; expert < 6; ++expert)
        larger.set_groups(fmt::format("model.layers.2.mlp.experts.{}.up_proj.weight", expert), 1);
    larger.write(dir / "larger");
    convert_checkpoint(dir / "larger", dir / "cut", {});
    Checkpoint cut(dir / "cut");
    HfModel source(dir / "larger");
    const std::string w3_scale = "layers/2/ffn/experts/w3_scale";
    EXPECT_EQ(cut.find(w3_scale)->shape, (std::vector<int64_t>{6, 64, 5}));
    EXPECT_EQ(testing::read_whole(cut, w3_scale), testing::read_whole(source, w3_scale));

    TinyHfModel({.dtype = DType::bf16, .moe_inter = 96}).write(dir / "bf16");
    convert_checkpoint(dir / "bf16", dir / "int4", {.dtype = DType::int4x2});
    Checkpoint int4(dir / "int4");
    EXPECT_EQ(int4.find("layers/2/ffn/experts/w2")->dtype, DType::int4x2);
    EXPECT_EQ(int4.find("layers/2/ffn/experts/w1")->shape, (std::vector<int64_t>{6, 96, 80}));
    EXPECT_EQ(int4.find("layers/2/ffn/shared/w1")->dtype, DType::bf16);
    EXPECT_EQ(int4.find("embed")->dtype, DType::bf16);
    ThreadPool pool(2, 64);
    int4.verify(pool);

    TinyHfModel({.dtype = DType::bf16}).write(dir / "odd");
    const ConvertOptions options{.dtype = DType::int4x2};
    EXPECT_ERROR(convert_checkpoint(dir / "odd", dir / "out", options), ErrorKind::usage,
                 "layers/1/ffn/experts/w2 [6, 160, 40] cannot be int4x2: its rows are no multiple "
                 "of 32");
}

// Of all layers, but those whose rows are no multiple of 32; and of head.
TEST(Convert, Int4OfAllLayers) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16, .mtp = true, .moe_inter = 96}).write(dir / "hf");
    ThreadPool pool(2, 64);
    for (const Int4Weights weights : {Int4Weights::layers, Int4Weights::all}) {
        const std::string out = dir / (weights == Int4Weights::all ? "all" : "layers");
        convert_checkpoint(dir / "hf", out, {.dtype = DType::int4x2, .int4 = weights});
        Checkpoint int4(out);
        for (const char* name : {"layers/2/ffn/experts/w2", "layers/2/ffn/shared/w2",
                                 "layers/0/ffn/w1", "layers/0/attn/wq_a", "layers/0/attn/wkv_b",
                                 "layers/1/attn/wo", "mtp/0/ffn/shared/w1"})
            EXPECT_EQ(int4.find(name)->dtype, DType::int4x2) << name;
        EXPECT_EQ(int4.find("layers/0/ffn/w1")->shape, (std::vector<int64_t>{136, 80}));
        EXPECT_EQ(int4.find("layers/0/ffn/w1_scale")->shape, (std::vector<int64_t>{136, 5}));
        for (const char* name :
             {"layers/0/ffn/w2", "layers/0/attn/wq_b", "embed", "norm", "layers/1/ffn/gate/weight"})
            EXPECT_EQ(int4.find(name)->dtype, DType::bf16) << name;
        const DType of_head = weights == Int4Weights::all ? DType::int4x2 : DType::bf16;
        for (const char* name : {"head", "mtp/0/eh_proj"})
            EXPECT_EQ(int4.find(name)->dtype, of_head) << name;
        int4.verify(pool);
    }
}

TEST(Convert, WarnsOfWhatIsLeftOut) {
    const TempDir dir;
    TinyHfModel tiny({.dtype = DType::bf16});
    const auto log_of_conversion = [&] {
        ::testing::internal::CaptureStderr();
        convert_checkpoint(dir / "hf", dir / "out", {});
        fs::remove_all(dir / "out");
        return ::testing::internal::GetCapturedStderr();
    };
    tiny.write(dir / "hf");
    EXPECT_EQ(log_of_conversion(), "");
    tiny.tensors["model.layers.1.self_attn.o_proj.bias"] = tiny.tensors.at("model.norm.weight");
    tiny.write(dir / "hf");
    fs::remove(dir / "hf/tokenizer.json");
    const std::string log = log_of_conversion();
    EXPECT_NE(log.find("model.safetensors.index.json: 1 tensor is not used: "
                       "\"model.layers.1.self_attn.o_proj.bias\"\n"),
              std::string::npos)
        << log;
    EXPECT_NE(log.find("hf: has no tokenizer.json: text prompts"), std::string::npos) << log;
    EXPECT_EQ(std::ranges::count(log, '\n'), 2) << log;
}

TEST(Convert, MasterShowsWholeExperts) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    convert_checkpoint(dir / "hf", dir / "out", small_shards());
    Checkpoint checkpoint(dir / "out");
    const Hdf5File master = Hdf5File::open(dir / "out/model.h5");
    for (const char* name : {"layers/1/ffn/experts/w2", "layers/0/attn/wo", "norm"}) {
        const TensorInfo info = checkpoint.find(name).value();
        std::string bytes(static_cast<size_t>(size_bytes(info)), '\0');
        master.read(name, whole_box(info.shape), bytes.data());
        EXPECT_EQ(bytes, read_whole(checkpoint, name)) << name;
    }
}

TEST(Convert, InterruptedConversionGoesOn) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    struct Interrupt {};
    const ConvertOptions options = small_shards();
    const HfModel model(dir / "hf");
    const ConversionPlan plan = plan_conversion(model, options);
    ThreadPool pool(2, 64);
    fs::create_directory(dir / "out");
    convert_shard(model, plan, 1, dir / "out", pool, [](int64_t) {});
    EXPECT_THROW(
        convert_shard(model, plan, 2, dir / "out", pool, [](int64_t) { throw Interrupt(); }),
        Interrupt);
    EXPECT_EQ(files_in(dir / "out"), std::vector<std::string>{plan.shards[1].file});
    EXPECT_ERROR(Checkpoint{dir / "out"}, ErrorKind::checkpoint, "model.h5");
    testing::write_file(dir / "out" + ("/" + plan.shards[2].file + ".partial"), "left by a crash");

    const auto before = fs::last_write_time(dir / ("out/" + plan.shards[1].file));
    const ConvertProgress done = convert_checkpoint(dir / "hf", dir / "out", options);
    EXPECT_EQ(done.kept_shards, 1);
    EXPECT_EQ(fs::last_write_time(dir / ("out/" + plan.shards[1].file)), before);
    HfModel from(dir / "hf");
    Checkpoint to(dir / "out");
    expect_same_tensors(from, to);
    to.verify(pool);
    for (const std::string& file : files_in(dir / "out")) EXPECT_FALSE(file.ends_with(".partial"));

    // Once more: nothing is left to do.
    const ConvertProgress again = convert_checkpoint(dir / "hf", dir / "out", options);
    EXPECT_EQ(again.kept_shards, static_cast<int64_t>(plan.shards.size()));
    EXPECT_EQ(again.done_bytes, again.total_bytes);
}

TEST(Convert, RefusesAFolderThatHoldsSomethingElse) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    convert_checkpoint(dir / "hf", dir / "out", {});
    const auto refused = [&](const ConvertOptions& options, const std::string& part) {
        EXPECT_ERROR(convert_checkpoint(dir / "hf", dir / "out", options), ErrorKind::checkpoint,
                     part, "belongs to another checkpoint");
    };
    refused({.dtype = DType::f32}, ".h5");
    refused({.expert_shards = 2}, ".h5");
    Checkpoint{dir / "out"};  // still whole

    TinyHfModel({.dtype = DType::bf16, .experts = 4}).write(dir / "hf");  // other weights
    refused({}, ".h5");
    EXPECT_ERROR(convert_checkpoint(dir / "hf", dir / "hf", {}), ErrorKind::usage,
                 "is the input folder");
    EXPECT_ERROR(convert_checkpoint(dir / "out", dir / "again", {}), ErrorKind::usage,
                 "/out: is a converted checkpoint");
    fs::create_directory(dir / "other");
    TinyHfModel({.dtype = DType::bf16}).write(dir / "other");
    EXPECT_ERROR(convert_checkpoint(dir / "hf", dir / "other", {}), ErrorKind::checkpoint,
                 ".safetensors");
    EXPECT_ERROR(convert_checkpoint(dir / "hf", dir / "new", {.expert_shards = 5}),
                 ErrorKind::usage, "5 expert shards", "4 routed experts");
}

TEST(Convert, InputThatShrinksInMidRunIsNamed) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    const HfModel model(dir / "hf");
    fs::resize_file(dir / "hf/model-1.safetensors", 5000);
    const ConversionPlan plan = plan_conversion(model, {});
    ThreadPool pool(2, 64);
    fs::create_directory(dir / "out");
    EXPECT_ERROR(for (size_t i = 0; i < plan.shards.size(); ++i)
                     convert_shard(model, plan, i, dir / "out", pool, [](int64_t) {}),
                 ErrorKind::checkpoint, "model-1.safetensors", "truncated", "(tensor ");
    EXPECT_FALSE(fs::exists(dir / "out/model.h5"));
}

// A file system of 1 MiB.
class SmallDisk {
  public:
    explicit SmallDisk(std::string path) : path_(std::move(path)) {
        fs::create_directory(path_);
        mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=1m") == 0;
    }
    ~SmallDisk() {
        if (mounted_) ::umount(path_.c_str());
    }
    bool mounted() const { return mounted_; }

  private:
    std::string path_;
    bool mounted_;
};

TEST(Convert, DiskFull) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::f32, .experts = 12}).write(dir / "hf");
    const SmallDisk disk(dir / "disk");
    if (!disk.mounted()) GTEST_SKIP() << "needs the right to mount a tmpfs";
    EXPECT_ERROR(convert_checkpoint(dir / "hf", dir / "disk/out", {}), ErrorKind::checkpoint,
                 "disk/out/", ".h5.partial", "disk full", "(tensor layers/");
    for (const std::string& file : files_in(dir / "disk/out")) EXPECT_FALSE(file == "model.h5");
    for (const std::string& file : files_in(dir / "disk/out"))
        EXPECT_FALSE(file.ends_with(".partial")) << file;
    EXPECT_ERROR(Checkpoint{dir / "disk/out"}, ErrorKind::checkpoint, "model.h5");
}

TEST(ConvertPlan, ShardsByRangeOfExperts) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    const HfModel model(dir / "hf");
    const ConversionPlan plan = plan_conversion(model, {.expert_shards = 4});
    ASSERT_EQ(plan.shards.size(), 5u);
    EXPECT_EQ(plan.shards[0].file, "dense-00000-of-00001.h5");
    EXPECT_EQ(plan.shards[4].file, "experts-00003-of-00004.h5");
    int64_t next = 0;
    for (size_t i = 1; i < 5; ++i) {  // 6 experts over 4 shards: 1, 2, 1, 2
        EXPECT_EQ(plan.shards[i].tensors[0].first_row, next);
        EXPECT_EQ(plan.shards[i].tensors[0].info.shape[0], i % 2 == 1 ? 1 : 2);
        next += plan.shards[i].tensors[0].info.shape[0];
    }
    EXPECT_EQ(next, 6);
    int64_t bytes = 0;
    for (const PlannedShard& shard : plan.shards) bytes += shard.size_bytes();
    EXPECT_EQ(bytes, plan.size_bytes());
    EXPECT_EQ(plan.fingerprint, plan_conversion(model, {.expert_shards = 4}).fingerprint);
    EXPECT_NE(plan.fingerprint, plan_conversion(model, {.expert_shards = 3}).fingerprint);
}

}  // namespace
}  // namespace ferry
