#include "worker/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/temp_dir.h"
#include "worker/checkpoint/expected_tensors.h"
#include "worker/checkpoint/prefault.h"
#include "worker/sharding.h"

namespace millrace {
namespace {

using test::ExpertLayout;
using test::TempDir;
using test::TensorData;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Opened {
  TempDir dir;
  std::optional<TensorSource> source;

  explicit Opened(const std::vector<TensorData>& tensors) {
    auto opened =
        TensorSource::open(dir.write("model.safetensors", test::safetensors_bytes(tensors)));
    if (!opened) throw std::runtime_error(opened.error().to_string());
    source = std::move(*opened);
  }
};

const TensorData& named(const std::vector<TensorData>& tensors, const std::string& name) {
  for (const TensorData& t : tensors) {
    if (t.name == name) return t;
  }
  throw std::runtime_error("no tensor " + name);
}

std::vector<float> bf16_values(const std::string& bytes) {
  std::vector<float> out(bytes.size() / 2);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    std::memcpy(&out[i], &wide, 4);
  }
  return out;
}

bool same_bytes(const kernels::WeightView& view, const TensorData& t) {
  return static_cast<std::size_t>(view.bytes()) == t.bytes.size() &&
         std::memcmp(view.data, t.bytes.data(), t.bytes.size()) == 0;
}

TEST(Weights, WholeModelHasEveryTensorInItsPlace) {
  const ModelConfig config = test::tiny_moe_config();
  const auto tensors = test::model_tensors(config, ExpertLayout::kPerExpert);
  Opened opened(tensors);
  auto loaded = load_weights(*opened.source, config, whole_model(config));
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  const ModelWeights& w = *loaded;
  ASSERT_EQ(w.layers.size(), 3U);
  EXPECT_TRUE(same_bytes(w.embed, named(tensors, "model.embed_tokens.weight")));
  EXPECT_EQ(w.lm_head.data, w.embed.data);
  EXPECT_EQ(w.final_norm, bf16_values(named(tensors, "model.embedding_norm.weight").bytes));

  const LayerWeights& conv = w.layers[0];
  ASSERT_TRUE(conv.conv && conv.dense && !conv.attention && !conv.moe);
  EXPECT_EQ(conv.operator_norm,
            bf16_values(named(tensors, "model.layers.0.operator_norm.weight").bytes));
  EXPECT_EQ(conv.ffn_norm, bf16_values(named(tensors, "model.layers.0.ffn_norm.weight").bytes));
  EXPECT_EQ(conv.conv->taps, bf16_values(named(tensors, "model.layers.0.conv.conv.weight").bytes));
  EXPECT_TRUE(same_bytes(conv.conv->in_proj, named(tensors, "model.layers.0.conv.in_proj.weight")));
  EXPECT_EQ(conv.conv->in_proj.rows, 96);
  EXPECT_TRUE(
      same_bytes(conv.conv->out_proj, named(tensors, "model.layers.0.conv.out_proj.weight")));
  EXPECT_TRUE(same_bytes(conv.dense->w1, named(tensors, "model.layers.0.feed_forward.w1.weight")));
  EXPECT_TRUE(same_bytes(conv.dense->w3, named(tensors, "model.layers.0.feed_forward.w3.weight")));
  EXPECT_TRUE(same_bytes(conv.dense->w2, named(tensors, "model.layers.0.feed_forward.w2.weight")));

  const LayerWeights& attn = w.layers[1];
  ASSERT_TRUE(attn.attention && attn.moe && !attn.conv && !attn.dense);
  const std::string p = "model.layers.1.self_attn.";
  EXPECT_TRUE(same_bytes(attn.attention->q_proj, named(tensors, p + "q_proj.weight")));
  EXPECT_TRUE(same_bytes(attn.attention->k_proj, named(tensors, p + "k_proj.weight")));
  EXPECT_TRUE(same_bytes(attn.attention->v_proj, named(tensors, p + "v_proj.weight")));
  EXPECT_TRUE(same_bytes(attn.attention->out_proj, named(tensors, p + "out_proj.weight")));
  EXPECT_EQ(attn.attention->q_norm, bf16_values(named(tensors, p + "q_layernorm.weight").bytes));
  EXPECT_EQ(attn.attention->k_norm, bf16_values(named(tensors, p + "k_layernorm.weight").bytes));
  const std::string ff = "model.layers.1.feed_forward.";
  EXPECT_TRUE(same_bytes(attn.moe->router, named(tensors, ff + "gate.weight")));
  ASSERT_EQ(attn.moe->expert_bias.size(), 4U);
  EXPECT_EQ(std::memcmp(attn.moe->expert_bias.data(),
                        named(tensors, ff + "expert_bias").bytes.data(), 16),
            0);
  EXPECT_THAT(attn.moe->expert_ids, ElementsAre(0, 1, 2, 3));
  for (int e = 0; e < 4; ++e) {
    const std::string x = ff + "experts." + std::to_string(e) + ".";
    EXPECT_TRUE(same_bytes(attn.moe->experts[e].w1, named(tensors, x + "w1.weight")));
    EXPECT_TRUE(same_bytes(attn.moe->experts[e].w3, named(tensors, x + "w3.weight")));
    EXPECT_TRUE(same_bytes(attn.moe->experts[e].w2, named(tensors, x + "w2.weight")));
  }
}

TEST(Weights, AShardHasItsStageAndItsExpertSlotsOnly) {
  const ModelConfig config = test::tiny_moe_config();
  const auto tensors = test::model_tensors(config, ExpertLayout::kPacked);
  Opened opened(tensors);
  RankShard shard{1, 3, false, true, {{3, -1, 0}, {2}}};
  auto loaded = load_weights(*opened.source, config, shard);
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  ASSERT_EQ(loaded->layers.size(), 2U);
  EXPECT_EQ(loaded->layers[0].layer, 1);
  EXPECT_EQ(loaded->embed.data, nullptr);
  EXPECT_NE(loaded->lm_head.data, nullptr);
  const MoeWeights& moe = *loaded->layers[0].moe;
  ASSERT_EQ(moe.experts.size(), 3U);
  EXPECT_EQ(moe.experts[1].w1.data, nullptr);
  const auto single = test::model_tensors(config, ExpertLayout::kPerExpert);
  EXPECT_TRUE(same_bytes(moe.experts[0].w1,
                         named(single, "model.layers.1.feed_forward.experts.3.w1.weight")));
  EXPECT_TRUE(same_bytes(moe.experts[2].w2,
                         named(single, "model.layers.1.feed_forward.experts.0.w2.weight")));

  shard = {0, 1, true, false, {{}}};
  loaded = load_weights(*opened.source, config, shard);
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  EXPECT_NE(loaded->embed.data, nullptr);
  EXPECT_EQ(loaded->lm_head.data, nullptr);
  EXPECT_TRUE(loaded->final_norm.empty());
}

TEST(Weights, RefusesAShardThatDoesNotFitTheModel) {
  const ModelConfig config = test::tiny_moe_config();
  Opened opened(test::model_tensors(config, ExpertLayout::kPacked));
  const auto field = [&](const RankShard& shard) {
    auto loaded = load_weights(*opened.source, config, shard);
    return loaded ? std::string("accepted") : loaded.error().field;
  };
  EXPECT_EQ(field({0, 4, true, true, {{}, {}, {}, {}}}), "shard.layers");
  EXPECT_EQ(field({2, 2, true, true, {}}), "shard.layers");
  EXPECT_EQ(field({-1, 2, true, true, {{}, {}, {}}}), "shard.layers");
  EXPECT_EQ(field({0, 3, true, true, {{}, {0}}}), "shard.experts");
  EXPECT_EQ(field({0, 3, true, true, {{0}, {0}, {0}}}), "shard.experts[0]");
  EXPECT_EQ(field({0, 3, true, true, {{}, {4}, {0}}}), "shard.experts[1]");
  EXPECT_EQ(field({0, 3, true, true, {{}, {0}, {1, 1}}}), "shard.experts[2]");
}

struct Fault {
  const char* name;
  std::function<void(std::vector<TensorData>&)> edit;
  ErrorCode code;
  const char* field;
  const char* message;
};

void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

class WeightsFault : public ::testing::TestWithParam<Fault> {};

TEST_P(WeightsFault, IsRefusedByNameOnEveryRank) {
  const ModelConfig config = test::tiny_moe_config();
  auto tensors = test::model_tensors(config, ExpertLayout::kPerExpert);
  GetParam().edit(tensors);
  Opened opened(tensors);
  // Also by the rank that owns neither the layer nor the expert.
  for (const RankShard& shard : {whole_model(config), RankShard{0, 1, true, false, {{}}},
                                 RankShard{2, 3, false, true, {{1}}}}) {
    auto loaded = load_weights(*opened.source, config, shard);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, GetParam().code) << loaded.error().to_string();
    EXPECT_EQ(loaded.error().field, GetParam().field);
    EXPECT_THAT(loaded.error().message, HasSubstr(GetParam().message));
    EXPECT_THAT(loaded.error().message, HasSubstr("model.safetensors"));
  }
}

