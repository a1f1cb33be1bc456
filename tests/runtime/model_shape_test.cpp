#include "runtime/model_shape.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ferry {
namespace {

ModelShape published(const std::string& name) {
    return load_model_shape(std::string(FERRY_SOURCE_DIR) + "/configs/models/" + name + ".yaml");
}

// Parameters in billions as their makers state them.
struct Size {
    const char* name;
    double all, active, tolerance;
};

TEST(ModelShape, PublishedShapesHaveTheirPublishedSizes) {
    const Size sizes[] = {
        {"deepseek-v2-lite", 15.7, 2.66, 0.05},  // active: 2.4 without the embedding
        {"deepseek-v2", 235.7, 21.4, 0.3},      {"deepseek-v3", 671.0, 37.5, 0.3},
        {"kimi-k2", 1026.0, 32.9, 1.0},         {"kimi-k2-thinking", 1026.0, 32.9, 1.0},
    };
    for (const Size& size : sizes) {
        const ModelShape shape = published(size.name);
        EXPECT_EQ(shape.name, size.name);
        EXPECT_NEAR(shape.config.num_parameters() * 1e-9, size.all, size.tolerance) << size.name;
        EXPECT_NEAR(shape.config.num_active_parameters() * 1e-9, size.active, size.tolerance)
            << size.name;
    }
}

TEST(ModelShape, DeepSeekV3FieldByField) {
    const ModelShape shape = published("deepseek-v3");
    const ModelConfig& c = shape.config;
    EXPECT_EQ(shape.weights, DType::fp8_e4m3);
    EXPECT_EQ(c.vocab_size, 129280);
    EXPECT_EQ(c.n_dense_layers, 3);
    EXPECT_EQ(c.qk_head_dim(), 192);
    EXPECT_EQ(c.latent_dim(), 576);
    EXPECT_EQ(c.score_func, ScoreFunc::sigmoid);
    EXPECT_TRUE(c.has_gate_bias);
    EXPECT_TRUE(c.norm_topk_prob);
    EXPECT_EQ(c.routed_scaling_factor, 2.5);
    ASSERT_TRUE(c.yarn.has_value());
    EXPECT_EQ(c.yarn->factor, 40);
    EXPECT_EQ(c.norm_eps, 1e-6);
    EXPECT_FALSE(published("bench-8").config.yarn.has_value());
    EXPECT_EQ(published("deepseek-v2-lite").config.q_lora_rank, 0);
}

TEST(ModelShape, Bench8IsTheReferenceShape) {
    const ModelConfig c = published("bench-8").config;
    // What a token reads: of the embedding one row only.
    const int64_t embedding = c.vocab_size * c.dim;
    EXPECT_NEAR(static_cast<double>(c.num_active_parameters() - embedding) * 1e-6, 709, 1);
    EXPECT_EQ(c.n_layers, 8);
    EXPECT_EQ(c.n_expert_groups, 8);
    EXPECT_EQ(c.n_limited_groups, 4);
}

TEST(ModelShape, ErrorsAreOfTheCheckpoint) {
    const auto kind = ErrorKind::checkpoint;
    EXPECT_ERROR(load_model_shape("/nowhere/a.yaml"), kind, "/nowhere/a.yaml");
    EXPECT_ERROR(parse_model_shape("dims: 4\n", "a.yaml"), kind,
                 "a.yaml:1: dims: no such key; did you mean dim?");
    EXPECT_ERROR(parse_model_shape("yarn: {fator: 4}\n", "a.yaml"), kind, "yarn.factor?");
    EXPECT_ERROR(parse_model_shape("dim: 4\n", "a.yaml"), kind, "a.yaml: vocab_size");
}

}  // namespace
}  // namespace ferry
