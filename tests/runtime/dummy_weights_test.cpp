#include "runtime/dummy_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "runtime/stored_tensor.h"
#include "tests/support/expect_error.h"

namespace ferry {
namespace {

ModelConfig small_config() {
    return {.vocab_size = 100,
            .dim = 192,
            .inter_dim = 300,
            .moe_inter_dim = 70,
            .n_layers = 4,
            .n_dense_layers = 1,
            .n_heads = 2,
            .q_lora_rank = 24,
            .kv_lora_rank = 32,
            .qk_nope_head_dim = 16,
            .qk_rope_head_dim = 8,
            .v_head_dim = 16,
            .yarn = {},
            .n_routed_experts = 5,
            .n_shared_experts = 1,
            .n_activated_experts = 2,
            .has_gate_bias = true};
}

std::string read(DummyWeights& weights, const std::string& name, std::vector<Range> box = {}) {
    const TensorInfo info = weights.find(name).value();
    if (box.empty()) box = whole_box(info.shape);
    int64_t count = 1;
    for (const Range& range : box) count *= range.num;
    std::string bytes(static_cast<size_t>(count * size_bytes(info.dtype)), '\0');
    weights.read(name, box, bytes.data());
    return bytes;
}

std::vector<float> read_f32(DummyWeights& weights, const std::string& name) {
    const std::string bytes = read(weights, name);
    const DType dtype = weights.find(name)->dtype;
    const auto element = static_cast<size_t>(size_bytes(dtype));
    std::vector<float> values(bytes.size() / element);
    for (size_t i = 0; i < values.size(); ++i) {
        uint32_t bits = 0;
        std::memcpy(&bits, bytes.data() + i * element, element);
        values[i] = dtype == DType::f32    ? std::bit_cast<float>(bits)
                    : dtype == DType::bf16 ? bf16_to_f32(static_cast<uint16_t>(bits))
                                           : fp8_e4m3_to_f32(static_cast<uint8_t>(bits));
    }
    return values;
}

TEST(DummyWeights, EveryTensorOfTheModelIsThere) {
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
        DummyWeights weights(small_config(), {.dtype = dtype});
        for (const TensorSpec& spec : model_tensors(small_config())) {
            ASSERT_TRUE(weights.find(spec.name)) << spec.name;
            EXPECT_EQ(weights.find(spec.name)->shape, spec.shape);
        }
        EXPECT_EQ(weights.find("layers/1/ffn/experts/w1")->dtype, dtype);
        EXPECT_EQ(weights.find("layers/1/ffn/experts/w1_scale").has_value(),
                  dtype == DType::fp8_e4m3);
        EXPECT_EQ(weights.find("embed")->dtype, dtype == DType::f32 ? DType::f32 : DType::bf16);
        EXPECT_EQ(weights.find("layers/1/ffn/gate/bias")->dtype, DType::f32);
        EXPECT_FALSE(weights.find("x"));
        EXPECT_ERROR(weights.read("x", {}, nullptr), ErrorKind::checkpoint, "no tensor x");
    }
}

TEST(DummyWeights, Int4IsOfTheRoutedExperts) {
    ModelConfig config = small_config();
    EXPECT_ERROR((DummyWeights(config, {.dtype = DType::int4x2})), ErrorKind::usage,
                 "layers/1/ffn/experts/w2 [5, 192, 70] cannot be int4x2");
    config.moe_inter_dim = 96;
    DummyWeights weights(config, {.dtype = DType::int4x2});
    EXPECT_EQ(weights.find("layers/0/ffn/w1")->dtype, DType::bf16);
    EXPECT_EQ(weights.find("layers/1/ffn/experts/w2")->dtype, DType::int4x2);
    EXPECT_EQ(weights.find("layers/1/ffn/experts/w2")->shape, (std::vector<int64_t>{5, 192, 48}));
    EXPECT_EQ(weights.find("layers/1/ffn/experts/w2_scale")->dtype, DType::bf16);
    EXPECT_EQ(weights.find("layers/1/ffn/experts/w2_scale")->shape,
              (std::vector<int64_t>{5, 192, 3}));
    uint16_t scale;
    const std::string scales = read(weights, "layers/1/ffn/experts/w2_scale");
    std::memcpy(&scale, scales.data(), 2);
    double sum = 0, squares = 0;
    const std::string codes = read(weights, "layers/1/ffn/experts/w2");
    for (const char code : codes)
        for (const int half : {0, 1}) {
            const double value = int4_value(static_cast<uint8_t>(code), half) *
                                 static_cast<double>(bf16_to_f32(scale));
            sum += value;
            squares += value * value;
        }
    const auto num = static_cast<double>(2 * codes.size());
    EXPECT_NEAR(std::sqrt(squares / num * 96), 1, 0.02);
    EXPECT_NEAR(sum / num * std::sqrt(96), 0, 0.02);
}

TEST(DummyWeights, Int4OfAllLayers) {
    ModelConfig config = small_config();
    config.moe_inter_dim = 96;
    DummyWeights weights(config, {.dtype = DType::int4x2, .int4 = Int4Weights::layers});
    EXPECT_EQ(weights.find("layers/0/ffn/w1")->dtype, DType::int4x2);
    EXPECT_EQ(weights.find("layers/0/ffn/w1")->shape, (std::vector<int64_t>{300, 96}));
    EXPECT_EQ(weights.find("layers/0/ffn/w1_scale")->shape, (std::vector<int64_t>{300, 6}));
    EXPECT_EQ(weights.find("layers/0/ffn/w2")->dtype, DType::bf16);  // rows of 300
    EXPECT_EQ(weights.find("layers/0/attn/wkv_b")->dtype, DType::int4x2);
    EXPECT_EQ(weights.find("head")->dtype, DType::bf16);
}

TEST(DummyWeights, ABoxIsThatPartOfTheWhole) {
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
        DummyWeights weights(small_config(), {.dtype = dtype});
        const std::string name = "layers/2/ffn/experts/w2";  // [5, 192, 70]
        const std::string whole = read(weights, name);
        const auto element = static_cast<size_t>(size_bytes(dtype));
        for (const std::vector<Range>& box :
             std::vector<std::vector<Range>>{{{3, 1}, {17, 1}, {0, 70}},
                                             {{1, 2}, {0, 192}, {0, 70}},
                                             {{0, 5}, {3, 4}, {5, 13}},
                                             {{4, 1}, {191, 1}, {69, 1}},
                                             {{2, 1}, {7, 3}, {1, 2}}}) {
            const std::string part = read(weights, name, box);
            size_t at = 0;
            for (int64_t e = box[0].begin; e < box[0].begin + box[0].num; ++e)
                for (int64_t r = box[1].begin; r < box[1].begin + box[1].num; ++r) {
                    const auto first = static_cast<size_t>((e * 192 + r) * 70 + box[2].begin);
                    const size_t num = static_cast<size_t>(box[2].num) * element;
                    ASSERT_EQ(part.substr(at, num), whole.substr(first * element, num));
                    at += num;
                }
        }
    }
}

