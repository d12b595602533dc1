#include "worker/sharding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/temp_dir.h"
#include "worker/memory_plan.h"

namespace millrace {
namespace {

using kernels::DType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig lfm2_24b() {
  ModelConfig c = test::tiny_moe_config();
  c.hidden_size = 2048;
  c.vocab_size = 65536;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 64;
  c.intermediate_size = 11776;
  c.moe_intermediate_size = 1536;
  c.num_experts = 64;
  c.num_experts_per_tok = 4;
  c.num_dense_layers = 2;
  c.layers.assign(40, LayerKind::kShortConv);
  for (int layer = 2; layer < 40; layer += 4) c.layers[layer] = LayerKind::kAttention;
  return c;
}

std::vector<StageRange> cut_24b(int stages, DType dtype) {
  return cut_stages(weight_costs(assume_weights(lfm2_24b(), dtype, dtype).value()), stages).value();
}

TEST(Sharding, Cuts24BAtTheKnownPlaces) {
  EXPECT_THAT(cut_24b(1, DType::kBF16), ElementsAre(StageRange{0, 40}));
  EXPECT_THAT(cut_24b(2, DType::kBF16), ElementsAre(StageRange{0, 21}, StageRange{21, 40}));
  EXPECT_THAT(cut_24b(4, DType::kBF16), ElementsAre(StageRange{0, 11}, StageRange{11, 21},
                                                    StageRange{21, 31}, StageRange{31, 40}));
  EXPECT_EQ(cut_24b(40, DType::kBF16).size(), 40U);
}

double maximum(const StageCosts& costs, const std::vector<int>& cuts) {
  double most = 0;
  for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
    double cost = (s == 0 ? costs.embedding : 0) + (s + 2 == cuts.size() ? costs.head : 0);
    for (int layer = cuts[s]; layer < cuts[s + 1]; ++layer) cost += costs.layers[layer];
    most = std::max(most, cost);
  }
  return most;
}

// Every possible cut, tried one by one.
void each_cut(std::vector<int>& cuts, int layers, int stages,
              const std::function<void(const std::vector<int>&)>& visit) {
  if (static_cast<int>(cuts.size()) == stages) {
    cuts.push_back(layers);
    visit(cuts);
    cuts.pop_back();
    return;
  }
  for (int next = cuts.back() + 1; next < layers; ++next) {
    cuts.push_back(next);
    each_cut(cuts, layers, stages, visit);
    cuts.pop_back();
  }
}

TEST(Sharding, FindsTheLeastMaximumThatExhaustiveSearchFinds) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const int layers = 1 + static_cast<int>(random() % 9);
    const int stages = 1 + static_cast<int>(random() % layers);
    StageCosts costs;
    for (int i = 0; i < layers; ++i) costs.layers.push_back(static_cast<double>(random() % 10));
    costs.embedding = static_cast<double>(random() % 12);
    costs.head = static_cast<double>(random() % 12);
    double least = 1e9;
    std::vector<int> start = {0};
    each_cut(start, layers, stages,
             [&](const auto& cuts) { least = std::min(least, maximum(costs, cuts)); });
    const auto ranges = cut_stages(costs, stages).value();
    std::vector<int> cuts = {0};
    for (const StageRange& range : ranges) {
      EXPECT_EQ(range.begin, cuts.back());
      EXPECT_GT(range.size(), 0);
      cuts.push_back(range.end);
    }
    ASSERT_EQ(static_cast<int>(ranges.size()), stages);
    EXPECT_EQ(cuts.back(), layers);
    EXPECT_EQ(maximum(costs, cuts), least);
  }
}

TEST(Sharding, EvenAmongEqualMaxima) {
  // The first layer sets the maximum whatever happens behind it; 3|3 is then better than 1|5.
  const StageCosts costs{{100, 1, 1, 1, 1, 1, 1}, 0, 0};
  EXPECT_THAT(cut_stages(costs, 3).value(),
              ElementsAre(StageRange{0, 1}, StageRange{1, 4}, StageRange{4, 7}));
}

TEST(Sharding, RefusesImpossibleCuts) {
  const StageCosts costs{{1, 2, 3}, 0, 0};
  EXPECT_EQ(cut_stages(costs, 0).error().field, "grid.stages");
  EXPECT_EQ(cut_stages(costs, 4).error().field, "grid.stages");
  EXPECT_EQ(cut_stages({{1, std::nan("")}, 0, 0}, 1).error().field, "costs");
  EXPECT_EQ(cut_stages({{1, -1}, 0, 0}, 1).error().field, "costs");
  EXPECT_EQ(cut_stages({{1, 1}, INFINITY, 0}, 1).error().field, "costs");
}

