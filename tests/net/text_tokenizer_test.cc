// The tokenizer against golden files of the `tokenizers` library (scripts/make_text_golden.py), and
// what it refuses.
#include "net/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "net/text/detokenizer.h"
#include "net/text/pre_tokenizer.h"
#include "net/text/tokenizer_gguf.h"
#include "net/text/utf8.h"
#include "tests/net/text_golden.h"
#include "tests/support/patience.h"

namespace millrace::text {
namespace {

using test::kGolden;
using test::read_file;
using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;
using ::testing::HasSubstr;

Tokenizer golden() { return Tokenizer::load(kGolden).value(); }

Json golden_json() { return Json::parse(read_file("tokenizer.json")); }

TEST(TokenizerGolden, EncodesAndDecodesLikeTokenizers) {
  const Tokenizer tokenizer = golden();
  const std::vector<Json> cases = test::read_cases<Json>("tokenizer_cases.jsonl");
  ASSERT_GE(cases.size(), 3000u);
  for (const Json& c : cases) {
    const auto text = c["t"].get<std::string>();
    const auto want = c["i"].get<Ids>();
    const Ids ids = tokenizer.encode(text).value();
    ASSERT_EQ(ids, want) << c.dump();
    ASSERT_EQ(tokenizer.encode(text, {.parse_special = false}).value(), c.value("p", want))
        << c.dump();
    const std::string decoded = c.value("d", text);
    ASSERT_EQ(tokenizer.decode(ids, false), decoded) << c.dump();
    ASSERT_EQ(tokenizer.decode(ids, true), c.value("s", decoded)) << c.dump();
  }
}

TEST(TokenizerGolden, DecodesArbitraryIdsLikeTokenizersAlsoWhenStreamed) {
  const Tokenizer tokenizer = golden();
  const std::vector<Json> cases = test::read_cases<Json>("decode_cases.jsonl");
  ASSERT_GE(cases.size(), 500u);
  for (const Json& c : cases) {
    const Ids ids = c["i"].get<Ids>();
    for (const bool skip : {false, true}) {
      const auto want = c[skip ? "s" : "d"].get<std::string>();
      ASSERT_EQ(tokenizer.decode(ids, skip), want) << c.dump();
      Detokenizer stream(tokenizer, skip);
      std::string joined;
      for (const std::int32_t id : ids) {
        const std::string part = stream.push(id);
        ASSERT_FALSE(find_invalid_utf8(part)) << c.dump();
        joined += part;
      }
      joined += stream.flush();
      ASSERT_EQ(joined, want) << c.dump();
    }
  }
}

TEST(TokenizerGolden, StripFlagsAndIgnoreMergesLikeTokenizers) {
  Json root = golden_json();
  const Json variant = Json::parse(read_file("variant.json"));
  root["model"]["ignore_merges"] = variant["ignore_merges"];
  root["model"]["vocab"].update(variant["vocab"]);
  root["added_tokens"] = variant["added_tokens"];
  const Tokenizer tokenizer =
      Tokenizer::create(parse_tokenizer_json(root.dump(), "").value()).value();
  for (const Json& c : test::read_cases<Json>("variant_cases.jsonl")) {
    const Ids ids = tokenizer.encode(c["t"].get<std::string>()).value();
    ASSERT_EQ(ids, c["i"].get<Ids>()) << c.dump();
    ASSERT_EQ(tokenizer.decode(ids, false), c["d"].get<std::string>()) << c.dump();
  }
}

TEST(Tokenizer, AnswersAboutTokens) {
  const Tokenizer tokenizer = golden();
  EXPECT_EQ(tokenizer.bos(), 1);
  EXPECT_EQ(tokenizer.eos(), 7);
  EXPECT_EQ(tokenizer.pad(), 0);
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.token_to_id("<|im_start|>"), 6);
  EXPECT_EQ(tokenizer.token_to_id("<|no such token|>"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(6));
  EXPECT_FALSE(tokenizer.is_special(*tokenizer.token_to_id("python")));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.is_special(1 << 30));
  EXPECT_EQ(tokenizer.id_to_piece(-1), "");
  EXPECT_EQ(tokenizer.id_to_piece(tokenizer.vocab_size()), "");
  EXPECT_EQ(tokenizer.id_to_piece(*tokenizer.token_to_id("Ġthe")), " the");
  EXPECT_EQ(tokenizer.special_tokens().size(), 20u);
}

TEST(Tokenizer, AddsBosOnceAndOnlyWhenAsked) {
  const Tokenizer tokenizer = golden();
  const Ids plain = tokenizer.encode("the mill").value();
  Ids with_bos = plain;
  with_bos.insert(with_bos.begin(), 1);
  EXPECT_EQ(tokenizer.encode("the mill", {.add_special = true}).value(), with_bos);
  EXPECT_EQ(tokenizer.encode("", {.add_special = true}).value(), Ids{1});
}

TEST(Tokenizer, ConfigFlagsReplaceThePostProcessor) {
  const auto prefix_with = [](const char* config) {
    return parse_tokenizer_json(golden_json().dump(), config).value();
  };
  const char* base = R"({"bos_token": "<|startoftext|>", "eos_token": {"content": "<|im_end|>"}})";
  EXPECT_EQ(prefix_with(base).prefix, Ids{1});
  EXPECT_EQ(prefix_with(base).eos, 7);
  EXPECT_EQ(prefix_with(R"({"bos_token": "<|startoftext|>", "add_bos_token": false})").prefix,
            Ids{});
  const auto both = prefix_with(
      R"({"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "add_bos_token": true,
          "add_eos_token": true})");
  EXPECT_EQ(both.prefix, Ids{1});
  EXPECT_EQ(both.suffix, Ids{7});
}

