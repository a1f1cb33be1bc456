#include "runtime/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

constexpr ErrorKind kUsage = ErrorKind::usage;

TEST(Config, AnEmptyFileGivesTheDefaults) {
    const Config config = parse_config("", "empty.yaml");
    EXPECT_EQ(effective_yaml(config), effective_yaml(Config{}));
}

TEST(Config, ReadsEveryKindOfField) {
    const Config config = parse_config(R"(
model:
  path: 123            # text may look like a number
numerics: {fp8_activations: true, cache_dtype: bf16}
layout:
  mode: disaggregated
  attention_ranks: 2
engine:
  cache_gib: 0.5
  stall_timeout_s: 7
sampling:
  seed: 18446744073709551615
  stop: ["\n", "END"]
  stop_token_ids: [1, 2]
  logprobs: 0
input:
  prompt: just one
)",
                                       "a.yaml");
    EXPECT_EQ(config.model.path, "123");
    EXPECT_TRUE(config.numerics.fp8_activations);
    EXPECT_EQ(config.numerics.cache_dtype, Config::NumericsSection::Cache::bf16);
    EXPECT_EQ(config.layout.mode, Config::Layout::Mode::disaggregated);
    EXPECT_EQ(config.layout.attention_ranks, 2);
    EXPECT_EQ(config.engine.cache_gib, 0.5);
    EXPECT_EQ(config.engine.stall_timeout_s, 7);
    EXPECT_EQ(config.sampling.seed, UINT64_MAX);
    EXPECT_EQ(config.sampling.stop, (std::vector<std::string>{"\n", "END"}));
    EXPECT_EQ(config.sampling.stop_token_ids, (std::vector<int32_t>{1, 2}));
    EXPECT_EQ(config.sampling.logprobs, std::optional<int64_t>(0));
    EXPECT_EQ(config.input.prompt, std::vector<std::string>{"just one"});
    EXPECT_EQ(numerics_of(config).cache_dtype, DType::bf16);
    EXPECT_TRUE(numerics_of(config).fp8_activations);
}

struct Bad {
    const char* text;
    const char* message;
};

TEST(Config, SaysFileLineKeyAndReason) {
    const Bad all[] = {
        {"layout:\n  experts: 4\n", "demo.yaml:2: layout.experts: no such key"},
        {"engine:\n  thread: 4\n",
         "demo.yaml:2: engine.thread: no such key; did you mean "
         "engine.threads?"},
        {"layout:\n  threads: 4\n",
         "demo.yaml:2: layout.threads: no such key; did you mean "
         "engine.threads?"},
        {"engin:\n  threads: 4\n", "demo.yaml:1: engin: no such key; did you mean engine?"},
        {"threads: 4\n", "demo.yaml:1: threads: no such key; did you mean engine.threads?"},
        {"\n\nengine: 4\n", "demo.yaml:3: engine: this is a section"},
        {"engine:\n  threads: many\n",
         "demo.yaml:2: engine.threads: must be an integer, 0 .. 4096; is \"many\""},
        {"engine:\n  threads: 1.5\n", "must be an integer"},
        {"engine:\n  threads: '1'\n", "must be an integer"},
        {"engine:\n  threads: 5000\n", "0 .. 4096; is \"5000\""},
        {"engine:\n  threads: 99999999999999999999\n", "must be an integer"},
        {"engine:\n  threads: [1]\n", "is the list [1]"},
        {"sampling:\n  n: \"2\"\n", "is the text \"2\""},
        {"sampling: {stop_token_ids: [-1, x]}\n",
         "must be a list of token ids, integers from 0; is the list [-1, x]"},
        {"engine:\n  threads: {a: 1}\n", "is a mapping"},
        {"engine:\n  threads:\n", "is nothing"},
        {"engine:\n  prefix_cache: yes\n", "must be true or false; is \"yes\""},
        {"engine:\n  cache_gib: nan\n", "must be a number"},
        {"engine:\n  cache_gib: inf\n", "must be a number"},
        {"engine:\n  device: gpu\n", "must be cpu | cuda; is \"gpu\""},
        {"sampling:\n  seed: -1\n", "must be an integer, at least 0"},
        {"sampling:\n  stop_token_ids: [-1]\n", "a list of token ids"},
        {"sampling:\n  stop: [a, [b]]\n", "text or a list of it"},
        {"model:\n  path: [a]\n", "must be text"},
        {"- a\n", "demo.yaml:1: must be a mapping"},
        {"model:\n  path: a\n  path: b\n", "demo.yaml:3:3: this key is there already"},
    };
    for (const Bad& bad : all)
        EXPECT_ERROR(parse_config(bad.text, "demo.yaml"), kUsage, bad.message, "demo.yaml:");
}

