#include "worker/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"
#include "worker/sharding.h"
#include "worker/weights.h"

namespace millrace {
namespace {

using nlohmann::json;
using test::TempDir;
using test::TensorData;
using ::testing::HasSubstr;

const std::string kGolden = MILLRACE_SOURCE_DIR "/tests/golden/checkpoint";

double value_at(const TensorEntry& entry, std::size_t i) {
  if (entry.dtype == kernels::DType::kF32) {
    float value = 0;
    std::memcpy(&value, entry.data + 4 * i, 4);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, entry.data + 2 * i, 2);
  return kernels::bf16_to_f32(bits);
}

double sum_of(const TensorEntry& entry) {
  double sum = 0;
  const std::size_t size = entry.dtype == kernels::DType::kF32 ? 4 : 2;
  for (std::size_t i = 0; i < entry.bytes / size; ++i) sum += value_at(entry, i);
  return sum;
}

double view_sum(const kernels::WeightView& view) {
  TensorEntry entry;
  entry.dtype = view.dtype;
  entry.data = view.data;
  entry.bytes = static_cast<std::uint64_t>(view.bytes());
  return sum_of(entry);
}

json golden(const char* model) {
  std::ifstream stream(kGolden + "/expected.json");
  return json::parse(stream)[model]["tensors"];
}

// Files written by transformers 5.23; expected.json holds what torch says is in its state dict.
TEST(Safetensors, ShardedFolderHoldsWhatTorchHolds) {
  auto source = TensorSource::open(kGolden + "/hf_sharded");
  ASSERT_TRUE(source) << source.error().to_string();
  EXPECT_EQ(source->files().size(), 3U);
  int compared = 0;
  const json wanted = golden("hf_sharded");
  for (const auto& [name, facts] : wanted.items()) {
    if (name == "lm_head.weight") continue;  // tied: torch lists it, the file does not hold it
    const TensorEntry* entry = source->find(name);
    ASSERT_NE(entry, nullptr) << name;
    EXPECT_EQ(entry->shape, facts[0].get<std::vector<std::int64_t>>()) << name;
    EXPECT_EQ(sum_of(*entry), facts[1].get<double>()) << name;
    EXPECT_EQ(value_at(*entry, 0), facts[2].get<double>()) << name;
    ++compared;
  }
  EXPECT_EQ(compared, static_cast<int>(source->tensors().size()));
  auto config = load_model_config(kGolden + "/hf_sharded");
  ASSERT_TRUE(config);
  auto weights = load_weights(*source, *config, whole_model(*config));
  EXPECT_TRUE(weights) << weights.error().to_string();
}

// transformers 5 keeps experts packed in memory ([E, 2F, D] gate first, [E, D, F]) and writes them
// one by one; so its own state dict checks which of our views is which.
TEST(Safetensors, ExpertViewsAgreeWithThePackedTensorsOfTorch) {
  auto source = TensorSource::open(kGolden + "/hf_moe");
  ASSERT_TRUE(source) << source.error().to_string();
  const json facts = golden("hf_moe");
  for (int layer = 1; layer < 4; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".feed_forward.experts.";
    double gate_up = 0, down = 0;
    for (int e = 0; e < 4; ++e) {
      auto expert = expert_weights(*source, layer, e);
      ASSERT_TRUE(expert) << expert.error().to_string();
      gate_up += view_sum(expert->w1) + view_sum(expert->w3);
      down += view_sum(expert->w2);
      if (e == 0) {
        EXPECT_EQ(view_sum(expert->w1.slice_rows(0, 1)),
                  view_sum(source->find(prefix + "0.w1.weight")->view().slice_rows(0, 1)));
        std::uint16_t bits = 0;
        std::memcpy(&bits, expert->w1.data, 2);
        EXPECT_EQ(kernels::bf16_to_f32(bits), facts[prefix + "gate_up_proj"][2].get<double>());
      }
      if (e == 3) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, expert->w3.data + expert->w3.bytes() - 2, 2);
        EXPECT_EQ(kernels::bf16_to_f32(bits), facts[prefix + "gate_up_proj"][3].get<double>());
      }
    }
    EXPECT_NEAR(gate_up, facts[prefix + "gate_up_proj"][1].get<double>(), 1e-9);
    EXPECT_NEAR(down, facts[prefix + "down_proj"][1].get<double>(), 1e-9);
  }
}

std::vector<TensorData> two_tensors() {
  return {{"a", "F32", {2, 3}, std::string(24, 'a')}, {"b", "BF16", {4}, std::string(8, 'b')}};
}

struct Fault {
  const char* name;
  std::function<void(json&)> header;
  std::function<void(std::string&)> file;
  const char* field;
  const char* message;
};