TEST(Sharding, SplitsExperts) {
  const auto even = split_experts(64, 3).value();
  EXPECT_EQ(even[0].size(), 22U);
  EXPECT_EQ(even[1].size(), 21U);
  EXPECT_EQ(even[1].front(), 22);
  EXPECT_EQ(even[2].back(), 63);
  EXPECT_TRUE(split_experts(2, 3).value()[2].empty());
  const std::int32_t counts[] = {1, 0, 3};
  EXPECT_THAT(split_experts(4, 3, counts).value()[2], ElementsAre(1, 2, 3));
  EXPECT_EQ(split_experts(5, 3, counts).error().field, "grid.expert_counts");
  EXPECT_EQ(split_experts(4, 2, counts).error().field, "grid.expert_counts");
  const std::int32_t negative[] = {5, -1};
  EXPECT_EQ(split_experts(4, 2, negative).error().field, "grid.expert_counts");
  EXPECT_EQ(split_experts(4, 0).error().field, "grid.lanes");
}

TEST(Sharding, ShardsOfAGridHoldEveryTensorOnce) {
  const ModelConfig c = lfm2_24b();
  const auto stages = cut_24b(4, DType::kBF16);
  const auto experts = split_experts(64, 3).value();
  std::vector<int> owners(40 * 64, 0);
  for (int stage = 0; stage < 4; ++stage) {
    for (const auto& owned : experts) {
      const RankShard shard = make_shard(c, stages, stage, owned);
      EXPECT_EQ(shard.first_stage, stage == 0);
      EXPECT_EQ(shard.last_stage, stage == 3);
      for (int layer = shard.layer_begin; layer < shard.layer_end; ++layer) {
        for (const int e : shard.experts[layer - shard.layer_begin]) ++owners[layer * 64 + e];
      }
    }
  }
  for (int layer = 0; layer < 40; ++layer) {
    for (int e = 0; e < 64; ++e) EXPECT_EQ(owners[layer * 64 + e], layer < 2 ? 0 : 1);
  }
}

