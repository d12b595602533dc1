#include "config/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace millrace {
namespace {

using nlohmann::json;
using test::kGoldenCheckpoints;
using test::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<ModelConfig> load_json(const TempDir& dir, const json& config) {
  dir.write("config.json", config.dump());
  return load_model_config(dir.string());
}

std::vector<LayerKind> kinds(int layers, const std::vector<int>& attention) {
  std::vector<LayerKind> out(static_cast<std::size_t>(layers), LayerKind::kShortConv);
  for (const int layer : attention) out[layer] = LayerKind::kAttention;
  return out;
}

// config.json as transformers 5.23 saves it (tests/golden/checkpoint/make.py).
TEST(ModelConfig, ReadsWhatTransformersSavesForMoe) {
  auto config = load_model_config(kGoldenCheckpoints + "/hf_moe");
  ASSERT_TRUE(config) << config.error().to_string();
  EXPECT_EQ(config->model_type, "lfm2_moe");
  EXPECT_EQ(config->hidden_size, 32);
  EXPECT_EQ(config->vocab_size, 48);
  EXPECT_EQ(config->num_heads, 2);
  EXPECT_EQ(config->num_kv_heads, 1);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->intermediate_size, 48);
  EXPECT_EQ(config->moe_intermediate_size, 16);
  EXPECT_EQ(config->num_experts, 4);
  EXPECT_EQ(config->num_experts_per_tok, 2);
  EXPECT_EQ(config->num_dense_layers, 1);
  EXPECT_EQ(config->conv_l_cache, 3);
  EXPECT_EQ(config->max_position_embeddings, 256);
  EXPECT_EQ(config->rope_theta, 1e6F);
  EXPECT_EQ(config->norm_eps, 1e-5F);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_TRUE(config->use_expert_bias);
  EXPECT_EQ(config->routed_scaling_factor, 1.0F);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_EQ(config->pad_token_id, 0);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(7));
  EXPECT_EQ(config->layers, kinds(4, {1, 3}));
}

TEST(ModelConfig, ReadsWhatTransformersSavesForDense) {
  auto config = load_model_config(kGoldenCheckpoints + "/hf_sharded");
  ASSERT_TRUE(config) << config.error().to_string();
  EXPECT_EQ(config->model_type, "lfm2");
  EXPECT_EQ(config->intermediate_size, 64);  // 96 * 2 / 3, already a multiple of 16
  EXPECT_EQ(config->rope_theta, 5e6F);
  EXPECT_EQ(config->num_experts, 0);
  EXPECT_EQ(config->layers, kinds(3, {2}));
}

TEST(ModelConfig, CountsTheParametersThatTorchCounts) {
  std::ifstream stream(kGoldenCheckpoints + "/expected.json");
  const json expected = json::parse(stream);
  for (const char* name : {"hf_moe", "hf_sharded"}) {
    auto config = load_model_config(kGoldenCheckpoints + "/" + name);
    ASSERT_TRUE(config);
    EXPECT_EQ(count_parameters(*config).total, expected[name]["parameters"].get<std::int64_t>())
        << name;
  }
}

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
  c.layers = kinds(40, {2, 6, 10, 14, 18, 22, 26, 30, 34, 38});
  return c;
}

