#include "worker/checkpoint/gguf_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"
#include "worker/checkpoint/expected_tensors.h"
#include "worker/sharding.h"
#include "worker/weights.h"

namespace millrace {
namespace {

using test::TempDir;
using ::testing::HasSubstr;

TEST(GgufTensors, NamesFollowTheConvertersTable) {
  EXPECT_EQ(hf_name_of_gguf("token_embd_norm.weight"), "model.embedding_norm.weight");
  EXPECT_EQ(hf_name_of_gguf("output.weight"), "lm_head.weight");
  EXPECT_EQ(hf_name_of_gguf("blk.39.exp_probs_b.bias"), "model.layers.39.feed_forward.expert_bias");
  EXPECT_EQ(hf_name_of_gguf("blk.0.ffn_up.weight"), "model.layers.0.feed_forward.w3.weight");
  EXPECT_EQ(hf_name_of_gguf("blk.5.attn_q_norm.weight"),
            "model.layers.5.self_attn.q_layernorm.weight");
  for (const char* unknown :
       {"blk.", "blk.1", "blk.1.", "blk.x.ffn_up.weight", "blk.-1.ffn_up.weight",
        "blk.01.ffn_up.weight", "blk.99999999999.ffn_up.weight", "blk.1.ffn_up.weight2",
        "rope_freqs.weight", ""}) {
    EXPECT_EQ(hf_name_of_gguf(unknown), std::nullopt) << unknown;
  }
}

// The same model as per-expert safetensors and as GGUF with split and fused stacks: each view must
// hold the bytes that were written for that Hugging Face tensor.
TEST(GgufTensors, EveryLayoutGivesTheSameBytesUnderTheSameNames) {
  TempDir dir;
  ModelConfig config = test::tiny_moe_config();
  config.tie_embeddings = false;
  const auto single = test::model_tensors(config, test::ExpertLayout::kPerExpert);
  const auto packed = test::model_tensors(config, test::ExpertLayout::kPacked);
  const auto suffixed = test::model_tensors(config, test::ExpertLayout::kPackedWithSuffix);
  const std::string paths[] = {dir.write("single.safetensors", test::safetensors_bytes(single)),
                               dir.write("packed.safetensors", test::safetensors_bytes(packed)),
                               dir.write("suffixed.safetensors", test::safetensors_bytes(suffixed)),
                               dir.write("split.gguf", test::gguf_model(config, true).bytes()),
                               dir.write("fused.gguf", test::gguf_model(config, false).bytes())};
  for (const std::string& path : paths) {
    auto source = TensorSource::open(path);
    ASSERT_TRUE(source) << source.error().to_string();
    auto valid = validate_tensors(*source, config);
    ASSERT_TRUE(valid) << valid.error().to_string();
    for (const test::TensorData& t : single) {
      int layer = 0, expert = 0, part = 0;
      kernels::WeightView view;
      if (std::sscanf(t.name.c_str(), "model.layers.%d.feed_forward.experts.%d.w%d", &layer,
                      &expert, &part) == 3) {
        view = source
                   ->expert(layer, expert,
                            part == 1   ? ExpertPart::kGate
                            : part == 3 ? ExpertPart::kUp
                                        : ExpertPart::kDown)
                   .value();
        EXPECT_EQ(view.rows, t.shape[0]) << path << t.name;
      } else {
        ASSERT_NE(source->find(t.name), nullptr) << path << t.name;
        EXPECT_EQ(source->find(t.name)->shape, t.shape) << path << t.name;
        view = source->find(t.name)->view();
      }
      EXPECT_EQ(view.cols, t.shape.back()) << path << t.name;
      ASSERT_EQ(static_cast<std::size_t>(view.bytes()), t.bytes.size()) << path << t.name;
      EXPECT_EQ(std::memcmp(view.data, t.bytes.data(), t.bytes.size()), 0) << path << t.name;
    }
  }
}

TEST(GgufTensors, ExpertErrorsNameTheTensor) {
  TempDir dir;
  const ModelConfig config = test::tiny_moe_config();
  auto source = TensorSource::open(dir.write("m.gguf", test::gguf_model(config, false).bytes()));
  ASSERT_TRUE(source);
  EXPECT_EQ(source->expert(0, 0, ExpertPart::kUp).error().field,
            "model.layers.0.feed_forward.experts.0.w3.weight");
  EXPECT_EQ(source->expert(1, 4, ExpertPart::kDown).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(source->expert(1, -1, ExpertPart::kDown).error().code, ErrorCode::kInvalidArgument);
}

TEST(GgufTensors, QuantisedRowsKeepTheirBlocks) {
  TempDir dir;
  test::GgufBuilder b;
  b.tensor("blk.0.ffn_gate_exps.weight", {64, 3, 2}, 8, test::filler("x", 2 * 2 * 3 * 34));
  b.tensor("blk.0.ffn_up.weight", {256, 2}, 12, test::filler("y", 2 * 144));
  auto source = TensorSource::open(dir.write("m.gguf", b.bytes()));
  ASSERT_TRUE(source) << source.error().to_string();
  auto second = source->expert(0, 1, ExpertPart::kGate);
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(second->dtype, kernels::DType::kQ8_0);
  EXPECT_EQ(second->rows, 3);
  EXPECT_EQ(second->cols, 64);
  EXPECT_EQ(second->data - source->find("model.layers.0.feed_forward.experts.w1.weight")->data,
            3 * 2 * 34);
  EXPECT_EQ(source->find("model.layers.0.feed_forward.w3.weight")->view().row_bytes(), 144);
}

TEST(GgufTensors, RefusesFormatsWithoutKernels) {
  TempDir dir;
  test::GgufBuilder b;
  b.tensor("blk.0.ffn_up.weight", {32, 1}, 6, std::string(22, 'q'));  // Q5_0
  auto source = TensorSource::open(dir.write("m.gguf", b.bytes()));
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(source.error().field, "blk.0.ffn_up.weight");
  EXPECT_THAT(source.error().message, HasSubstr("Q5_0"));
}

TEST(GgufTensors, DamagedHeadersNeverCrashTheLoader) {
  TempDir dir;
  const ModelConfig config = test::tiny_moe_config();
  const std::string good = test::gguf_model(config, true).bytes();
  std::mt19937_64 random(4);
  const std::size_t region = good.find("token_embd.weight") + 3000;
  int loaded = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::string path = dir.write("bad.gguf", test::damage(good, region, random));
    auto shape = load_model_config(path);
    auto source = TensorSource::open(path);
    if (!shape || !source) continue;
    LoadOptions options;
    options.prefault = true;
    loaded += load_weights(*source, *shape, whole_model(*shape), options).has_value() ? 1 : 0;
  }
  EXPECT_GT(loaded, 20);
  EXPECT_LT(loaded, 2900);
}

}  // namespace
}  // namespace millrace