void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

class SafetensorsFault : public ::testing::TestWithParam<Fault> {};

TEST_P(SafetensorsFault, IsRefusedByName) {
  TempDir dir;
  std::string bytes = test::safetensors_bytes(two_tensors(), GetParam().header);
  if (GetParam().file) GetParam().file(bytes);
  auto source = TensorSource::open(dir.write("bad.safetensors", bytes));
  ASSERT_FALSE(source);
  EXPECT_THAT(source.error().field, HasSubstr(GetParam().field));
  EXPECT_THAT(source.error().to_string(), HasSubstr(GetParam().message));
  EXPECT_THAT(source.error().to_string(), HasSubstr("bad.safetensors"));
}

void set_length(std::string& bytes, std::uint64_t length) {
  std::memcpy(bytes.data(), &length, sizeof(length));
}

INSTANTIATE_TEST_SUITE_P(
    All, SafetensorsFault,
    ::testing::Values(
        Fault{"tiny_file", {}, [](auto& b) { b.resize(7); }, "bad.safetensors", "too few"},
        Fault{"length_absurd",
              {},
              [](auto& b) { set_length(b, ~0ULL); },
              "bad.safetensors",
              "claims a header of 18446744073709551615 bytes"},
        Fault{"length_beyond_limit",
              {},
              [](auto& b) { set_length(b, 200'000'000); },
              "bad.safetensors",
              "claims a header"},
        Fault{"length_beyond_file",
              {},
              [](auto& b) { set_length(b, b.size() - 7); },
              "bad.safetensors",
              "claims a header"},
        Fault{"length_zero",
              {},
              [](auto& b) { set_length(b, 0); },
              "bad.safetensors",
              "not valid JSON"},
        Fault{"length_short",
              {},
              [](auto& b) { set_length(b, 20); },
              "bad.safetensors",
              "not valid JSON"},
        Fault{"json_garbage", {}, [](auto& b) { b[8] = '%'; }, "bad.safetensors", "not valid JSON"},
        Fault{"header_list",
              [](json& j) { j = json::array({1}); },
              {},
              "bad.safetensors",
              "not a JSON object"},
        Fault{"cut_data", {}, [](auto& b) { b.resize(b.size() - 1); }, "b", "the file is cut"},
        Fault{"cut_all_data", {}, [](auto& b) { b.resize(b.size() - 32); }, "a", "the file is cut"},
        Fault{"surplus_bytes",
              {},
              [](auto& b) { b += "x"; },
              "bad.safetensors",
              "1 bytes at its end belong to no tensor"},
        Fault{"overlap",
              [](json& j) {
                j["b"]["data_offsets"] = {16, 24};
              },
              {},
              "b",
              "overlaps"},
        Fault{"gap",
              [](json& j) {
                j["b"]["data_offsets"] = {28, 36};
              },
              [](auto& b) { b += "xxxx"; }, "b", "4 bytes before its data"},
        Fault{"offsets_reversed",
              [](json& j) {
                j["b"]["data_offsets"] = {32, 24};
              },
              {},
              "b",
              "wrong form"},
        Fault{"offsets_three",
              [](json& j) {
                j["b"]["data_offsets"] = {24, 32, 40};
              },
              {},
              "b",
              "wrong form"},
        Fault{"offsets_negative",
              [](json& j) {
                j["b"]["data_offsets"] = {-8, 0};
              },
              {},
              "b",
              "data_offsets"},
        Fault{"offsets_missing",
              [](json& j) { j["b"].erase("data_offsets"); },
              {},
              "b",
              "data_offsets"},
        Fault{"offsets_huge",
              [](json& j) {
                j["b"]["data_offsets"] = {~0ULL - 8, ~0ULL};
              },
              {},
              "b",
              "the file"},
        Fault{"shape_mismatch",
              [](json& j) {
                j["a"]["shape"] = {2, 4};
              },
              {},
              "a",
              "shape [2, 4] of F32 does not take the 24 bytes"},
        Fault{"shape_negative",
              [](json& j) {
                j["a"]["shape"] = {-2, -3};
              },
              {},
              "a",
              "shape"},
        Fault{"shape_float",
              [](json& j) {
                j["a"]["shape"] = {2.0, 3.0};
              },
              {},
              "a",
              "shape"},
        Fault{"shape_overflow",
              [](json& j) {
                j["a"]["shape"] = {1ULL << 62, 1ULL << 62, 6};
              },
              {},
              "a",
              "does not take"},
        Fault{"shape_wraps",
              [](json& j) { j["a"]["shape"] = {(1ULL << 62) + 6}; },
              {},
              "a",
              "does not take"},
        Fault{"shape_string", [](json& j) { j["a"]["shape"] = "2x3"; }, {}, "a", "shape"},
        Fault{"dtype_f8",
              [](json& j) { j["a"]["dtype"] = "F8_E4M3"; },
              {},
              "a",
              "\"F8_E4M3\" is not read"},
        Fault{"dtype_i64", [](json& j) { j["a"]["dtype"] = "I64"; }, {}, "a", "\"I64\""},
        Fault{"dtype_size", [](json& j) { j["a"]["dtype"] = "BF16"; }, {}, "a", "does not take"},
        Fault{"dtype_number", [](json& j) { j["a"]["dtype"] = 1; }, {}, "a", "dtype"},
        Fault{"entry_number", [](json& j) { j["a"] = 1; }, {}, "a", "expected an object"}),
    [](const auto& test_info) { return test_info.param.name; });

