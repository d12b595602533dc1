#include "worker/packing.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/packed.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/packed_models.h"
#include "worker/memory_plan.h"
#include "worker/sharding.h"
#include "worker/weights.h"

namespace millrace {
namespace {

using kernels::DType;
using kernels::WeightView;
using test::values_of;

WeightView view_of(DType dtype, std::int64_t rows = 32, std::int64_t cols = 256) {
  return {nullptr, dtype, rows, cols};
}

TEST(LoadedDtype, DependsOnTypeUseAndMode) {
  using enum WeightUse;
  using enum CpuWeights;
  EXPECT_EQ(loaded_dtype(view_of(DType::kQ4_0), kProjection, kAuto), DType::kP4_0);
  EXPECT_EQ(loaded_dtype(view_of(DType::kQ4_0), kProjection, kMapped), DType::kQ4_0);
  EXPECT_EQ(loaded_dtype(view_of(DType::kQ6_K), kHead, kAuto), DType::kP6_K);
  EXPECT_EQ(loaded_dtype(view_of(DType::kQ6_K), kHead, kP4), DType::kP6_K);
  EXPECT_EQ(loaded_dtype(view_of(DType::kQ6_K), kLookup, kAuto), DType::kQ6_K);
  EXPECT_EQ(loaded_dtype(view_of(DType::kQ4_0, 24), kProjection, kAuto), DType::kQ4_0);
  EXPECT_EQ(loaded_dtype(view_of(DType::kBF16), kProjection, kAuto), DType::kBF16);
  EXPECT_EQ(loaded_dtype(view_of(DType::kBF16), kProjection, kP4), DType::kP4_0);
  EXPECT_EQ(loaded_dtype(view_of(DType::kF32), kProjection, kP8), DType::kP8_0);
  EXPECT_EQ(loaded_dtype(view_of(DType::kBF16), kHead, kP4), DType::kBF16);
  EXPECT_EQ(loaded_dtype(view_of(DType::kF32), kRouter, kP8), DType::kF32);
  EXPECT_EQ(loaded_dtype(view_of(DType::kBF16, 32, 40), kProjection, kP4), DType::kBF16);
  for (const CpuWeights mode : {kAuto, kMapped, kP4, kP8}) {
    EXPECT_EQ(loaded_dtype(view_of(DType::kP4_0), kProjection, mode), DType::kP4_0);
  }
}

TEST(Packing, LoadsTheSameValuesInPackedTypes) {
  const ModelConfig c = test::config_of_tiles();
  test::TempDir dir;
  const auto source = TensorSource::open(dir.write("m.gguf", test::quantised_gguf(c)));
  ASSERT_TRUE(source) << source.error().to_string();
  const ModelWeights mapped = load_weights(*source, c, whole_model(c)).value();
  EXPECT_FALSE(mapped.any_packed);
  EXPECT_EQ(mapped.packed_bytes(), 0U);
  for (const int threads : {1, 3}) {
    std::uint64_t last = 0;
    std::uint64_t all = 0;
    LoadOptions options;
    options.cpu_weights = CpuWeights::kAuto;
    options.prefault = true;
    options.threads = threads;
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      EXPECT_GE(done, last);
      last = done;
      all = total;
    };
    const ModelWeights packed = load_weights(*source, c, whole_model(c), options).value();
    EXPECT_EQ(last, all);
    EXPECT_GT(all, 0U);
    EXPECT_TRUE(packed.any_packed);
    EXPECT_EQ(packed.embed.dtype, DType::kP8_0);
    EXPECT_EQ(packed.embed.data, packed.lm_head.data);
    EXPECT_EQ(values_of(packed.lm_head), values_of(mapped.lm_head));
    for (std::size_t i = 0; i < mapped.layers.size(); ++i) {
      const LayerWeights& a = packed.layers[i];
      const LayerWeights& b = mapped.layers[i];
      const WeightView& mixer = a.conv ? a.conv->in_proj : a.attention->k_proj;
      EXPECT_TRUE(kernels::is_packed(mixer.dtype));
      EXPECT_EQ(values_of(mixer), values_of(b.conv ? b.conv->in_proj : b.attention->k_proj));
      if (!a.moe) {
        EXPECT_EQ(values_of(a.dense->w2), values_of(b.dense->w2));
        continue;
      }
      EXPECT_EQ(a.moe->router.data, b.moe->router.data);
      for (std::size_t e = 0; e < a.moe->experts.size(); ++e) {
        EXPECT_EQ(a.moe->experts[e].w1.dtype, DType::kP4_0);
        EXPECT_EQ(values_of(a.moe->experts[e].w1), values_of(b.moe->experts[e].w1));
        EXPECT_EQ(values_of(a.moe->experts[e].w3), values_of(b.moe->experts[e].w3));
        EXPECT_EQ(values_of(a.moe->experts[e].w2), values_of(b.moe->experts[e].w2));
      }
    }
    // All matrices but the router, and nothing twice.
    EXPECT_LT(packed.packed_bytes(), source->total_bytes() + 64 * 200);
    EXPECT_LT(packed.mapped_bytes, mapped.mapped_bytes / 4);
  }
}

TEST(Packing, AnEmbeddingThatIsOnlyReadFromStaysMapped) {
  const ModelConfig c = test::config_of_tiles();
  test::TempDir dir;
  const auto source = TensorSource::open(dir.write("m.gguf", test::quantised_gguf(c)));
  ASSERT_TRUE(source);
  RankShard first = whole_model(c);
  first.last_stage = false;
  LoadOptions options;
  options.cpu_weights = CpuWeights::kAuto;
  const ModelWeights weights = load_weights(*source, c, first, options).value();
  EXPECT_EQ(weights.embed.dtype, DType::kQ8_0);
  EXPECT_EQ(weights.embed.data, source->find("model.embed_tokens.weight")->data);
}

TEST(Packing, ThePlanCountsWhatIsLoaded) {
  const ModelConfig c = test::config_of_tiles();
  test::TempDir dir;
  const auto source = TensorSource::open(dir.write("m.gguf", test::quantised_gguf(c)));
  ASSERT_TRUE(source);
  PlanLimits limits;
  limits.kv_tokens = 4096;
  const StageRange all{0, c.num_layers()};
  const auto experts = split_experts(c.num_experts, 1).value();
  std::uint64_t work = 0;
  for (const CpuWeights mode : {CpuWeights::kMapped, CpuWeights::kAuto}) {
    const auto footprint = measure_weights(*source, c, mode).value();
    const MemoryPlan plan = plan_memory(c, footprint, {&all, 1}, experts, limits).value();
    LoadOptions options;
    options.cpu_weights = mode;
    const ModelWeights weights = load_weights(*source, c, whole_model(c), options).value();
    EXPECT_EQ(plan.ranks[0].weight_bytes, source->total_bytes());
    // The loader aligns each matrix to a cache line.
    EXPECT_NEAR(static_cast<double>(weights.packed_bytes()),
                static_cast<double>(plan.ranks[0].packed_bytes), 64 * 200);
    EXPECT_EQ(plan.ranks[0].packed_bytes > 0, mode == CpuWeights::kAuto);
    const ResidentWeights resident = resident_weights(c, footprint, {&all, 1}, experts);
    EXPECT_EQ(resident.mapped_bytes + resident.packed_bytes, source->total_bytes());
    EXPECT_GT(plan.ranks[0].workspace_bytes, work);  // the second mode needs more
    work = plan.ranks[0].workspace_bytes;
  }
  // Two lanes pack what both need twice, and each expert once.
  const auto footprint = measure_weights(*source, c, CpuWeights::kAuto).value();
  const auto two = resident_weights(c, footprint, {&all, 1}, split_experts(4, 2).value());
  const auto one = resident_weights(c, footprint, {&all, 1}, experts);
  std::uint64_t fixed = footprint.packed_head_bytes;
  for (const auto& layer : footprint.layers) fixed += layer.packed_fixed_bytes;
  EXPECT_EQ(two.packed_bytes, one.packed_bytes + fixed);
  EXPECT_EQ(two.mapped_bytes, one.mapped_bytes);
}

// Matrices of bf16, rounded on the way. Every block is within half a step of its scale.
TEST(Packing, QuantisesPlainMatrices) {
  const ModelConfig c = test::config_of_tiles();
  test::TempDir dir;
  const auto source = TensorSource::open(dir.write("m.gguf", test::gguf_model(c, true).bytes()));
  ASSERT_TRUE(source);
  const ModelWeights mapped = load_weights(*source, c, whole_model(c)).value();
  for (const auto& [mode, dtype, steps] : {std::tuple(CpuWeights::kP8, DType::kP8_0, 127.0),
                                           std::tuple(CpuWeights::kP4, DType::kP4_0, 7.0)}) {
    LoadOptions options;
    options.cpu_weights = mode;
    const ModelWeights packed = load_weights(*source, c, whole_model(c), options).value();
    EXPECT_EQ(packed.lm_head.dtype, DType::kBF16);
    const WeightView& rounded = packed.layers[0].conv->out_proj;
    ASSERT_EQ(rounded.dtype, dtype);
    const auto want = values_of(mapped.layers[0].conv->out_proj);
    const auto got = values_of(rounded);
    for (std::size_t at = 0; at < want.size(); at += 32) {
      double most = 0;
      for (std::size_t i = at; i < at + 32; ++i) most = std::max(most, std::fabs(double{want[i]}));
      for (std::size_t i = at; i < at + 32; ++i) {
        // A searched scale may clip the largest value by up to a step and a half.
        const double bound = mode == CpuWeights::kP8 ? 0.51 * most / steps : 1.5 * most / steps;
        ASSERT_NEAR(got[i], want[i], bound) << at;
      }
    }
  }
}

}  // namespace
}  // namespace millrace
