// What the ranks of a node read of a model together: every byte of it once, whatever the layout.
#include <gmock/gmock.h>

#include <atomic>

#include "base/error.h"
#include "base/random.h"
#include "comm/node_memory.h"
#include "comm/transport.h"
#include "runtime/hf_model.h"
#include "runtime/json_text.h"
#include "runtime/opened_model.h"
#include "runtime/placements.h"
#include "runtime/rank_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/mpi_main.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

// A source that counts what is read of it.
class CountingSource final : public WeightSource {
  public:
    explicit CountingSource(std::unique_ptr<WeightSource> source) : source_(std::move(source)) {}
    const ModelConfig& config() const override { return source_->config(); }
    std::optional<TensorInfo> find(const std::string& name) const override {
        return source_->find(name);
    }
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override {
        int64_t elements = 1;
        for (const Range& range : ranges) elements *= range.num;
        num_bytes_ += elements * size_bytes(find(name)->dtype);
        source_->read(name, ranges, dst);
    }
    int64_t num_bytes() const { return num_bytes_; }

  private:
    std::unique_ptr<WeightSource> source_;
    std::atomic<int64_t> num_bytes_{0};
};

int64_t model_bytes(const WeightSource& source) {
    int64_t sum = 0;
    for (const TensorSpec& spec : model_tensors(source.config()))
        for (const std::string& name : {spec.name, spec.name + "_scale"})
            if (const std::optional<TensorInfo> info = source.find(name)) {
                int64_t elements = 1;
                for (const int64_t extent : info->shape) elements *= extent;
                sum += elements * size_bytes(info->dtype);
            }
    return sum;
}

// Copies of some experts, different ones in each layer, so that some are on several ranks and the
// ranks hold different numbers.
std::vector<Placement> with_copies(const ModelConfig& model, int num_ranks, int num_redundant) {
    std::vector<Placement> placements;
    for (int64_t layer = model.n_dense_layers; layer < model.n_layers; ++layer) {
        std::vector<double> loads;
        for (int64_t expert = 0; expert < model.n_routed_experts; ++expert)
            loads.push_back(static_cast<double>((expert * 7 + layer * 5) % 11 * 10 + 1));
        placements.push_back(
            balanced_placement(loads, {.num_ranks = num_ranks, .num_redundant = num_redundant}));
    }
    return placements;
}

void expect_each_byte_read_once(const std::string& family, const LayoutOptions& options,
                                int num_redundant = 0) {
    World& world = test_world();
    CountingSource source(std::make_unique<HfModel>(std::string(FERRY_SOURCE_DIR) +
                                                    "/tests/golden/data/models/" + family));
    const ModelConfig& model = source.config();
    const Layout layout = make_layout(options, world.node_of_rank());
    const int a = layout.attention_rank(world.rank());
    NodeMemory attention(world, a < 0 ? -1 : 0);
    NodeMemory slice(world, a < 0 ? -1 : layout.tp_rank(a));
    NodeMemory experts(world, layout.expert_rank(world.rank()) < 0 ? -1 : 0);
    const auto kernels = make_cpu_kernels(2);
    const auto transport = make_transport("auto", world, nullptr);
    const FabricOptions fabric{.layout = layout,
                               .placements = with_copies(model, layout.num_expert(), num_redundant),
                               .exchange = {.dtype = DType::f32},
                               .max_tokens = 16};
    int64_t told = 0;
    const NodeShares shares{.attention = a < 0 ? nullptr : &attention,
                            .slice = a < 0 ? nullptr : &slice,
                            .experts = &experts,
                            .shared_experts = experts_shared_on_node(
                                layout, fabric.placements, world.node_of_rank(), world.rank())};
    const RankModel rank(
        source, *kernels, {}, fabric, *transport, [&](int64_t bytes) { told = bytes; }, {}, shares);
    EXPECT_EQ(told, source.num_bytes());
    EXPECT_EQ(rank.model().weight_bytes(), source.num_bytes());
    // All ranks of the test are on one node.
    EXPECT_EQ(world.all_sum(source.num_bytes()), model_bytes(source))
        << family << ", " << layout.describe({}, {});
}

