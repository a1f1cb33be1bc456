#include "runtime/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/convert.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_hf_model.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::TinyHfModel;

TEST(Inspect, ConvertedCheckpoint) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::fp8_e4m3}).write(dir / "hf");
    convert_checkpoint(dir / "hf", dir / "out", {.expert_shards = 3});
    const CheckpointSummary summary = summarise_checkpoint(dir / "out");
    EXPECT_EQ(summary.files.size(), 4u);

    const std::string text = to_text(summary, false);
    EXPECT_THAT(text, HasSubstr("Ferry HDF5 checkpoint"));
    EXPECT_THAT(text, HasSubstr("experts-00002-of-00003.h5"));
    EXPECT_THAT(text, HasSubstr("score_func                  sigmoid"));
    EXPECT_THAT(text, HasSubstr("layers/N/ffn/experts/w1 "));
    EXPECT_THAT(text, HasSubstr("[6, 40, 160]"));
    EXPECT_THAT(text, HasSubstr("N = 1-2  in 3 parts"));
    EXPECT_THAT(text, HasSubstr("75.00 KiB  N = 1-2  in 3 parts"));  // 2 x 6 x 40 x 160 bytes
    EXPECT_THAT(to_text(summary, true), HasSubstr("layers/2/ffn/experts/w1 "));

    const auto json = nlohmann::json::parse(to_json(summary));
    EXPECT_EQ(json["model"]["dim"], 160);
    EXPECT_EQ(json["model"]["score_func"], "sigmoid");
    EXPECT_EQ(json["tensor_bytes"], summary.num_bytes());
    bool seen = false;
    for (const auto& tensor : json["tensors"])
        if (tensor["name"] == "layers/2/ffn/experts/w1") {
            EXPECT_EQ(tensor["dtype"], "fp8_e4m3");
            EXPECT_EQ(tensor["shape"], nlohmann::json({6, 40, 160}));
            EXPECT_EQ(tensor["bytes"], 6 * 40 * 160);
            EXPECT_EQ(tensor["parts"], 3);
            seen = true;
        }
    EXPECT_TRUE(seen);
}

TEST(Inspect, HuggingFaceDirectory) {
    const TempDir dir;
    TinyHfModel({.dtype = DType::bf16}).write(dir / "hf");
    const CheckpointSummary summary = summarise_checkpoint(dir / "hf");
    EXPECT_THAT(to_text(summary, false), HasSubstr("Hugging Face safetensors"));
    EXPECT_EQ(summary.files.size(), 2u);
    EXPECT_EQ(summary.num_bytes(), summary.description.model.num_parameters() * 2 +
                                       2 * 6 * 2);  // two gate biases of 6 are f32
}

}  // namespace
}  // namespace ferry