TensorData& find(std::vector<TensorData>& tensors, const std::string& name) {
  return const_cast<TensorData&>(named(tensors, name));
}
void drop(std::vector<TensorData>& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const TensorData& t) { return t.name == name; });
}
void reshape(std::vector<TensorData>& tensors, const std::string& name,
             std::vector<std::int64_t> shape) {
  TensorData& t = find(tensors, name);
  std::size_t bytes = t.dtype == "F32" ? 4 : 2;
  for (const std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
  t.shape = std::move(shape);
  t.bytes.assign(bytes, 'z');
}

constexpr auto kMissing = ErrorCode::kNotFound;
constexpr auto kBad = ErrorCode::kInvalidArgument;

INSTANTIATE_TEST_SUITE_P(
    All, WeightsFault,
    ::testing::Values(
        Fault{"no_embedding", [](auto& all) { drop(all, "model.embed_tokens.weight"); }, kMissing,
              "model.embed_tokens.weight", "missing, expected shape [40, 32]"},
        Fault{"no_final_norm", [](auto& all) { drop(all, "model.embedding_norm.weight"); },
              kMissing, "model.embedding_norm.weight", "missing"},
        Fault{"no_expert",
              [](auto& all) { drop(all, "model.layers.1.feed_forward.experts.2.w3.weight"); },
              kMissing, "model.layers.1.feed_forward.experts.2.w3.weight",
              "missing, expected shape [32, 32]"},
        Fault{"no_bias", [](auto& all) { drop(all, "model.layers.2.feed_forward.expert_bias"); },
              kMissing, "model.layers.2.feed_forward.expert_bias", "missing"},
        Fault{"no_q_norm",
              [](auto& all) { drop(all, "model.layers.1.self_attn.q_layernorm.weight"); }, kMissing,
              "model.layers.1.self_attn.q_layernorm.weight", "missing"},
        Fault{"surplus_head",
              [](auto& all) {
                all.push_back({"lm_head.weight", "BF16", {40, 32}, std::string(2560, 'h')});
              },
              kBad, "lm_head.weight", "tied to the embedding"},
        Fault{
            "surplus_layer",
            [](auto& all) {
              all.push_back({"model.layers.3.ffn_norm.weight", "BF16", {32}, std::string(64, 'h')});
            },
            kBad, "model.layers.3.ffn_norm.weight", "no such tensor"},
        Fault{"surplus_expert",
              [](auto& all) {
                all.push_back({"model.layers.1.feed_forward.experts.4.w1.weight",
                               "BF16",
                               {32, 32},
                               std::string(2048, 'h')});
              },
              kBad, "model.layers.1.feed_forward.experts.4.w1.weight", "no such tensor"},
        Fault{"both_layouts",
              [](auto& all) {
                all.push_back({"model.layers.1.feed_forward.experts.down_proj",
                               "BF16",
                               {4, 32, 32},
                               std::string(8192, 'h')});
              },
              kBad, "model.layers.1.feed_forward.experts.0.w2.weight", "no such tensor"},
        Fault{"o_proj_name",
              [](auto& all) {
                find(all, "model.layers.1.self_attn.out_proj.weight").name =
                    "model.layers.1.self_attn.o_proj.weight";
              },
              kMissing, "model.layers.1.self_attn.out_proj.weight", "missing"},
        Fault{"transposed",
              [](auto& all) {
                reshape(all, "model.layers.0.feed_forward.w1.weight", {32, 64});
              },
              kBad, "model.layers.0.feed_forward.w1.weight",
              "expected shape [64, 32], found [32, 64]"},
        Fault{"taps_4",
              [](auto& all) {
                reshape(all, "model.layers.2.conv.conv.weight", {32, 1, 4});
              },
              kBad, "model.layers.2.conv.conv.weight",
              "expected shape [32, 1, 3], found [32, 1, 4]"},
        Fault{"vocab",
              [](auto& all) {
                reshape(all, "model.embed_tokens.weight", {41, 32});
              },
              kBad, "model.embed_tokens.weight", "found [41, 32]"},
        Fault{"rank",
              [](auto& all) {
                reshape(all, "model.layers.0.operator_norm.weight", {1, 32});
              },
              kBad, "model.layers.0.operator_norm.weight", "expected shape [32], found [1, 32]"}),
    [](const auto& test_info) { return test_info.param.name; });

TEST(Weights, RefusesAQuantisedRouterAndNorm) {
  ModelConfig config = test::tiny_moe_config();
  for (const char* name : {"blk.1.ffn_gate_inp.weight", "blk.1.attn_norm.weight"}) {
    TempDir dir;
    test::GgufBuilder b;
    test::gguf_metadata(b, config);
    for (const TensorData& t : test::model_tensors(config, ExpertLayout::kPacked)) {
      std::vector<std::uint64_t> dims(t.shape.rbegin(), t.shape.rend());
      if (test::gguf_name(t.name) == name) {
        b.tensor(name, dims, 8, std::string(t.bytes.size() / 64 * 34, 'q'));
      } else {
        b.tensor(test::gguf_name(t.name), dims, t.dtype == "F32" ? 0 : 30, t.bytes);
      }
    }
    auto source = TensorSource::open(dir.write("m.gguf", b.bytes()));
    ASSERT_TRUE(source) << source.error().to_string();
    auto loaded = load_weights(*source, config, whole_model(config));
    ASSERT_FALSE(loaded) << name;
    EXPECT_THAT(loaded.error().message, HasSubstr("expected f32, f16 or bf16, found q8_0"));
  }
}

TEST(Weights, SmallTensorsOfEveryPlainTypeBecomeTheSameF32) {
  ModelConfig config = test::tiny_dense_config();
  // 1.5, -0.375, 2^-14 and 65504 are exact in f16 and f32; the bf16 list replaces the last one.
  const std::uint16_t f16[] = {0x3e00, 0xb600, 0x0400, 0x7bff};
  const float f32[] = {1.5F, -0.375F, 6.103515625e-05F, 65504.0F};
  for (const char* dtype : {"F16", "F32"}) {
    auto tensors = test::model_tensors(config, ExpertLayout::kPerExpert);
    TensorData& norm = find(tensors, "model.embedding_norm.weight");
    norm.dtype = dtype;
    norm.bytes.clear();
    for (int i = 0; i < 32; ++i) {
      if (norm.dtype == "F16") test::append(norm.bytes, f16[i % 4]);
      if (norm.dtype == "F32") test::append(norm.bytes, f32[i % 4]);
    }
    Opened opened(tensors);
    auto loaded = load_weights(*opened.source, config, whole_model(config));
    ASSERT_TRUE(loaded) << loaded.error().to_string();
    for (int i = 0; i < 32; ++i) EXPECT_EQ(loaded->final_norm[i], f32[i % 4]) << dtype;
  }
}

// Pages of the file that belong wholly to tensors outside `views` become unreadable; reading one of
// them would end the process.
void forbid_others(const TensorSource& source,
                   const std::vector<std::span<const std::byte>>& views) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto bytes = source.files()[0].bytes();
  auto at = reinterpret_cast<std::uintptr_t>(bytes.data());
  const auto forbid = [&](std::uintptr_t begin, std::uintptr_t end) {
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin >= end) return;
    ASSERT_EQ(::mprotect(reinterpret_cast<void*>(begin), end - begin, PROT_NONE), 0);
  };
  for (const auto view : views) {
    const auto begin = reinterpret_cast<std::uintptr_t>(view.data());
    forbid(at, begin);
    at = begin + view.size();
  }
  forbid(at, reinterpret_cast<std::uintptr_t>(bytes.data() + bytes.size()));
}

