#include "worker/checkpoint/random_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/random_weights.h"
#include "worker/checkpoint/expected_tensors.h"
#include "worker/memory_plan.h"
#include "worker/sharding.h"
#include "worker/weights.h"

namespace millrace {
namespace {

using kernels::WeightView;

std::vector<std::uint16_t> bits_of(const WeightView& view) {
  const auto* data = reinterpret_cast<const std::uint16_t*>(view.data);
  return {data, data + view.rows * view.cols};
}

TEST(RandomTensors, AreThoseOfTheModelAndCostNoMemoryBefore) {
  const auto model = load_model_config("random:24b-a2b");
  const auto source = TensorSource::open("random:24b-a2b");
  ASSERT_TRUE(source) << source.error().to_string();
  EXPECT_TRUE(validate_tensors(*source, *model));
  EXPECT_EQ(source->tensors().size(), 7610U);  // of the released checkpoint
  const auto footprint = measure_weights(*source, *model);
  ASSERT_TRUE(footprint);
  const auto weights = load_weights(*source, *model, whole_model(*model), {.random_values = false});
  ASSERT_TRUE(weights) << weights.error().to_string();
  EXPECT_NEAR(static_cast<double>(weights->mapped_bytes), 47.69e9, 0.01e9);
}

TEST(RandomTensors, OnAMachineWithoutTheMemoryAreRefused) {
  const auto model = load_model_config("random:24b-a2b");
  const auto source = TensorSource::open("random:24b-a2b");
  const auto memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (memory > 40e9) GTEST_SKIP() << "this machine holds them";
  const auto weights = load_weights(*source, *model, whole_model(*model));
  ASSERT_FALSE(weights);
  EXPECT_EQ(weights.error().code, ErrorCode::kResourceExhausted);
}

TEST(RandomTensors, AShardHasTheValuesOfTheWholeModel) {
  const auto model = load_model_config("random:tiny:9").value();
  const auto source = TensorSource::open("random:tiny:9");
  const auto again = TensorSource::open("random:tiny:9");
  const auto whole = load_weights(*source, model, whole_model(model), {.threads = 3}).value();
  RankShard shard;
  shard.layer_begin = 3;
  shard.layer_end = 4;
  shard.first_stage = shard.last_stage = false;
  shard.experts = {{5, -1, 2}};
  const auto part = load_weights(*again, model, shard).value();
  const LayerWeights& layer = whole.layers[3];
  EXPECT_EQ(bits_of(part.layers[0].conv->in_proj), bits_of(layer.conv->in_proj));
  EXPECT_EQ(part.layers[0].conv->taps, layer.conv->taps);
  EXPECT_EQ(bits_of(part.layers[0].moe->experts[0].w3), bits_of(layer.moe->experts[5].w3));
  EXPECT_EQ(bits_of(part.layers[0].moe->experts[2].w2), bits_of(layer.moe->experts[2].w2));
  EXPECT_NE(bits_of(layer.moe->experts[2].w2), bits_of(layer.moe->experts[3].w2));
  // By the definition, from the matrix's place.
  std::vector<std::uint16_t> expected(bits_of(layer.conv->out_proj).size());
  kernels::random_weights(9, source->random()->first(layer.conv->out_proj),
                          kernels::random_weight_half_step(model.hidden_size), expected);
  EXPECT_EQ(bits_of(layer.conv->out_proj), expected);
  const auto other = load_weights(*TensorSource::open("random:tiny:10"), model, shard).value();
  EXPECT_NE(bits_of(other.layers[0].conv->in_proj), bits_of(layer.conv->in_proj));
}

TEST(RandomTensors, NormsAreOneAndTapsAreNot) {
  const auto model = load_model_config("random:tiny").value();
  const auto source = TensorSource::open("random:tiny");
  const auto weights = load_weights(*source, model, whole_model(model)).value();
  const auto is = [](float wanted) { return [wanted](float v) { return v == wanted; }; };
  EXPECT_TRUE(std::ranges::all_of(weights.final_norm, is(1)));
  EXPECT_TRUE(std::ranges::all_of(weights.layers[2].attention->q_norm, is(1)));
  EXPECT_TRUE(std::ranges::all_of(weights.layers[3].ffn_norm, is(1)));
  EXPECT_TRUE(std::ranges::all_of(weights.layers[3].moe->expert_bias, is(0)));
  EXPECT_TRUE(std::ranges::none_of(weights.layers[0].conv->taps, is(0)));
  EXPECT_NE(weights.layers[0].conv->taps, weights.layers[1].conv->taps);
  EXPECT_EQ(weights.embed.data, weights.lm_head.data);
}

TEST(RandomTensors, AreNotQuantised) {
  const auto model = load_model_config("random:tiny").value();
  const auto source = TensorSource::open("random:tiny");
  const auto got =
      load_weights(*source, model, whole_model(model), {.cpu_weights = CpuWeights::kP4});
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().field, "model.cpu_weights");
}

}  // namespace
}  // namespace millrace