TEST(Safetensors, RefusesATensorNamedTwice) {
  TempDir dir;
  std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                       R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  std::string bytes;
  test::append(bytes, std::uint64_t{header.size()});
  auto source = TensorSource::open(dir.write("m.safetensors", bytes + header + "xxxx"));
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().field, "a");
  EXPECT_THAT(source.error().message, HasSubstr("twice"));
}

// An index over two shards, one tensor each, then edited.
std::string open_indexed(const std::function<void(json&)>& edit, bool second_shard = true) {
  TempDir dir;
  const auto tensors = two_tensors();
  dir.write("s1.safetensors", test::safetensors_bytes({tensors[0]}));
  if (second_shard) dir.write("s2.safetensors", test::safetensors_bytes({tensors[1]}));
  json index = {{"metadata", {{"total_size", 32}}},
                {"weight_map", {{"a", "s1.safetensors"}, {"b", "s2.safetensors"}}}};
  if (edit) edit(index);
  dir.write("model.safetensors.index.json", index.dump());
  auto source = TensorSource::open(dir.string());
  return source ? "accepted " + std::to_string(source->tensors().size())
                : source.error().to_string();
}

TEST(Safetensors, ChecksTheIndexAgainstTheShards) {
  EXPECT_EQ(open_indexed({}), "accepted 2");
  EXPECT_THAT(open_indexed({}, false), HasSubstr("s2.safetensors: cannot be opened"));
  EXPECT_THAT(open_indexed({}, false), HasSubstr("puts b there"));
  EXPECT_THAT(open_indexed([](json& j) { j["weight_map"]["c"] = "s1.safetensors"; }),
              HasSubstr("c: "));
  EXPECT_THAT(open_indexed([](json& j) { j["weight_map"]["b"] = "s1.safetensors"; }),
              HasSubstr("which does not hold it"));
  EXPECT_THAT(open_indexed([](json& j) {
                j["weight_map"].erase("a");
                j["weight_map"]["x"] = "s1.safetensors";
              }),
              HasSubstr("a: "));
  EXPECT_THAT(open_indexed([](json& j) { j["weight_map"]["a"] = "../s1.safetensors"; }),
              HasSubstr("not the name of a file beside the index"));
  EXPECT_THAT(open_indexed([](json& j) { j["weight_map"]["a"] = 1; }), HasSubstr("a: "));
  EXPECT_THAT(open_indexed([](json& j) { j["weight_map"] = json::object(); }),
              HasSubstr("weight_map"));
  EXPECT_THAT(open_indexed([](json& j) { j = json::array(); }), HasSubstr("weight_map"));
  TempDir empty;
  EXPECT_THAT(TensorSource::open(empty.string()).error().to_string(),
              HasSubstr("neither model.safetensors nor"));
}

TEST(Safetensors, DamagedHeadersNeverCrash) {
  TempDir dir;
  const ModelConfig config = test::tiny_moe_config();
  const std::string good =
      test::safetensors_bytes(test::model_tensors(config, test::ExpertLayout::kPacked));
  std::uint64_t header = 0;
  std::memcpy(&header, good.data(), 8);
  std::mt19937_64 random(3);
  int accepted = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::string path = dir.write("bad.safetensors", test::damage(good, 8 + header, random));
    auto source = TensorSource::open(path);
    if (!source) continue;
    ++accepted;
    for (const TensorEntry& entry : source->tensors()) sum_of(entry);
    LoadOptions options;
    options.prefault = true;
    static_cast<void>(load_weights(*source, config, whole_model(config), options));
  }
  EXPECT_GT(accepted, 20);
  EXPECT_LT(accepted, 3900);
}

}  // namespace
}  // namespace millrace