TEST(Tokenizer, TakesMergesAsStrings) {
  Json root = golden_json();
  ASSERT_TRUE(root["model"]["merges"][0].is_array());
  for (Json& merge : root["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const Tokenizer tokenizer =
      Tokenizer::create(parse_tokenizer_json(root.dump(), "").value()).value();
  const std::string text = "The miller's daughter said she'd come at nine.";
  EXPECT_EQ(tokenizer.encode(text).value(), golden().encode(text).value());
}

TEST(Tokenizer, RefusesMalformedUtf8NamingTheOffset) {
  const Tokenizer tokenizer = golden();
  for (const std::string& bad :
       {std::string("\xFF"), std::string("\xC3"), std::string("\xED\xA0\x80"),
        std::string("\xC0\x80"), std::string("\xF4\x90\x80\x80")}) {
    const auto result = tokenizer.encode("abc" + bad);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr("byte 3"));
  }
}

// A quadratic algorithm would need minutes for these; ours needs well under a second each.
TEST(Tokenizer, LongPiecesTakeNoQuadraticTime) {
  const Tokenizer tokenizer = golden();
  const std::clock_t start = std::clock();  // processor time: the machine may be busy
  for (const char* unit :
       {"a", " ", "\n", " \n", "=", "\xF0\x9F\x98\x80", "ab", "\r", "<", "<|im_end"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const auto ids = tokenizer.encode(text);
    ASSERT_TRUE(ids) << ids.error().to_string();
    ASSERT_EQ(tokenizer.decode(*ids, false), text);
  }
  EXPECT_LT((std::clock() - start) / CLOCKS_PER_SEC, 60 * testing::kPatience);
}

TEST(Tokenizer, OneObjectServesManyThreads) {
  const Tokenizer tokenizer = golden();
  const std::vector<Json> cases = test::read_cases<Json>("tokenizer_cases.jsonl");
  std::vector<std::thread> threads;
  std::array<int, 4> wrong{};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = t; i < cases.size(); i += 3) {
        wrong[t] +=
            tokenizer.encode(cases[i]["t"].get<std::string>()).value() != cases[i]["i"].get<Ids>();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(wrong, ::testing::Each(0));
}

struct Refusal {
  const char* pointer;
  Json value;
  const char* field;
};

TEST(TokenizerJson, RefusesWhatWouldChangeTokensByName) {
  const std::vector<Refusal> refusals = {
      {"/normalizer", Json{{"type", "NFC"}}, "normalizer"},
      {"/truncation", Json{{"max_length", 4}}, "truncation"},
      {"/padding", Json{{"strategy", "BatchLongest"}}, "padding"},
      {"/model/type", "Unigram", "model.type"},
      {"/model/dropout", 0.1, "model.dropout"},
      {"/model/byte_fallback", true, "model.byte_fallback"},
      {"/model/unk_token", "<unk>", "model.unk_token"},
      {"/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"/model/merges/3", "abc", "model.merges[3]"},
      {"/model/merges/3", Json::array({"Ġt", "qqq"}), "model.merges[3]"},
      {"/model/vocab/Ġt", 0, "model.vocab"},
      {"/model/vocab/Ġt", -1, "model.vocab"},
      {"/model/vocab/Ġt", 1e18, "model.vocab"},
      {"/added_tokens/2/single_word", true, "added_tokens[2].single_word"},
      {"/added_tokens/2/content", "other", "added_tokens[2]"},
      {"/added_tokens/2/id", 1, "added_tokens[2]"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Removed", "pre_tokenizer.Split.behavior"},
      {"/pre_tokenizer/pretokenizers/0/invert", true, "pre_tokenizer.Split.invert"},
      {"/pre_tokenizer/pretokenizers/0/pattern", Json{{"String", " "}},
       "pre_tokenizer.Split.pattern"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(", "pre_tokenizer.pattern"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\w+", "pre_tokenizer.pattern"},
      {"/pre_tokenizer/pretokenizers/0/type", "Digits", "pre_tokenizer"},
      {"/pre_tokenizer/pretokenizers/1/add_prefix_space", true,
       "pre_tokenizer.ByteLevel.add_prefix_space"},
      {"/pre_tokenizer/pretokenizers/1/use_regex", true, "pre_tokenizer.ByteLevel.use_regex"},
      {"/post_processor/processors/1/type", "BertProcessing", "post_processor"},
      {"/decoder", nullptr, "decoder"},
      {"/decoder/decoders/0/type", "Metaspace", "decoder"},
  };
  for (const Refusal& refusal : refusals) {
    Json root = golden_json();
    root[Json::json_pointer(refusal.pointer)] = refusal.value;
    const auto data = parse_tokenizer_json(root.dump(), "");
    Error error;
    if (data) {
      const auto tokenizer = Tokenizer::create(*data);
      ASSERT_FALSE(tokenizer) << refusal.pointer;
      error = tokenizer.error();
    } else {
      error = data.error();
    }
    EXPECT_EQ(error.field, refusal.field) << refusal.pointer << ": " << error.to_string();
    EXPECT_FALSE(error.message.empty());
  }
}

TEST(TokenizerJson, SurvivesArbitraryJson) {
  for (const char* text :
       {"", "{", "[]", "null", "{}", R"({"model": 3})", R"({"model": {"type": "BPE"}})",
        R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": {}}})",
        R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})"}) {
    EXPECT_FALSE(parse_tokenizer_json(text, "")) << text;
  }
  EXPECT_FALSE(parse_tokenizer_json(golden_json().dump(), "[1]"));
  EXPECT_FALSE(parse_tokenizer_json(golden_json().dump(), R"({"bos_token": "nope"})"));
  EXPECT_FALSE(Tokenizer::load("/nonexistent"));
}

TEST(PreTokenizer, GapsAndEmptyMatchesAreKept) {
  const auto pieces = [](const char* pattern, std::string_view text) {
    const PreTokenizer pre = PreTokenizer::compile(pattern).value();
    PreTokenizer::Cursor cursor(pre, text);
    std::vector<std::string> out;
    for (;;) {
      const auto piece = cursor.next().value();
      if (piece.empty()) return out;
      out.emplace_back(piece);
    }
  };
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces("b+", "aabbcb"), (Pieces{"aa", "bb", "c", "b"}));
  EXPECT_EQ(pieces("b*", "aäbb"), (Pieces{"aä", "bb"}));
  EXPECT_EQ(pieces("x", ""), Pieces{});
  EXPECT_EQ(pieces("\\s",
                   "a\xE1\xA0\x8E"
                   "b c"),
            (Pieces{"a\xE1\xA0\x8E"
                    "b",
                    " ", "c"}));
}

TEST(PreTokenizer, RunawayPatternEndsWithAnError) {
  const PreTokenizer pre = PreTokenizer::compile("(x+x+)+[yz]").value();
  const std::string text(4000, 'x');
  PreTokenizer::Cursor cursor(pre, text);
  const auto piece = cursor.next();
  ASSERT_FALSE(piece);
  EXPECT_EQ(piece.error().code, ErrorCode::kResourceExhausted);
}

TEST(Utf8, RepairDoesNotDependOnCuts) {
  // Expected: Unicode 3.9, table 3-8, and a truncated end.
  const std::string bytes =
      "\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64\xED\xA0\x80\xF0\x9F\x98";
  const std::string r(kReplacement);
  const std::string want = "a" + r + r + r + "b" + r + "c" + r + r + "d" + r + r + r + r;
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    Utf8Repair repair;
    std::string out;
    for (std::size_t at = 0; at < bytes.size(); at += step)
      repair.push(bytes.substr(at, step), out);
    repair.flush(out);
    EXPECT_EQ(out, want) << step;
  }
}

}  // namespace
}  // namespace millrace::text