TEST(Loading, ANodeReadsEveryByteOnce) {
    const int ranks = test_world().size();
    for (const char* family : {"v2-lite", "v3-bf16", "v3-fp8", "k2-int4", "tied"}) {
        expect_each_byte_read_once(family, {.mode = LayoutMode::colocated, .tp_size = 1});
        expect_each_byte_read_once(family, {.mode = LayoutMode::colocated, .tp_size = ranks});
        expect_each_byte_read_once(family, {.mode = LayoutMode::colocated, .tp_size = 1}, 3);
        if (ranks == 1) continue;
        expect_each_byte_read_once(
            family,
            {.attention_ranks = ranks / 2, .expert_ranks = ranks - ranks / 2, .tp_size = 1});
        if (ranks < 4) continue;
        expect_each_byte_read_once(family, {.mode = LayoutMode::colocated, .tp_size = 2});
        expect_each_byte_read_once(family, {.attention_ranks = 2, .expert_ranks = 2, .tp_size = 2},
                                   5);
    }
}

// A bf16 model one tensor of which has exponents of all kinds.
class NoisySource final : public WeightSource {
  public:
    NoisySource(WeightSource& source, std::string noisy)
        : source_(source), noisy_(std::move(noisy)) {}
    const ModelConfig& config() const override { return source_.config(); }
    std::optional<TensorInfo> find(const std::string& name) const override {
        return source_.find(name);
    }
    void read(const std::string& name, std::span<const Range> ranges, void* dst) override {
        source_.read(name, ranges, dst);
        if (name != noisy_) return;
        Random random(1);
        int64_t elements = 1;
        for (const Range& range : ranges) elements *= range.num;
        for (int64_t i = 0; i < elements; ++i)
            static_cast<uint16_t*>(dst)[i] = static_cast<uint16_t>(random.next_u32() & 0xbfffu);
    }

  private:
    WeightSource& source_;
    std::string noisy_;
};

