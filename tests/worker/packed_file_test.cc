#include "worker/checkpoint/packed_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "config/gguf_file.h"
#include "kernels/packed.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/packed_models.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/sharding.h"

namespace millrace {
namespace {

using kernels::DType;
using kernels::WeightView;
using ::testing::HasSubstr;

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect_same_values(const WeightView& a, const WeightView& b, const char* what) {
  EXPECT_EQ(test::values_of(a), test::values_of(b)) << what;
}

// Every matrix of the two, value by value.
void expect_same_model(const ModelWeights& a, const ModelWeights& b) {
  expect_same_values(a.embed, b.embed, "embedding");
  expect_same_values(a.lm_head, b.lm_head, "head");
  EXPECT_EQ(a.final_norm, b.final_norm);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    const LayerWeights& x = a.layers[i];
    const LayerWeights& y = b.layers[i];
    EXPECT_EQ(x.operator_norm, y.operator_norm);
    if (x.conv) {
      EXPECT_EQ(x.conv->taps, y.conv->taps);
      expect_same_values(x.conv->in_proj, y.conv->in_proj, "in_proj");
      expect_same_values(x.conv->out_proj, y.conv->out_proj, "out_proj");
    } else {
      expect_same_values(x.attention->q_proj, y.attention->q_proj, "q_proj");
      expect_same_values(x.attention->out_proj, y.attention->out_proj, "out_proj");
    }
    if (x.dense) expect_same_values(x.dense->w2, y.dense->w2, "w2");
    if (!x.moe) continue;
    EXPECT_EQ(x.moe->expert_bias, y.moe->expert_bias);
    expect_same_values(x.moe->router, y.moe->router, "router");
    for (std::size_t e = 0; e < x.moe->experts.size(); ++e) {
      expect_same_values(x.moe->experts[e].w1, y.moe->experts[e].w1, "expert w1");
      expect_same_values(x.moe->experts[e].w3, y.moe->experts[e].w3, "expert w3");
      expect_same_values(x.moe->experts[e].w2, y.moe->experts[e].w2, "expert w2");
    }
  }
}

ModelWeights load(const TensorSource& source, const ModelConfig& c,
                  CpuWeights mode = CpuWeights::kAuto) {
  LoadOptions options;
  options.cpu_weights = mode;
  options.prefault = true;
  return load_weights(source, c, whole_model(c), options).value();
}

TEST(PackedFile, OfAGgufFileIsOne) {
  const ModelConfig c = test::config_of_tiles();
  test::TempDir dir;
  const std::string model = dir.write("m.gguf", test::quantised_gguf(c));
  const std::string out = dir / "packed.gguf";
  for (const int threads : {1, 3}) {
    std::uint64_t last = 0;
    const auto summary = write_packed(
        {model, out, CpuWeights::kAuto, threads,
         [&](std::uint64_t done, std::uint64_t total) { EXPECT_LE(last = done, total); }});
    ASSERT_TRUE(summary) << summary.error().to_string();
    EXPECT_GT(summary->packed_tensors, 10U);
    EXPECT_FALSE(std::filesystem::exists(out + ".part"));

    const auto before = GgufFile::open(model);
    const auto after = GgufFile::open(out);
    ASSERT_TRUE(after) << after.error().to_string();
    EXPECT_TRUE(std::ranges::equal(before->metadata_bytes(), after->metadata_bytes()));
    ASSERT_EQ(after->tensors().size(), before->tensors().size());
    EXPECT_EQ(summary->tensors, before->tensors().size());
    for (const GgufTensor& tensor : after->tensors()) {
      const GgufTensor* source = before->find_tensor(tensor.name);
      ASSERT_NE(source, nullptr);
      EXPECT_EQ(tensor.dims, source->dims) << tensor.name;
      EXPECT_EQ(tensor.bytes, source->bytes) << tensor.name;
      EXPECT_EQ(tensor.offset % 4096, 0U) << tensor.name;
    }
    EXPECT_EQ(after->find_tensor("token_embd.weight")->type, GgmlType::kP8_0);
    EXPECT_EQ(after->find_tensor("blk.1.ffn_gate_inp.weight")->type, GgmlType::kBF16);

    const auto original = TensorSource::open(model);
    const auto packed = TensorSource::open(out);
    ASSERT_TRUE(packed) << packed.error().to_string();
    EXPECT_EQ(load_model_config(out)->num_experts, c.num_experts);
    const ModelWeights mapped = load(*packed, c);
    EXPECT_TRUE(mapped.any_packed);
    EXPECT_EQ(mapped.packed_bytes(), 0U);  // nothing is left to do
    EXPECT_EQ(mapped.layers[1].moe->experts[3].w2.dtype, DType::kP4_0);
    expect_same_model(mapped, load(*original, c, CpuWeights::kMapped));
    std::filesystem::remove(out);
  }
}

TEST(PackedFile, OfAFolderIsAFolder) {
  ModelConfig c = test::config_of_tiles();
  c.tie_embeddings = false;
  for (const auto layout : {test::ExpertLayout::kPerExpert, test::ExpertLayout::kPacked}) {
    test::TempDir dir;
    const std::string model = dir / "model";
    std::filesystem::create_directory(model);
    dir.write("model/model.safetensors", test::safetensors_bytes(test::model_tensors(c, layout)));
    dir.write("model/config.json", test::config_json(c).dump());
    dir.write("model/tokenizer.json", "{\"any\": 1}");
    const auto original = TensorSource::open(model);
    ASSERT_TRUE(original);
    for (const CpuWeights mode : {CpuWeights::kP4, CpuWeights::kP8, CpuWeights::kAuto}) {
      const std::string out = dir / ("out" + std::to_string(static_cast<int>(mode)));
      const auto summary = write_packed({model, out, mode, 2, nullptr});
      ASSERT_TRUE(summary) << summary.error().to_string();
      EXPECT_EQ(slurp(out + "/tokenizer.json"), "{\"any\": 1}");
      EXPECT_FALSE(std::filesystem::exists(out + "/model.safetensors"));
      EXPECT_EQ(summary->packed_tensors > 0, mode != CpuWeights::kAuto);
      const auto shape = load_model_config(out);
      ASSERT_TRUE(shape) << shape.error().to_string();
      const auto packed = TensorSource::open(out);
      ASSERT_TRUE(packed) << packed.error().to_string();
      // As quantising at the start gives it.
      expect_same_model(load(*packed, *shape), load(*original, c, mode));
    }
  }
}

// Matrices of experts must be whole tiles by themselves, also where the stack as a whole is.
TEST(PackedFile, WhatDoesNotPackStaysAsItIs) {
  ModelConfig c = test::config_of_tiles();
  c.moe_intermediate_size = 8;
  test::TempDir dir;
  const std::string model = dir / "model";
  std::filesystem::create_directory(model);
  dir.write("model/model.safetensors",
            test::safetensors_bytes(test::model_tensors(c, test::ExpertLayout::kPackedWithSuffix)));
  dir.write("model/config.json", test::config_json(c).dump());
  ASSERT_TRUE(write_packed({model, dir / "out", CpuWeights::kP8, 1, nullptr}));
  const auto packed = TensorSource::open(dir / "out");
  ASSERT_TRUE(packed) << packed.error().to_string();
  const std::string stack = "model.layers.1.feed_forward.experts.gate_up_proj.weight";
  EXPECT_EQ(packed->find(stack)->dtype, DType::kBF16);
  EXPECT_EQ(packed->find("model.layers.0.feed_forward.w1.weight")->dtype, DType::kP8_0);
}

TEST(PackedFile, ErrorsLeaveNothingBehind) {
  const ModelConfig c = test::config_of_tiles();
  test::TempDir dir;
  const std::string model = dir.write("m.gguf", test::quantised_gguf(c));
  const auto message = [&](const std::string& out, CpuWeights mode = CpuWeights::kAuto) {
    const auto packed = write_packed({model, out, mode, 1, nullptr});
    return packed ? std::string("no error") : packed.error().to_string();
  };
  EXPECT_THAT(message(model), HasSubstr("is there already"));
  EXPECT_THAT(message(dir / "packed"), HasSubstr(".gguf"));
  EXPECT_THAT(message(dir / "no/such/folder.gguf"), HasSubstr("No such file"));
  EXPECT_THAT(message(dir / "x.gguf", CpuWeights::kMapped), HasSubstr("cpu_weights"));
  std::filesystem::remove(model);
  EXPECT_NE(message(dir / "x.gguf"), "no error");
  EXPECT_TRUE(std::filesystem::is_empty(dir.string()));
}

TEST(PackedFile, TilesThatReachOverAMatrixAreRefused) {
  ModelConfig c = test::config_of_tiles();
  c.num_heads = 8;
  c.head_dim = 4;  // k_proj has 8 rows
  test::TempDir dir;
  const auto source = TensorSource::open(dir.write("m.gguf", test::quantised_gguf(c, 1002)));
  ASSERT_TRUE(source) << source.error().to_string();
  const auto loaded = load_weights(*source, c, whole_model(c));
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().to_string(), HasSubstr("multiple of 16 rows, found [8, 64]"));
}

}  // namespace
}  // namespace millrace