TEST(ModelConfig, Counts24B) {
  TempDir dir;
  auto config = load_json(dir, test::config_json(lfm2_24b()));
  ASSERT_TRUE(config) << config.error().to_string();
  const ParameterCounts n = count_parameters(*config);
  EXPECT_EQ(n.embedding, 134'217'728);
  EXPECT_EQ(n.conv, 503'500'800);
  EXPECT_EQ(n.attention, 104'858'880);
  EXPECT_EQ(n.dense_ffn, 144'703'488);
  EXPECT_EQ(n.experts, 22'951'231'488);
  EXPECT_EQ(n.router, 4'983'168);
  EXPECT_EQ(n.norms, 165'888);
  EXPECT_EQ(n.total, 23'843'661'440);
  EXPECT_EQ(n.active, 2'326'881'920);
  EXPECT_THAT(describe(*config), HasSubstr("23.84 B parameters"));
}

// Old-style config.json of the released dense models: block_ff_dim with the adjust rule,
// full_attn_idxs, top-level rope_theta, tie_embedding. Widths and counts from the files' own sums.
struct Dense {
  const char* name;
  int layers, hidden, heads, ff_dim;
  bool adjust;
  std::vector<int> attention;
  int width;
  std::int64_t parameters;
};

TEST(ModelConfig, AppliesTheWidthRuleOfTheReleasedDenseModels) {
  const std::vector<int> six = {2, 5, 8, 10, 12, 14};
  const Dense models[] = {
      {"350M", 16, 1024, 16, 6656, true, six, 4608, 354'483'968},
      {"700M", 16, 1536, 24, 10240, true, six, 6912, 742'489'344},
      {"1.2B", 16, 2048, 32, 12288, true, six, 8192, 1'170'340'608},
      {"2.6B", 30, 2048, 32, 10752, false, {2, 5, 9, 13, 17, 21, 24, 27}, 10752, 2'569'272'320},
  };
  for (const Dense& m : models) {
    TempDir dir;
    const json config = {{"model_type", "lfm2"},
                         {"num_hidden_layers", m.layers},
                         {"hidden_size", m.hidden},
                         {"num_attention_heads", m.heads},
                         {"num_key_value_heads", 8},
                         {"vocab_size", 65536},
                         {"block_ff_dim", m.ff_dim},
                         {"intermediate_size", 1},
                         {"block_auto_adjust_ff_dim", m.adjust},
                         {"block_multiple_of", 256},
                         {"block_ffn_dim_multiplier", 1.0},
                         {"full_attn_idxs", m.attention},
                         {"conv_L_cache", 3},
                         {"conv_bias", false},
                         {"norm_eps", 1e-5},
                         {"rope_theta", 1000000.0},
                         {"max_position_embeddings", 128000},
                         {"tie_embedding", true},
                         {"use_pos_enc", true},
                         {"bos_token_id", 1},
                         {"eos_token_id", 7},
                         {"pad_token_id", 0}};
    auto loaded = load_json(dir, config);
    ASSERT_TRUE(loaded) << m.name << ": " << loaded.error().to_string();
    EXPECT_EQ(loaded->intermediate_size, m.width) << m.name;
    EXPECT_EQ(loaded->head_dim, 64) << m.name;
    EXPECT_EQ(loaded->layers, kinds(m.layers, m.attention)) << m.name;
    EXPECT_EQ(count_parameters(*loaded).total, m.parameters) << m.name;
  }
}

TEST(ModelConfig, GenerationConfigWinsForTokensAndMayListSeveralEnds) {
  TempDir dir;
  dir.write("generation_config.json", R"({"bos_token_id": 3, "eos_token_id": [7, 9]})");
  auto config = load_json(dir, test::config_json(test::tiny_moe_config()));
  ASSERT_TRUE(config) << config.error().to_string();
  EXPECT_EQ(config->bos_token_id, 3);
  EXPECT_EQ(config->pad_token_id, 0);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(7, 9));
}

TEST(ModelConfig, TieEmbeddingAliasWinsAndAbsenceMeansTied) {
  TempDir dir;
  json config = test::config_json(test::tiny_moe_config());
  config["tie_embedding"] = false;  // tie_word_embeddings stays true
  EXPECT_FALSE(load_json(dir, config).value().tie_embeddings);
  config.erase("tie_embedding");
  config.erase("tie_word_embeddings");
  EXPECT_TRUE(load_json(dir, config).value().tie_embeddings);
}

TEST(ModelConfig, GgufGivesTheSameConfigAsJson) {
  TempDir dir;
  for (const ModelConfig& wanted : {test::tiny_moe_config(), test::tiny_dense_config()}) {
    const std::string path = dir.write("m.gguf", test::gguf_model(wanted, true).bytes());
    auto from_gguf = load_model_config(path);
    ASSERT_TRUE(from_gguf) << from_gguf.error().to_string();
    auto from_json = load_json(dir, test::config_json(wanted));
    ASSERT_TRUE(from_json) << from_json.error().to_string();
    EXPECT_EQ(describe(*from_gguf), describe(*from_json));
    EXPECT_EQ(from_gguf->layers, wanted.layers);
    EXPECT_EQ(from_gguf->intermediate_size, wanted.intermediate_size);
    EXPECT_EQ(from_gguf->rope_theta, wanted.rope_theta);
    EXPECT_EQ(from_gguf->norm_eps, wanted.norm_eps);
    EXPECT_EQ(from_gguf->conv_l_cache, wanted.conv_l_cache);
    EXPECT_EQ(from_gguf->max_position_embeddings, wanted.max_position_embeddings);
    EXPECT_EQ(from_gguf->num_dense_layers, wanted.num_dense_layers);
    EXPECT_EQ(from_gguf->bos_token_id, 1);
    EXPECT_EQ(from_gguf->pad_token_id, 0);
    EXPECT_THAT(from_gguf->eos_token_ids, ElementsAre(7));
  }
}

TEST(ModelConfig, GgufTensorShapesWinOverWrongWidthKeys) {
  TempDir dir;
  const ModelConfig config = test::tiny_dense_config();
  test::GgufBuilder wrong;
  ModelConfig claimed = config;
  claimed.intermediate_size = 96;
  test::gguf_metadata(wrong, claimed);
  wrong.tensor("blk.0.ffn_gate.weight", {32, 64}, 30, std::string(32 * 64 * 2, 'x'));
  auto loaded = load_model_config(dir.write("m.gguf", wrong.bytes()));
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  EXPECT_EQ(loaded->intermediate_size, 64);
}

struct BadConfig {
  const char* name;
  std::function<void(json&)> edit;
  ErrorCode code;
  const char* field;
  const char* message;
};

void PrintTo(const BadConfig& fault, std::ostream* out) { *out << fault.name; }

class ConfigFault : public ::testing::TestWithParam<BadConfig> {};

TEST_P(ConfigFault, NamesTheFieldAndTheFile) {
  TempDir dir;
  json config = test::config_json(test::tiny_moe_config());
  GetParam().edit(config);
  auto loaded = load_json(dir, config);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, GetParam().code) << loaded.error().to_string();
  EXPECT_EQ(loaded.error().field, GetParam().field) << loaded.error().to_string();
  EXPECT_THAT(loaded.error().message, HasSubstr(GetParam().message));
  EXPECT_THAT(loaded.error().message, HasSubstr("config.json"));
}

constexpr auto kBad = ErrorCode::kInvalidArgument;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

INSTANTIATE_TEST_SUITE_P(
    All, ConfigFault,
    ::testing::Values(
        BadConfig{"llama", [](json& j) { j["model_type"] = "llama"; }, kUnsupported, "model_type",
              "\"llama\" is not served"},
        BadConfig{"lfm3", [](json& j) { j["model_type"] = "lfm3"; }, kUnsupported, "model_type", "lfm3"},
        BadConfig{"type_number", [](json& j) { j["model_type"] = 3; }, kBad, "model_type", "expected"},
        BadConfig{"quantised", [](json& j) { j["quantization_config"] = {{"bits", 8}}; }, kUnsupported,
              "quantization_config", "GGUF"},
        BadConfig{"conv_bias", [](json& j) { j["conv_bias"] = true; }, kUnsupported, "conv_bias",
              "expected false"},
        BadConfig{"no_positions", [](json& j) { j["use_pos_enc"] = false; }, kUnsupported, "use_pos_enc",
              "RoPE"},
        BadConfig{"negative", [](json& j) { j["hidden_size"] = -2048; }, kBad, "hidden_size",
              "found -2048"},
        BadConfig{"zero", [](json& j) { j["num_key_value_heads"] = 0; }, kBad, "num_key_value_heads",
              "found 0"},
        BadConfig{"huge", [](json& j) { j["vocab_size"] = 1ULL << 40; }, kBad, "vocab_size",
              "found 1099511627776"},
        BadConfig{"beyond_int64", [](json& j) { j["vocab_size"] = ~0ULL; }, kBad, "vocab_size",
              "found 18446744073709551615"},
        BadConfig{"string", [](json& j) { j["num_experts"] = "64"; }, kBad, "num_experts", "\"64\""},
        BadConfig{"float", [](json& j) { j["num_experts"] = 4.0; }, kBad, "num_experts", "4.0"},
        BadConfig{"list", [](json& j) { j["num_attention_heads"] = {1, 2}; }, kBad,
              "num_attention_heads", "[1,2]"},
        BadConfig{"flag_number", [](json& j) { j["norm_topk_prob"] = 1; }, kBad, "norm_topk_prob",
              "true or false"},
        BadConfig{"eps_zero", [](json& j) { j["norm_eps"] = 0; }, kBad, "norm_eps", "above 0"},
        BadConfig{"eps_string", [](json& j) { j["norm_eps"] = "1e-5"; }, kBad, "norm_eps", "1e-5"},
        BadConfig{"theta_negative", [](json& j) { j["rope_theta"] = -1.0; }, kBad, "rope_theta", "-1.0"},
        BadConfig{"theta_missing", [](json& j) { j.erase("rope_theta"); }, kBad, "rope_theta", "missing"},
        BadConfig{"rope_scaling", [](json& j) { j["rope_scaling"] = {{"type", "yarn"}, {"factor", 4}}; },
              kUnsupported, "rope_scaling", "yarn"},
        BadConfig{"rope_parameters_type",
              [](json& j) { j["rope_parameters"] = {{"rope_type", "llama3"}, {"rope_theta", 1e6}}; },
              kUnsupported, "rope_parameters", "llama3"},
        BadConfig{"rope_partial",
              [](json& j) { j["rope_parameters"] = {{"partial_rotary_factor", 0.5}}; }, kUnsupported,
              "rope_parameters", "partial_rotary_factor"},
        BadConfig{"rope_contradiction",
              [](json& j) { j["rope_parameters"] = {{"rope_theta", 5e6}}; }, kBad, "rope_theta",
              "contradicts"},
        BadConfig{"rope_inner_type",
              [](json& j) {
                j.erase("rope_theta");
                j["rope_parameters"] = {{"rope_theta", "big"}};
              },
              kBad, "rope_parameters", "\"big\""},
        BadConfig{"rope_list", [](json& j) { j["rope_parameters"] = {1, 2}; }, kBad, "rope_parameters",
              "an object"},
        BadConfig{"no_layers", [](json& j) { j.erase("layer_types"); }, kBad, "layer_types", "missing"},
        BadConfig{"short_layers", [](json& j) { j["layer_types"] = {"conv"}; }, kBad, "layer_types",
              "list of 3"},
        BadConfig{"layer_kind", [](json& j) { j["layer_types"][1] = "sliding_attention"; }, kUnsupported,
              "layer_types", "entry 1 is \"sliding_attention\""},
        BadConfig{"layer_number", [](json& j) { j["layer_types"][1] = 7; }, kBad, "layer_types",
              "entry 1 is 7"},
        BadConfig{"attn_idxs_range",
              [](json& j) {
                j.erase("layer_types");
                j["full_attn_idxs"] = {1, 3};
              },
              kBad, "full_attn_idxs", "found 3"},
        BadConfig{"attn_idxs_twice",
              [](json& j) {
                j.erase("layer_types");
                j["full_attn_idxs"] = {1, 1};
              },
              kBad, "full_attn_idxs", "twice"},
        BadConfig{"attn_idxs_contradict", [](json& j) { j["full_attn_idxs"] = {0}; }, kBad,
              "full_attn_idxs", "contradicts layer_types"},
        BadConfig{"heads_divide", [](json& j) { j["num_key_value_heads"] = 3; }, kBad,
              "num_key_value_heads", "divisor"},
        BadConfig{"head_dim",
              [](json& j) {
                j.erase("head_dim");
                j["num_attention_heads"] = 6;
              },
              kBad, "num_attention_heads", "divisor of hidden_size 32"},
        BadConfig{"head_dim_8", [](json& j) { j["head_dim"] = 8; }, kUnsupported, "head_dim",
              "multiple of 16"},
        BadConfig{"topk_over_experts", [](json& j) { j["num_experts_per_tok"] = 5; }, kBad,
              "num_experts_per_tok", "at most num_experts 4"},
        BadConfig{"dense_over_layers", [](json& j) { j["num_dense_layers"] = 4; }, kBad,
              "num_dense_layers", "3 layers"},
        BadConfig{"taps_1", [](json& j) { j["conv_L_cache"] = 1; }, kBad, "conv_L_cache", "from 2"},
        BadConfig{"eos_missing", [](json& j) { j.erase("eos_token_id"); }, kBad, "eos_token_id",
              "no answer ends"},
        BadConfig{"eos_outside", [](json& j) { j["eos_token_id"] = 40; }, kBad, "eos_token_id",
              "below vocab_size 40"},
        BadConfig{"eos_word", [](json& j) { j["eos_token_id"] = {7, "x"}; }, kBad, "eos_token_id", "\"x\""},
        BadConfig{"bos_outside", [](json& j) { j["bos_token_id"] = 1000; }, kBad, "bos_token_id", "1000"}),
    [](const auto& test_info) { return test_info.param.name; });

// Every field that is read and has no stated meaning when absent must be asked for by name.
TEST(ModelConfig, NamesEveryMissingField) {
  for (const char* field :
       {"hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads",
        "num_hidden_layers", "intermediate_size", "conv_L_cache", "conv_bias",
        "max_position_embeddings", "norm_eps", "num_dense_layers", "num_experts",
        "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "use_expert_bias",
        "routed_scaling_factor", "model_type"}) {
    TempDir dir;
    json config = test::config_json(test::tiny_moe_config());
    ASSERT_EQ(config.erase(field), 1U) << field;
    auto loaded = load_json(dir, config);
    ASSERT_FALSE(loaded) << field;
    EXPECT_EQ(loaded.error().field, field);
    EXPECT_THAT(loaded.error().message, HasSubstr("is missing"));
  }
}

TEST(ModelConfig, RefusesWhatIsNotAConfig) {
  TempDir dir;
  EXPECT_EQ(load_model_config(dir / "nowhere").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(load_model_config(dir.string()).error().code, ErrorCode::kNotFound);  // no config.json
  const auto message = [&](std::string_view text) {
    dir.write("config.json", text);
    return load_model_config(dir.string()).error().to_string();
  };
  EXPECT_THAT(message("{\"hidden_size\": NaN}"), HasSubstr("is not valid JSON"));
  EXPECT_THAT(message("{\"norm_eps\": 1e999}"), HasSubstr("is not valid JSON"));
  EXPECT_THAT(message("{\"a\": "), HasSubstr("is not valid JSON"));
  EXPECT_THAT(message("[1, 2]"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(message("{\"num_experts\": 1, \"num_experts\": 2}"), HasSubstr("twice"));
  EXPECT_THAT(message(std::string(1 << 20, '[')), HasSubstr("is not valid JSON"));
  EXPECT_THAT(message(std::string(17 << 20, ' ')), HasSubstr("at most"));
  dir.write("config.json", test::config_json(test::tiny_moe_config()).dump());
  dir.write("generation_config.json", "{\"eos_token_id\": -1}");
  EXPECT_EQ(load_model_config(dir.string()).error().field, "eos_token_id");
}

TEST(ModelConfig, NamesGgufFaults) {
  TempDir dir;
  const auto fault = [&](const ModelConfig& config, const auto& edit) {
    test::GgufBuilder b;
    test::gguf_metadata(b, config);
    edit(b);
    auto loaded = load_model_config(dir.write("m.gguf", b.bytes()));
    return loaded ? std::string("accepted") : loaded.error().to_string();
  };
  const auto nothing = [](test::GgufBuilder&) {};
  ModelConfig config = test::tiny_moe_config();
  EXPECT_EQ(fault(config, nothing), "accepted");
  EXPECT_THAT(fault(config, [](auto& b) { b.string("lfm2moe.rope.scaling.type", "yarn"); }),
              HasSubstr("lfm2moe.rope.scaling.type"));
  EXPECT_THAT(fault(config, [](auto& b) { b.u32("lfm2moe.attention.value_length", 32); }),
              HasSubstr("value_length"));
  config.num_experts_per_tok = 5;
  EXPECT_THAT(fault(config, nothing), HasSubstr("num_experts_per_tok"));
  config = test::tiny_moe_config();
  config.hidden_size = -1;
  EXPECT_THAT(fault(config, nothing), HasSubstr("lfm2moe.embedding_length"));
  config = test::tiny_moe_config();
  config.rope_theta = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(fault(config, nothing), HasSubstr("lfm2moe.rope.freq_base"));

  test::GgufBuilder llama;
  llama.string("general.architecture", "llama");
  auto loaded = load_model_config(dir.write("llama.gguf", llama.bytes()));
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(loaded.error().to_string(), HasSubstr("\"llama\" is not served"));

  test::GgufBuilder short_pattern;
  short_pattern.i32s("lfm2moe.attention.head_count_kv", {0});
  short_pattern.string("general.architecture", "lfm2moe");
  short_pattern.u32("lfm2moe.block_count", 3);
  short_pattern.u32("lfm2moe.embedding_length", 32);
  EXPECT_THAT(load_model_config(dir.write("s.gguf", short_pattern.bytes())).error().to_string(),
              HasSubstr("one entry for each of the 3 layers"));
}

TEST(ModelConfig, DamagedJsonNeverCrashes) {
  TempDir dir;
  const std::string good = test::config_json(test::tiny_moe_config()).dump();
  std::mt19937_64 random(2);
  int accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    dir.write("config.json", test::damage(good, good.size(), random));
    auto config = load_model_config(dir.string());
    if (!config) continue;
    ++accepted;
    EXPECT_GT(count_parameters(*config).total, 0);
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 2900);
}

}  // namespace
}  // namespace millrace
