#include "config/gguf_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace millrace {
namespace {

using test::GgufBuilder;
using test::kGoldenCheckpoints;
using test::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// container.gguf was written by gguf-py (tests/golden/checkpoint/make.py); the values are stated
// there.
TEST(GgufFile, ReadsEveryValueTypeThatTheReferenceWriterWrites) {
  auto file = GgufFile::open(kGoldenCheckpoints + "/container.gguf");
  ASSERT_TRUE(file) << file.error().to_string();
  EXPECT_EQ(file->version(), 3U);
  EXPECT_EQ(file->get_string("general.architecture").value(), "lfm2moe");
  EXPECT_EQ(file->get_int("t.u8").value(), 200);
  EXPECT_EQ(file->get_int("t.i8").value(), -100);
  EXPECT_EQ(file->get_int("t.u16").value(), 60000);
  EXPECT_EQ(file->get_int("t.i16").value(), -30000);
  EXPECT_EQ(file->get_int("t.u32").value(), 4000000000);
  EXPECT_EQ(file->get_int("t.i32").value(), -2000000000);
  EXPECT_EQ(file->get_int("t.i64").value(), -(std::int64_t{1} << 62));
  EXPECT_EQ(std::get<std::uint64_t>(file->find("t.u64")->value), (std::uint64_t{1} << 63) + 5);
  EXPECT_EQ(file->get_float("t.f32").value(), 0.15625);
  EXPECT_EQ(file->get_float("t.f64").value(), 1e-300);
  EXPECT_TRUE(file->get_bool("t.bool").value());
  EXPECT_EQ(file->get_string("t.string").value(), "grüße");
  EXPECT_THAT(file->get_int_array("t.ints").value(), ElementsAre(3, -1, 4, 1, -5));
  EXPECT_THAT(file->get_float_array("t.floats").value(), ElementsAre(0.5, -0.25));
  EXPECT_THAT(file->get_string_array("t.strings").value(), ElementsAre("a", "", "日本"));
}

TEST(GgufFile, FindsTheTensorBytesThatTheReferenceWriterWrote) {
  auto file = GgufFile::open(kGoldenCheckpoints + "/container.gguf");
  ASSERT_TRUE(file) << file.error().to_string();
  std::ifstream stream(kGoldenCheckpoints + "/expected.json");
  const auto expected = nlohmann::json::parse(stream)["gguf"];
  ASSERT_EQ(file->tensors().size(), expected.size());
  for (const auto& [name, facts] : expected.items()) {
    const GgufTensor* tensor = file->find_tensor(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(static_cast<std::uint32_t>(tensor->type), facts["type"].get<std::uint32_t>()) << name;
    EXPECT_EQ(tensor->dims, facts["dims"].get<std::vector<std::uint64_t>>()) << name;
    const auto bytes = file->tensor_bytes(*tensor);
    const auto wanted = facts["bytes"].get<std::vector<std::uint8_t>>();
    ASSERT_EQ(bytes.size(), wanted.size()) << name;
    EXPECT_EQ(std::memcmp(bytes.data(), wanted.data(), wanted.size()), 0) << name;
  }
}

TEST(GgufFile, ReadsNestedArraysAndVersion2) {
  TempDir dir;
  GgufBuilder b;
  b.version = 2;
  const std::string inner =
      GgufBuilder::pack(std::uint32_t{4}) + GgufBuilder::pack(std::uint64_t{2}) +
      GgufBuilder::pack(std::uint32_t{5}) + GgufBuilder::pack(std::uint32_t{6});
  b.raw("nested", 9,
        GgufBuilder::pack(std::uint32_t{9}) + GgufBuilder::pack(std::uint64_t{2}) + inner + inner);
  auto file = GgufFile::open(dir.write("m.gguf", b.bytes()));
  ASSERT_TRUE(file) << file.error().to_string();
  const auto& array = std::get<GgufArray>(file->find("nested")->value);
  ASSERT_EQ(array.arrays.size(), 2U);
  EXPECT_EQ(array.arrays[1].count, 2U);
  EXPECT_EQ(array.arrays[1].packed.size(), 8U);
}

TEST(GgufFile, GettersNameTheKeyAndWhatTheyFound) {
  auto file = GgufFile::open(kGoldenCheckpoints + "/container.gguf");
  ASSERT_TRUE(file);
  const auto expect = [](const Error& error, ErrorCode code, const char* field, const char* text) {
    EXPECT_EQ(error.code, code);
    EXPECT_EQ(error.field, field);
    EXPECT_THAT(error.message, HasSubstr(text));
    EXPECT_THAT(error.message, HasSubstr("container.gguf"));
  };
  using enum ErrorCode;
  expect(file->get_int("no.such").error(), kNotFound, "no.such", "no such key");
  expect(file->get_int("t.f32").error(), kInvalidArgument, "t.f32",
         "expected an integer, found 0.15");
  expect(file->get_int("t.u64").error(), kInvalidArgument, "t.u64", "9223372036854775813");
  expect(file->get_int("t.u8", 0, 100).error(), kInvalidArgument, "t.u8",
         "from 0 to 100, found 200");
  expect(file->get_float("t.u8").error(), kInvalidArgument, "t.u8", "a finite float");
  expect(file->get_bool("t.string").error(), kInvalidArgument, "t.string",
         "a bool, found a string");
  expect(file->get_string("t.bool").error(), kInvalidArgument, "t.bool", "a string, found a bool");
  expect(file->get_int_array("t.floats").error(), kInvalidArgument, "t.floats", "array of 2 f");
  expect(file->get_float_array("t.ints").error(), kInvalidArgument, "t.ints", "array of floats");
  expect(file->get_string_array("t.ints").error(), kInvalidArgument, "t.ints", "array of strings");
  expect(file->get_string_array("t.u8").error(), kInvalidArgument, "t.u8", "found 200");
}

struct BadGguf {
  const char* name;
  std::function<void(GgufBuilder&)> build;
  std::function<void(std::string&)> edit;
  const char* field;    // substring
  const char* message;  // substring
};

void PrintTo(const BadGguf& fault, std::ostream* out) { *out << fault.name; }

class GgufFault : public ::testing::TestWithParam<BadGguf> {};

TEST_P(GgufFault, IsRefusedByName) {
  TempDir dir;
  GgufBuilder builder;
  builder.u32("some.key", 1);
  if (GetParam().build) GetParam().build(builder);
  std::string bytes = builder.bytes();
  if (GetParam().edit) GetParam().edit(bytes);
  auto file = GgufFile::open(dir.write("bad.gguf", bytes));
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().field, HasSubstr(GetParam().field));
  EXPECT_THAT(file.error().to_string(), HasSubstr(GetParam().message));
  EXPECT_THAT(file.error().to_string(), HasSubstr("bad.gguf"));
}

void put_u64(std::string& bytes, std::size_t at, std::uint64_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
}
const std::string kData128(128, 'x');

INSTANTIATE_TEST_SUITE_P(
    All, GgufFault,
    ::testing::Values(
        BadGguf{"magic", {}, [](auto& b) { b[0] = 'X'; }, "bad.gguf", "is not a GGUF file"},
        BadGguf{"zip", {}, [](auto& b) { b.replace(0, 4, "PK\3\4"); }, "bad.gguf", "PyTorch"},
        BadGguf{"ggjt", {}, [](auto& b) { b.replace(0, 4, "tjgg"); }, "bad.gguf", "older ggml"},
        BadGguf{"lfs", {}, [](auto& b) { b = "version https://git-lfs.github.com/spec/v1\n"; }, "bad.gguf",
              "Git LFS pointer"},
        BadGguf{"big_endian", {}, [](auto& b) { b.replace(4, 4, std::string("\0\0\0\3", 4)); },
              "bad.gguf", "big-endian"},
        BadGguf{"version_1", [](auto& g) { g.version = 1; }, {}, "bad.gguf", "version 1, expected 2 or 3"},
        BadGguf{"version_4", [](auto& g) { g.version = 4; }, {}, "bad.gguf", "version 4"},
        BadGguf{"tensor_count", {}, [](auto& b) { put_u64(b, 8, 1ULL << 60); }, "bad.gguf",
              "1152921504606846976 tensors"},
        BadGguf{"key_count", {}, [](auto& b) { put_u64(b, 16, ~0ULL); }, "bad.gguf", "metadata keys"},
        BadGguf{"one_more_key", {}, [](auto& b) { put_u64(b, 16, 2); }, "bad.gguf", ""},
        BadGguf{"key_length", {}, [](auto& b) { put_u64(b, 24, ~0ULL); }, "bad.gguf", "name of key 0"},
        BadGguf{"cut_counts", {}, [](auto& b) { b.resize(20); }, "bad.gguf", "cut or damaged"},
        BadGguf{"cut_key", {}, [](auto& b) { b.resize(24 + 8 + 8 + 4 + 2); }, "bad.gguf", "some.key"},
        BadGguf{"value_type", [](auto& g) { g.raw("odd", 13, ""); }, {}, "odd", "value type 13"},
        BadGguf{"element_type", [](auto& g) {
                g.raw("odd", 9, g.pack(std::uint32_t{77}) + g.pack(std::uint64_t{0}));
              }, {}, "odd", "element type 77"},
        BadGguf{"array_count", [](auto& g) {
                g.raw("odd", 9, g.pack(std::uint32_t{0}) + g.pack(~std::uint64_t{0}));
              }, {}, "odd", "array elements"},
        BadGguf{"string_array_count", [](auto& g) {
                g.raw("odd", 9, g.pack(std::uint32_t{8}) + g.pack(std::uint64_t{1} << 61));
              }, {}, "odd", "array elements"},
        BadGguf{"deep_array", [](auto& g) {
                std::string value = g.pack(std::uint32_t{0}) + g.pack(std::uint64_t{0});
                for (int i = 0; i < 5; ++i) {
                  value = g.pack(std::uint32_t{9}) + g.pack(std::uint64_t{1}) + value;
                }
                g.raw("deep", 9, value);
              }, {}, "deep", "too deeply"},
        BadGguf{"string_length", [](auto& g) { g.raw("s", 8, g.pack(std::uint64_t{1} << 40)); }, {},
              "bad.gguf", "\"s\""},
        BadGguf{"double_key", [](auto& g) { g.u32("some.key", 2); }, {}, "some.key", "twice"},
        BadGguf{"alignment_0", [](auto& g) { g.u32("general.alignment", 0); }, {}, "general.alignment",
              "expected an integer from 1"},
        BadGguf{"alignment_48", [](auto& g) { g.u32("general.alignment", 48); }, {},
              "general.alignment", "power of two"},
        BadGguf{"alignment_string", [](auto& g) { g.string("general.alignment", "32"); }, {},
              "general.alignment", "found a string"},
        BadGguf{"dims_0", [](auto& g) { g.tensor("t", {}, 0, ""); }, {}, "t", "0 dimensions"},
        BadGguf{"dims_5", [](auto& g) { g.tensor("t", {1, 1, 1, 1, 1}, 0, "abcd"); }, {}, "t",
              "5 dimensions"},
        BadGguf{"dim_zero", [](auto& g) { g.tensor("t", {4, 0}, 0, ""); }, {}, "t", "do not fit"},
        BadGguf{"dims_overflow", [](auto& g) {
                g.tensor("t", {1ULL << 32, 1ULL << 32, 1ULL << 32}, 0, "abcd");
              }, {}, "t", "do not fit"},
        BadGguf{"dims_wrap_to_small", [](auto& g) {
                g.tensor("t", {1ULL << 62, 4}, 0, "abcd");
              }, {}, "t", "do not fit"},
        BadGguf{"ggml_type", [](auto& g) { g.tensor("t", {32}, 99, kData128); }, {}, "t", "ggml type 99"},
        BadGguf{"removed_type", [](auto& g) { g.tensor("t", {32}, 4, kData128); }, {}, "t", "ggml type 4"},
        BadGguf{"block_rows", [](auto& g) { g.tensor("t", {31}, 8, kData128); }, {}, "t",
              "do not divide into Q8_0 blocks"},
        BadGguf{"double_tensor", [](auto& g) {
                g.tensor("t", {32}, 0, kData128);
                g.tensor("t", {32}, 0, kData128);
              }, {}, "t", "twice"},
        BadGguf{"overlap", [](auto& g) {
                g.tensor("a", {32}, 0, kData128);
                g.tensor("b", {32}, 0, kData128, 96);
              }, {}, "b", "overlaps that of a"},
        BadGguf{"misaligned", [](auto& g) { g.tensor("t", {8}, 0, kData128, 4); }, {}, "t",
              "not a multiple of the alignment"},
        BadGguf{"beyond_end", [](auto& g) { g.tensor("t", {32}, 0, kData128, 1 << 20); }, {}, "t",
              "beyond the file"},
        BadGguf{"offset_wraps", [](auto& g) {
                g.tensor("t", {32}, 0, kData128, INT64_MAX / 32 * 32);
              }, {}, "t", "beyond the file"},
        BadGguf{"cut_data", [](auto& g) { g.tensor("t", {32}, 0, kData128); },
              [](auto& b) { b.resize(b.size() - 1); }, "t", "the file is cut"}),
    [](const auto& test_info) { return test_info.param.name; });

TEST(GgufFile, RefusesWhatIsNoFile) {
  TempDir dir;
  EXPECT_EQ(GgufFile::open(dir / "none.gguf").error().code, ErrorCode::kNotFound);
  EXPECT_THAT(GgufFile::open(dir.string()).error().to_string(), HasSubstr("directory"));
  EXPECT_THAT(GgufFile::open(dir.write("empty.gguf", "")).error().to_string(), HasSubstr("empty"));
  ASSERT_EQ(::mkfifo((dir / "pipe.gguf").c_str(), 0600), 0);
  EXPECT_THAT(GgufFile::open(dir / "pipe.gguf").error().to_string(),
              HasSubstr("not a regular file"));
}

TEST(MappedFile, AdviseIgnoresRangesOutsideTheFileAndMovesKeepTheMap) {
  TempDir dir;
  auto opened = MappedFile::open(dir.write("f", "hello"));
  ASSERT_TRUE(opened);
  MappedFile file;
  file = std::move(*opened);
  EXPECT_EQ(file.text(), "hello");
  file.advise(2, UINT64_MAX, MappedFile::Access::kWillNeed);
  file.advise(1 << 20, 1, MappedFile::Access::kRandom);
  MappedFile other(std::move(file));
  EXPECT_EQ(other.text(), "hello");
  EXPECT_EQ(file.size(), 0U);  // NOLINT: the moved-from state is part of the contract
}

TEST(GgufFile, DamagedHeadersNeverCrash) {
  TempDir dir;
  const ModelConfig config = test::tiny_moe_config();
  GgufBuilder builder = test::gguf_model(config, true);
  builder.strings("tokenizer.ggml.tokens", {"a", "bb", "", "dddd"});
  const std::string good = builder.bytes();
  ASSERT_TRUE(GgufFile::open(dir.write("good.gguf", good)));
  const std::size_t region = good.find("token_embd.weight") + 3000;
  std::mt19937_64 random(1);
  int accepted = 0;
  for (int i = 0; i < 4000; ++i) {
    auto file = GgufFile::open(dir.write("bad.gguf", test::damage(good, region, random)));
    if (!file) {
      EXPECT_FALSE(file.error().to_string().empty());
      continue;
    }
    ++accepted;  // damage that hit a value only: everything in it must be readable
    for (const GgufTensor& tensor : file->tensors()) {
      const auto bytes = file->tensor_bytes(tensor);
      EXPECT_LE(bytes.data() + bytes.size(), file->file().bytes().data() + file->file().size());
    }
    for (const auto& [key, value] : file->metadata()) {
      static_cast<void>(file->get_int_array(key));
      static_cast<void>(file->get_string_array(key));
    }
    static_cast<void>(load_model_config(dir / "bad.gguf"));
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 3900);
}

}  // namespace
}  // namespace millrace