TEST(WeightsDeathTest, ARankReadsOnlyThePagesItOwns) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  ModelConfig config = test::tiny_moe_config();
  config.hidden_size = 256;  // experts of 32 KiB a matrix, so that whole pages belong to one tensor
  config.moe_intermediate_size = 64;
  Opened opened(test::model_tensors(config, ExpertLayout::kPacked));
  const RankShard mine{1, 2, false, false, {{2}}};
  const TensorSource& source = *opened.source;
  std::vector<std::span<const std::byte>> owned;
  const auto keep = [&](const kernels::WeightView& view) {
    owned.emplace_back(view.data, static_cast<std::size_t>(view.bytes()));
  };
  for (const TensorEntry& entry : source.tensors()) {
    const bool expert = entry.name.find("experts.") != std::string::npos;
    if (entry.name.starts_with("model.layers.1.") && !expert) keep(entry.view());
  }
  for (const ExpertPart part : {ExpertPart::kGate, ExpertPart::kUp, ExpertPart::kDown}) {
    keep(source.expert(1, 2, part).value());
  }
  forbid_others(source, merge_ranges(owned));

  LoadOptions options;
  options.prefault = true;
  options.threads = 2;
  auto loaded = load_weights(source, config, mine, options);
  EXPECT_TRUE(loaded) << loaded.error().to_string();
  // The child that dies below runs all of this again and cleans up nothing: its folder goes before.
  // The mapping stays.
  std::filesystem::remove_all(opened.dir.string());
  // The proof that the guard guards: another expert's pages are not readable.
  EXPECT_DEATH(
      static_cast<void>(load_weights(source, config, {1, 2, false, false, {{1}}}, options)), "");
}