TEST(Config, ImpossibleCombinationsNameTheLineThatMadeThem) {
    const Bad all[] = {
        {"model:\n  path: a\n  dummy: b\n", "demo.yaml:3: model.dummy: model.path is set too"},
        {"model:\n  path: a\n  layers: 4\n", "demo.yaml:3: model.layers: is for a dummy model"},
        {"layout: {mode: disaggregated}\n", "demo.yaml:1: layout.mode: disaggregated needs"},
        {"layout: {mode: from_launcher, expert_ranks: 2}\n",
         "demo.yaml:1: layout.expert_ranks: the launcher says how many there are"},
        {"layout:\n  attention_ranks: 2\n  expert_ranks: 4\n",
         "demo.yaml:3: layout.expert_ranks: colocated ranks do both"},
        {"layout:\n  attention_ranks: 4\n  tp_size: 3\n",
         "demo.yaml:3: layout.tp_size: 3 does not divide the 4 attention ranks"},
        {"layout:\n  tp_size: 3\n", "3 does not divide numerics.tp_slices = 8"},
        {"layout:\n  placement: balanced\n", "balanced needs layout.expert_load"},
        {"layout:\n  redundant_experts: 1\n", "balanced only"},
        {"layout:\n  expert_load: f\n", "balanced only"},
        {"exchange:\n  transport: nccl\n", "nccl needs engine.device: cuda"},
        {"exchange:\n  transport: self\nlayout: {attention_ranks: 2}\n", "self is for one rank"},
        {"exchange: {mode: sized, bounded_tokens: 5}\n", "means nothing with"},
        {"engine:\n  max_batch: 64\n  max_batch_tokens: 32\n",
         "demo.yaml:3: engine.max_batch_tokens: 32 is less than engine.max_batch = 64"},
        {"sampling: {max_tokens: 3, min_tokens: 4}\n", "4 is more than sampling.max_tokens = 3"},
        {"input: {file: a, prompt: [b]}\n", "input.file is set too"},
    };
    for (const Bad& bad : all)
        EXPECT_ERROR(parse_config(bad.text, "demo.yaml"), kUsage, bad.message, "demo.yaml:");
}

TEST(Config, OverridesComeAfterTheFile) {
    const std::vector<std::string> overrides = {"engine.threads=3", "sampling.stop=[a, \"b, c\"]",
                                                "model.path=dir: with colon",
                                                "sampling.logprobs=null", "input.prompt=say [x]"};
    const Config config =
        parse_config("engine: {threads: 1}\nsampling: {logprobs: 2}\n", "a.yaml", overrides);
    EXPECT_EQ(config.engine.threads, 3);
    EXPECT_EQ(config.sampling.stop, (std::vector<std::string>{"a", "b, c"}));
    EXPECT_EQ(config.model.path, "dir: with colon");
    EXPECT_FALSE(config.sampling.logprobs.has_value());
    EXPECT_EQ(config.input.prompt, std::vector<std::string>{"say [x]"});
}