// 24B figures: bf16 matrices; norms, taps, router and bias in f32. By hand: 23,843,661,440
// parameters of which 30 x 6,144 taps, 10 x 128 head norms, 4,983,168 router and 165,888 norms take
// 2 bytes more.
TEST(MemoryPlan, Footprint24B) {
  const auto footprint = assume_weights(lfm2_24b(), DType::kBF16, DType::kBF16).value();
  std::uint64_t total = footprint.embedding_bytes + footprint.final_norm_bytes;
  for (const auto& layer : footprint.layers) total += layer.total_bytes();
  EXPECT_EQ(total, 2 * (23'843'661'440ULL + 30 * 6'144 + 10 * 128 + 4'983'168 + 165'888));
  // The published tensor bytes of the Q8_0 file: matrices and embedding in Q8_0.
  const auto q8 = assume_weights(lfm2_24b(), DType::kQ8_0, DType::kQ8_0).value();
  total = q8.embedding_bytes + q8.final_norm_bytes;
  for (const auto& layer : q8.layers) total += layer.total_bytes();
  EXPECT_EQ(total, 25'349'560'832ULL);
  // And of the Q4_0 file, whose embedding is Q6_K.
  const auto q4 = assume_weights(lfm2_24b(), DType::kQ4_0, DType::kQ6_K).value();
  total = q4.embedding_bytes + q4.final_norm_bytes;
  for (const auto& layer : q4.layers) total += layer.total_bytes();
  EXPECT_EQ(total, 13'465'000'448ULL);
}

TEST(MemoryPlan, MeasuredFootprintIsEveryByteOfTheFile) {
  for (const bool tied : {true, false}) {
    test::TempDir dir;
    ModelConfig c = test::tiny_moe_config();
    c.tie_embeddings = tied;
    auto source = TensorSource::open(dir.write("m.gguf", test::gguf_model(c, true).bytes()));
    ASSERT_TRUE(source);
    const auto footprint = measure_weights(*source, c).value();
    std::uint64_t total = footprint.embedding_bytes + footprint.final_norm_bytes;
    if (!tied) total += footprint.head_bytes;
    for (const auto& layer : footprint.layers) total += layer.total_bytes();
    EXPECT_EQ(total, source->total_bytes());
    EXPECT_EQ(footprint.layers[1].expert_bytes, std::vector<std::uint64_t>(4, 3 * 32 * 32 * 2));
    EXPECT_EQ(footprint.head_bytes, footprint.embedding_bytes);
  }
}

TEST(MemoryPlan, RanksAddUpAndKnownFigures24B) {
  const ModelConfig c = lfm2_24b();
  const auto footprint = assume_weights(c, DType::kBF16, DType::kBF16).value();
  PlanLimits limits;
  limits.kv_tokens = 10'000;
  const auto stages = cut_24b(2, DType::kBF16);
  const auto plan = plan_memory(c, footprint, stages, split_experts(64, 4).value(), limits).value();
  ASSERT_EQ(plan.ranks.size(), 8U);
  EXPECT_EQ(plan.kv_blocks, 312);
  EXPECT_EQ(plan.kv_tokens, 9984);
  std::uint64_t experts = 0, kv = 0, conv = 0;
  for (const RankMemory& rank : plan.ranks) {
    EXPECT_EQ(rank.experts, 16);
    EXPECT_EQ(rank.layers, stages[rank.stage]);
    EXPECT_GT(rank.workspace_bytes, 0U);
    experts += rank.weight_bytes;
    if (rank.lane != 0) continue;
    kv += rank.kv_bytes_per_block;
    conv += rank.conv_bytes_per_slot;
    EXPECT_EQ(rank.attention_layers, 5);
  }
  EXPECT_EQ(kv, 32 * 20'480U);    // 20,480 bytes a token in bf16
  EXPECT_EQ(conv, 2 * 245'760U);  // f32: twice the bf16 figure
  std::uint64_t fixed = 0;
  for (const auto& layer : footprint.layers) fixed += layer.fixed_bytes;
  EXPECT_EQ(experts, 2 * 22'951'231'488ULL +
                         4 * (fixed + footprint.final_norm_bytes + 2 * footprint.embedding_bytes));
  EXPECT_THAT(format_plan(plan), HasSubstr("2 stages x 4 lanes, 9984 KV tokens"));

  // One rank maps the tied matrix once.
  const StageRange all{0, 40};
  const auto one =
      plan_memory(c, footprint, {&all, 1}, split_experts(64, 1).value(), limits).value();
  std::uint64_t total = footprint.embedding_bytes + footprint.final_norm_bytes;
  for (const auto& layer : footprint.layers) total += layer.total_bytes();
  EXPECT_EQ(one.ranks[0].weight_bytes, total);
}

TEST(MemoryPlan, FillsTheCacheOfTheTightestStage) {
  const ModelConfig c = lfm2_24b();
  const auto footprint = assume_weights(c, DType::kBF16, DType::kBF16).value();
  const auto stages = cut_24b(4, DType::kBF16);  // 3, 2, 3, 2 attention layers
  PlanLimits limits;
  limits.cache_bytes = std::uint64_t{1} << 30;
  const auto plan = plan_memory(c, footprint, stages, split_experts(64, 1).value(), limits).value();
  for (const RankMemory& rank : plan.ranks) {
    EXPECT_LE(rank.kv_bytes + rank.conv_bytes, limits.cache_bytes);
  }
  const RankMemory& tightest = plan.ranks[0];
  EXPECT_GT(tightest.kv_bytes + tightest.conv_bytes + tightest.kv_bytes_per_block,
            limits.cache_bytes);
}

TEST(MemoryPlan, NamesTheSettingThatDoesNotFit) {
  const ModelConfig c = lfm2_24b();
  const auto footprint = assume_weights(c, DType::kBF16, DType::kBF16).value();
  const StageRange all{0, 40};
  const auto experts = split_experts(64, 1).value();
  const auto field = [&](const PlanLimits& limits) {
    auto plan = plan_memory(c, footprint, {&all, 1}, experts, limits);
    return plan ? std::string("accepted") : plan.error().field;
  };
  PlanLimits limits;
  EXPECT_EQ(field(limits), "cache.kv_tokens");
  limits.cache_bytes = 1000;
  EXPECT_EQ(field(limits), "cache.memory_bytes");
  limits.cache_bytes = 32 * 491'520 + 31 * 32 * 20'480;  // the conv slots and 31 blocks
  EXPECT_EQ(field(limits), "cache.memory_bytes");
  limits.cache_bytes += 32 * 20'480;
  EXPECT_EQ(field(limits), "accepted");
  limits.kv_tokens = 100;
  EXPECT_EQ(field(limits), "cache.kv_tokens");
  limits.kv_tokens = -1;
  EXPECT_EQ(field(limits), "cache.kv_tokens");
  limits.kv_tokens = 10'000;
  limits.block_tokens = 0;
  EXPECT_EQ(field(limits), "cache.block_tokens");
  limits.block_tokens = 32;
  limits.kv_dtype = DType::kQ8_0;
  EXPECT_EQ(field(limits), "cache.kv_dtype");
  EXPECT_EQ(assume_weights(test::tiny_moe_config(), DType::kQ4_K, DType::kBF16).error().field,
            "dtype");
}

}  // namespace
}  // namespace millrace