TEST(Weights, PrefaultReportsProgressUpToTheShardsBytes) {
  const ModelConfig config = test::tiny_moe_config();
  Opened opened(test::model_tensors(config, ExpertLayout::kPacked));
  for (const int threads : {1, 3}) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> calls;
    LoadOptions options;
    options.prefault = true;
    options.threads = threads;
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      calls.emplace_back(done, total);
    };
    auto loaded = load_weights(*opened.source, config, whole_model(config), options);
    ASSERT_TRUE(loaded);
    ASSERT_FALSE(calls.empty());
    std::uint64_t last = 0;
    for (const auto& [done, total] : calls) {
      EXPECT_EQ(total, loaded->mapped_bytes);
      EXPECT_GE(done, last);
      last = done;
    }
    EXPECT_EQ(last, loaded->mapped_bytes);
    EXPECT_LE(loaded->mapped_bytes, opened.source->total_bytes());
  }
}

TEST(Prefault, MergesOverlappingAndTouchingRanges) {
  const std::vector<std::byte> memory(100);
  const auto range = [&](std::size_t at, std::size_t size) {
    return std::span<const std::byte>(memory.data() + at, size);
  };
  const auto merged = merge_ranges(
      {range(50, 10), range(0, 10), range(5, 10), range(15, 5), range(52, 3), range(90, 0)});
  ASSERT_EQ(merged.size(), 2U);
  EXPECT_EQ(merged[0].data(), memory.data());
  EXPECT_EQ(merged[0].size(), 20U);
  EXPECT_EQ(merged[1].size(), 10U);
}

// The count of tensors of the released checkpoints is a check on the whole list.
TEST(ExpectedTensors, CountsAsInTheReleasedCheckpoints) {
  ModelConfig c = test::tiny_moe_config();
  c.num_experts = 64;
  c.num_dense_layers = 2;
  c.layers.assign(40, LayerKind::kShortConv);
  for (int layer = 2; layer < 40; layer += 4) c.layers[layer] = LayerKind::kAttention;
  Opened empty({});
  EXPECT_EQ(expected_tensors(c, *empty.source).size(), 7610U);  // LFM2-24B-A2B
  c.num_experts = 32;
  c.layers.assign(24, LayerKind::kShortConv);
  for (const int layer : {2, 6, 10, 14, 18, 21}) c.layers[layer] = LayerKind::kAttention;
  EXPECT_EQ(expected_tensors(c, *empty.source).size(), 2302U);  // LFM2.5-8B-A1B
}

}  // namespace
}  // namespace millrace