TEST(Config, BadOverrides) {
    const auto with = [](std::vector<std::string> overrides) {
        parse_config("", "a.yaml", overrides);
    };
    EXPECT_ERROR(with({"engine.threads"}), kUsage, "--set", "section.key=value");
    EXPECT_ERROR(with({"engine.thread=1"}), kUsage, "--set", "did you mean engine.threads?");
    EXPECT_ERROR(with({"sampling={seed: 1}"}), kUsage, "set its keys, sampling.KEY=VALUE");
    EXPECT_ERROR(with({"engine.threads=x"}), kUsage, "--set: engine.threads: must be an integer");
    EXPECT_ERROR(with({"engine.max_batch=1000"}), kUsage, "a.yaml: engine.max_batch_tokens: 512");
    EXPECT_ERROR(with({"sampling.stop=[a"}), kUsage, "--set sampling.stop:1");
}

TEST(Config, EffectiveConfigurationReadsBack) {
    const std::vector<std::string> overrides = {"sampling.stop=[\"a\\\"b\", \"\\n\", \"\xc3\xa9\"]",
                                                "sampling.stop_token_ids=[3, 4]",
                                                "sampling.temperature=0.7",
                                                "engine.prefix_cache=false",
                                                "sampling.logprobs=5",
                                                "model.path=true"};
    const Config config = parse_config("", "a.yaml", overrides);
    const std::string yaml = effective_yaml(config);
    const Config again = parse_config(
        yaml.substr(0, yaml.find("  layers:")) + yaml.substr(yaml.find("  tokenizer:")),
        "effective.yaml");
    EXPECT_EQ(effective_yaml(again), yaml);
    EXPECT_EQ(again.sampling, config.sampling);
    EXPECT_EQ(again.model.path, "true");
}

TEST(Config, KeysAreUniqueAndEveryFieldHasAMeaning) {
    Config config;
    std::set<std::string> keys;
    for (const Field& field : config_fields(config)) {
        EXPECT_TRUE(keys.insert(field.key).second) << field.key;
        EXPECT_FALSE(field.meaning.empty()) << field.key;
        EXPECT_NE(describe_config_fields().find(field.meaning), std::string::npos);
    }
}

TEST(Config, DefaultsPassTheirOwnChecks) {
    Config config;
    for (const Field& field : config_fields(config)) {
        const YamlValue root = parse_yaml("v: " + value_text(field), "default");
        EXPECT_NO_THROW(assign(field, root.entries[0].value, "default", kUsage)) << field.key;
    }
}

TEST(Config, ResultFieldsAreThoseThatChangeResults) {
    const auto fields = [](std::vector<std::string> overrides) {
        return result_fields(parse_config("", "a.yaml", overrides));
    };
    const std::string base = fields({});
    for (const char* same :
         {"engine.threads=3", "engine.max_batch_tokens=99", "log.level=debug",
          "layout.attention_ranks=4", "exchange.mode=sized", "engine.prefix_cache=false",
          "output.timings=false", "model.path=moved"})
        EXPECT_EQ(fields({same}), base) << same;
    for (const char* other : {"numerics.cache_dtype=bf16", "sampling.seed=1", "model.dummy=x",
                              "exchange.dtype=fp8", "sampling.max_tokens=9"})
        EXPECT_NE(fields({other}), base) << other;
    EXPECT_NE(fields({"exchange.combine=reduced"}),
              fields({"exchange.combine=reduced", "layout.attention_ranks=4"}));
}

TEST(Config, LoadsAFileAndSaysWhenThereIsNone) {
    const testing::TempDir dir;
    testing::write_file(dir / "a.yaml", "engine:\n  threads: 2\n");
    EXPECT_EQ(load_config(dir / "a.yaml", {}).engine.threads, 2);
    EXPECT_ERROR(load_config(dir / "b.yaml", {}), kUsage, "b.yaml: ", "cannot be opened");
    EXPECT_ERROR(load_config(dir.path(), {}), kUsage, dir.path(), "is a folder", "--model");
    EXPECT_EQ(load_config("", std::vector<std::string>{"engine.threads=5"}).engine.threads, 5);
}

}  // namespace
}  // namespace ferry
