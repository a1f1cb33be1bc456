#include "runtime/model_description.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace ferry {
namespace {

ModelDescription small_model() {
    ModelDescription d;
    d.model = {.vocab_size = 32,
               .dim = 8,
               .inter_dim = 16,
               .moe_inter_dim = 4,
               .n_layers = 3,
               .n_dense_layers = 1,
               .max_positions = 64,
               .n_heads = 2,
               .q_lora_rank = 5,
               .kv_lora_rank = 6,
               .qk_nope_head_dim = 4,
               .qk_rope_head_dim = 2,
               .v_head_dim = 3,
               .rope_theta = 50000,
               .rope_interleave = false,
               .yarn = YarnConfig{.factor = 32,
                                  .original_max_positions = 16,
                                  .beta_fast = 2,
                                  .beta_slow = 1.5,
                                  .mscale = 0.5,
                                  .mscale_all_dim = 0.75},
               .norm_eps = 1e-5,
               .index_topk = 7,
               .index_n_heads = 3,
               .index_head_dim = 4,
               .index_rope_interleave = true,
               .index_topk_pattern = "FSF",
               .n_routed_experts = 6,
               .n_shared_experts = 2,
               .n_activated_experts = 2,
               .n_expert_groups = 3,
               .n_limited_groups = 2,
               .score_func = ScoreFunc::sigmoid,
               .has_gate_bias = true,
               .norm_topk_prob = true,
               .routed_scaling_factor = 2.5,
               .tie_word_embeddings = true};
    d.num_mtp_layers = 1;
    d.fp8_weights = true;
    d.int4_experts = true;
    d.ue8m0_scales = true;
    return d;
}

TEST(ModelDescription, AttributesCarryEveryField) {
    const Attributes attributes = to_attributes(small_model());
    EXPECT_EQ(attributes.size(), 41u);  // a new field must be listed in visit_fields
    EXPECT_EQ(attributes.at("dim"), Attribute(int64_t{8}));
    EXPECT_EQ(attributes.at("rope_interleave"), Attribute(int64_t{0}));
    EXPECT_EQ(attributes.at("score_func"), Attribute(std::string("sigmoid")));
    EXPECT_EQ(attributes.at("yarn_mscale_all_dim"), Attribute(0.75));
    // Every attribute differs from the default, so that reading them back shows that none is lost.
    ModelDescription with_indexer;
    with_indexer.model.index_topk = 1;
    const Attributes defaults = to_attributes(with_indexer);
    for (const auto& [name, value] : defaults) EXPECT_NE(attributes.at(name), value) << name;
    EXPECT_EQ(to_attributes(to_model_description(attributes, "x")), attributes);
}

TEST(ModelDescription, WithoutYarn) {
    ModelDescription d = small_model();
    d.model.yarn.reset();
    const Attributes attributes = to_attributes(d);
    EXPECT_FALSE(attributes.contains("yarn_factor"));
    EXPECT_FALSE(to_model_description(attributes, "x").model.yarn);
}

TEST(ModelDescription, WithoutIndexer) {
    ModelDescription d = small_model();
    d.model.index_topk = 0;
    const Attributes attributes = to_attributes(d);
    EXPECT_EQ(attributes.lower_bound("index_"), attributes.lower_bound("index`"));
    EXPECT_EQ(to_model_description(attributes, "x").model.index_topk, 0);
}

TEST(ModelDescription, RefusesWrongFields) {
    const auto refused = [](const char* name, Attribute value, const std::string& part) {
        Attributes attributes = to_attributes(small_model());
        attributes[name] = std::move(value);
        EXPECT_ERROR(to_model_description(attributes, "model.h5"), ErrorKind::checkpoint,
                     "model.h5", part);
    };
    refused("dim", 3.5, "dim is not an integer");
    refused("dim", std::string("8"), "dim is not an integer");
    refused("dim", int64_t{1} << 40, "dim is not of a sensible size");
    refused("dim", int64_t{-1}, "dim is not of a sensible size");
    refused("dim", int64_t{0}, "dim must be positive");
    refused("score_func", std::string("tanh"), "score_func is neither");
    refused("rope_theta", std::string("x"), "rope_theta is not an integer");
    refused("n_layers", int64_t{100000}, "too many");
}

}  // namespace
}  // namespace ferry