TEST(Loading, ActivationsAreRoundedUnlessTheModelIsStoredInF32) {
    const auto options = [](const char* model, Config config = {}) {
        return cpu_options(
            config, HfModel(std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/" + model));
    };
    EXPECT_FALSE(options("v3").bf16_activations);
    EXPECT_FALSE(options("v3").compress_weights);
    for (const char* model : {"v3-bf16", "v3-fp8"}) {
        EXPECT_TRUE(options(model).bf16_activations);
        EXPECT_EQ(options(model).compress_weights, uses_bf16_dots());
    }
    using Rounding = Config::NumericsSection::Rounding;
    Config config;
    config.numerics.bf16_activations = Rounding::off;
    EXPECT_FALSE(options("v3-bf16", config).bf16_activations);
    EXPECT_FALSE(options("v3-bf16", config).compress_weights);
    config.engine.compress_weights = Config::Switch::on;
    EXPECT_TRUE(options("v3-bf16", config).compress_weights);
    config.numerics.bf16_activations = Rounding::on;
    config.engine.compress_weights = Config::Switch::off;
    EXPECT_TRUE(options("v3", config).bf16_activations);
    EXPECT_FALSE(options("v3", config).compress_weights);
    EXPECT_FALSE(options("v3", config).amx_sums);
    config.numerics.bf16_activations = Rounding::amx;
    EXPECT_TRUE(options("v3", config).bf16_activations);
    EXPECT_TRUE(options("v3", config).amx_sums);
}

TEST(Loading, RowsOfInt8AreForModelsWithInt4) {
    Config config;
    config.numerics.int8_activations = true;
    const std::string models = std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/";
    EXPECT_TRUE(cpu_options(config, HfModel(models + "k2-int4")).int8_activations);
    EXPECT_FALSE(cpu_options({}, HfModel(models + "k2-int4")).int8_activations);
    EXPECT_ERROR(cpu_options(config, HfModel(models + "v3-bf16")), ErrorKind::usage,
                 "numerics.int8_activations: the model has no int4 weights");
}

// Half the memory where the bits are the same: what expands latents rounds them too.
TEST(Loading, LatentsAreStoredAsTheyAreRead) {
    using Rounding = Config::NumericsSection::Rounding;
    const auto stored = [](const char* model, Rounding rounding = Rounding::automatic) {
        Config config;
        config.model.path = std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/" + model;
        config.numerics.bf16_activations = rounding;
        return open_model(config).numerics.cache_dtype;
    };
    EXPECT_EQ(stored("v3-bf16"), DType::bf16);
    EXPECT_EQ(stored("v3-bf16", Rounding::amx), DType::bf16);
    EXPECT_EQ(stored("v3-bf16", Rounding::off), DType::f32);
    EXPECT_EQ(stored("v3-fp8"), DType::f32);
    EXPECT_EQ(stored("v3"), DType::f32);
    EXPECT_EQ(stored("v3", Rounding::on), DType::f32);
}

// DeepSeek's published tokenizer.json adds nothing: its tokenizer_config.json says what
// Transformers puts around a text. Numbers from Transformers 4.57.
TEST(Loading, TokenizerConfigSaysWhatStandsAroundAText) {
    const testing::TempDir dir;
    const std::string demo = std::string(FERRY_SOURCE_DIR) + "/configs/demo/";
    Json tokenizer = Json::parse(testing::read_file(demo + "tokenizer.json"));
    const Json with_template = tokenizer["post_processor"];
    Json config = Json::parse(testing::read_file(demo + "tokenizer_config.json"));
    Config settings;
    settings.model.path = std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/v3";
    settings.model.tokenizer = dir / "tokenizer.json";
    const auto encode = [&](const char* of_class, const Json& adds_bos, const Json& post) {
        config["tokenizer_class"] = of_class;
        config["add_bos_token"] = adds_bos;
        tokenizer["post_processor"] = post;
        testing::write_file(dir / "tokenizer.json", tokenizer.dump());
        testing::write_file(dir / "tokenizer_config.json", config.dump());
        return open_model(settings).prompt_encoder().encode_text("It is");
    };
    using ::testing::ElementsAre;
    const Json byte_level = {{"type", "ByteLevel"}};
    for (const Json& post : {byte_level, with_template}) {
        EXPECT_THAT(encode("LlamaTokenizerFast", true, post), ElementsAre(0, 1432, 369));
        EXPECT_THAT(encode("LlamaTokenizerFast", nullptr, post), ElementsAre(0, 1432, 369));
        EXPECT_THAT(encode("LlamaTokenizerFast", false, post), ElementsAre(1432, 369));
    }
    EXPECT_THAT(encode("PreTrainedTokenizerFast", true, byte_level), ElementsAre(1432, 369));
    EXPECT_THAT(encode("PreTrainedTokenizerFast", false, with_template), ElementsAre(0, 1432, 369));
    config["bos_token"] = "<nowhere>";
    EXPECT_ERROR(encode("LlamaTokenizerFast", true, byte_level), ErrorKind::checkpoint,
                 "has no token \"<nowhere>\"");
}

// Whoever has no use for messages can go on too.
TEST(Loading, ATemplateThatIsNotSupportedCanBeReplaced) {
    const testing::TempDir dir;
    const std::string demo = std::string(FERRY_SOURCE_DIR) + "/configs/demo/";
    for (const auto& entry : std::filesystem::directory_iterator(demo))
        std::filesystem::create_symlink(entry.path(), dir / entry.path().filename().string());
    testing::write_file(dir / "chat_template.jinja", "{% include 'x' %}");
    Config config;
    config.model.path = dir.path();
    EXPECT_ERROR(open_model(config), ErrorKind::checkpoint,
                 "chat_template.jinja:1: statement 'include' is not supported",
                 "model.chat_template: FILE takes another template");
    config.model.chat_template = dir / "other.jinja";
    testing::write_file(config.model.chat_template, "{{ messages }}");
    EXPECT_TRUE(open_model(config).chat_template);
}

TEST(Loading, WeightsThatDoNotCompressAreNamed) {
    HfModel model(std::string(FERRY_SOURCE_DIR) + "/tests/golden/data/models/v3-bf16");
    const auto kernels = make_cpu_kernels(2, {.compress_weights = true});
    const auto transport = make_self_transport();
    const auto load = [&](const std::string& noisy) {
        NoisySource source(model, noisy);
        const RankModel rank(source, *kernels, {}, single_rank_fabric(model.config(), 1, 1),
                             *transport);
    };
    load("none");
    for (const char* noisy : {"layers/1/attn/wo", "layers/2/ffn/experts/w2"}) {
        try {
            load(noisy);
            FAIL() << noisy << " was packed";
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::checkpoint);
            EXPECT_THAT(error.what(), ::testing::StartsWith(std::string("tensor ") + noisy));
            EXPECT_THAT(error.what(), ::testing::HasSubstr("outputs 0 and on do not compress"));
        }
    }
}

}  // namespace
}  // namespace ferry