TEST(DummyWeights, SeedAndNameDecide) {
    DummyWeights a(small_config(), {.seed = 1}), b(small_config(), {.seed = 1}),
        c(small_config(), {.seed = 2});
    const std::string name = "layers/2/ffn/shared/w1";
    EXPECT_EQ(read(a, name), read(b, name));
    EXPECT_NE(read(a, name), read(c, name));
    EXPECT_NE(read(a, name), read(a, "layers/2/ffn/shared/w3"));
}

TEST(DummyWeights, MagnitudesFollowTheInnerDimension) {
    for (DType dtype : {DType::f32, DType::bf16, DType::fp8_e4m3}) {
        SCOPED_TRACE(to_string(dtype));
        DummyWeights weights(small_config(), {.dtype = dtype});
        for (const char* name : {"layers/1/ffn/experts/w2", "layers/1/ffn/experts/w1"}) {
            const std::vector<float> values = read_f32(weights, name);
            const std::string scales =
                dtype == DType::fp8_e4m3 ? read(weights, name + std::string("_scale")) : "";
            float scale = 1;
            if (!scales.empty()) std::memcpy(&scale, scales.data(), 4);
            double sum = 0, squares = 0;
            for (float value : values) {
                sum += value * scale;
                squares += double{value} * scale * value * scale;
            }
            const auto n = static_cast<double>(values.size());
            const auto in = static_cast<double>(weights.find(name)->shape.back());
            const double expected = 1 / std::sqrt(in), rms = std::sqrt(squares / n);
            EXPECT_GT(rms, expected * (dtype == DType::fp8_e4m3 ? 0.99 : 0.70));
            EXPECT_LT(rms, expected * (dtype == DType::fp8_e4m3 ? 1.01 : 1.42));
            EXPECT_LT(std::fabs(sum / n), 5 * expected / std::sqrt(n));
        }
        for (float value : read_f32(weights, "layers/0/attn/kv_norm")) EXPECT_EQ(value, 1);
        for (float value : read_f32(weights, "layers/1/ffn/gate/bias")) EXPECT_EQ(value, 0);
    }
}

TEST(DummyWeights, FewerLayers) {
    DummyWeights weights(small_config(), {.n_layers = 2});
    EXPECT_EQ(weights.config().n_layers, 2);
    EXPECT_EQ(weights.config().n_dense_layers, 1);
    EXPECT_TRUE(weights.find("layers/1/ffn/experts/w1"));
    EXPECT_FALSE(weights.find("layers/2/attn_norm"));
    EXPECT_ERROR(DummyWeights(small_config(), {.n_layers = 5}), ErrorKind::usage, "5 layers",
                 "has 4");
    EXPECT_ERROR(DummyWeights(small_config(), {.dtype = DType::i32}), ErrorKind::usage, "i32");
}

}  // namespace
}  // namespace ferry
