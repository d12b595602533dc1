#include "net/openai_choice.h"

#include <gtest/gtest.h>

#include "net/openai_format.h"
#include "net/openai_logprobs.h"

namespace millrace::net {
namespace {

// Tokens are single bytes by their value, so every way of cutting a text can be tried.
std::vector<std::string> byte_alphabet() {
  std::vector<std::string> tokens;
  int next = 256;  // GPT-2: printable bytes stand for themselves, the others for U+0100 onwards
  for (int b = 0; b < 256; ++b) {
    const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const int c = plain ? b : next++;
    std::string text;
    if (c < 128) {
      text += static_cast<char>(c);
    } else {
      text += static_cast<char>(0xC0 | (c >> 6));
      text += static_cast<char>(0x80 | (c & 63));
    }
    tokens.push_back(text);
  }
  return tokens;
}

text::Tokenizer bytes_tokenizer() {
  text::TokenizerData data;
  data.tokens = byte_alphabet();
  data.tokens.push_back("<|end|>");
  data.added.push_back({.id = 256, .content = "<|end|>"});
  data.split_regex = text::kLfm2SplitRegex;
  return text::Tokenizer::create(std::move(data)).value();
}

struct Outcome {
  std::string text;
  std::string finish;
  std::vector<std::int32_t> entries;  // tokens of the log-probability entries
  std::vector<std::size_t> offsets;
  std::vector<std::int32_t> ids;
  std::string stop_reason;
  std::uint32_t tokens = 0;
  bool cancelled = false;
};

class Choice : public ::testing::Test {
 protected:
  Outcome run(const std::string& bytes, FinishReason finish, GenerationParams params,
              std::size_t offset = 0) {
    params.output.logprobs = 0;
    params.output.return_token_ids = true;
    const auto stops = text::StopStrings::create(params.stop).value();
    ChoiceText choice(tokenizer_, params, stops, offset);
    Outcome out;
    std::uint32_t index = 0;
    const auto take = [&](const TokenEvent& event) {
      ChoiceDelta delta = choice.push(event);
      out.text += delta.text;
      for (const auto& entry : delta.logprobs) {
        out.entries.push_back(entry.token.token);
        out.offsets.push_back(entry.text_offset);
      }
      out.ids.insert(out.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
      out.finish = delta.finish_reason;
      out.cancelled = delta.cancel;
      if (auto* s = std::get_if<std::string>(&delta.stop_reason)) out.stop_reason = *s;
      if (auto* id = std::get_if<std::int32_t>(&delta.stop_reason)) {
        out.stop_reason = std::to_string(*id);
      }
    };
    for (std::size_t i = 0; i < bytes.size() && !choice.finished(); ++i) {
      TokenEvent event;
      event.index = index++;
      event.token.token = static_cast<unsigned char>(bytes[i]);
      if (i + 1 == bytes.size() && finish == FinishReason::kLength) event.finish = finish;
      take(event);
    }
    if (!choice.finished()) {
      TokenEvent event;
      event.index = index;
      event.token.token = 256;
      event.finish = finish;
      event.stop_token = true;
      take(event);
    }
    EXPECT_TRUE(choice.finished());
    out.tokens = choice.tokens();
    return out;
  }

  text::Tokenizer tokenizer_ = bytes_tokenizer();
};

TEST_F(Choice, PlainEnds) {
  Outcome out = run("hello", FinishReason::kLength, {});
  EXPECT_EQ(out.text, "hello");
  EXPECT_EQ(out.finish, "length");
  EXPECT_EQ(out.offsets, (std::vector<std::size_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(out.tokens, 5U);
  out = run("hello", FinishReason::kStop, {});
  EXPECT_EQ(out.text, "hello");
  EXPECT_EQ(out.finish, "stop");
  EXPECT_EQ(out.entries.size(), 5U);  // the stop token is not part of the content
  EXPECT_EQ(out.ids.size(), 6U);      // but it was generated
  EXPECT_EQ(out.tokens, 6U);
  EXPECT_EQ(out.stop_reason, "");
}

TEST_F(Choice, CharactersAreWholeAndCountedOnce) {
  const Outcome out = run("a\xC3\xA9\xF0\x9F\x98\x80z", FinishReason::kLength, {}, 10);
  EXPECT_EQ(out.text, "a\xC3\xA9\xF0\x9F\x98\x80z");
  EXPECT_EQ(out.offsets, (std::vector<std::size_t>{10, 11, 11, 12, 12, 12, 12, 13}));
  EXPECT_EQ(run("a\xF0\x9F", FinishReason::kLength, {}).text, "a\xEF\xBF\xBD");
}

TEST_F(Choice, StopStringCutsTextAndEntries) {
  GenerationParams params;
  params.stop = {"END", "nothing"};
  Outcome out = run("ab ENxENDcd", FinishReason::kLength, params);
  EXPECT_EQ(out.text, "ab ENx");
  EXPECT_EQ(out.finish, "stop");
  EXPECT_EQ(out.stop_reason, "END");
  EXPECT_TRUE(out.cancelled);
  EXPECT_EQ(out.entries.size(), 6U);
  EXPECT_EQ(out.tokens, 9U);  // what was generated counts, cut or not
  params.output.include_stop = true;
  out = run("ab ENxENDcd", FinishReason::kLength, params);
  EXPECT_EQ(out.text, "ab ENxEND");
  EXPECT_EQ(out.entries.size(), 9U);
}

TEST_F(Choice, HeldTextComesOutAtTheEnd) {
  GenerationParams params;
  params.stop = {"END"};
  Outcome out = run("abEN", FinishReason::kLength, params);
  EXPECT_EQ(out.text, "abEN");
  EXPECT_EQ(out.finish, "length");
  EXPECT_EQ(out.entries.size(), 4U);
  out = run("abEN", FinishReason::kStop, params);
  EXPECT_EQ(out.text, "abEN");
  EXPECT_EQ(out.finish, "stop");
  EXPECT_EQ(out.stop_reason, "");
  // The stop string on the very last token: it was stopped, not cut by length.
  out = run("abEND", FinishReason::kLength, params);
  EXPECT_EQ(out.text, "ab");
  EXPECT_EQ(out.finish, "stop");
}

TEST_F(Choice, MinTokensSparesEarlyStopStrings) {
  GenerationParams params;
  params.stop = {"x"};
  params.min_tokens = 4;
  const Outcome out = run("axbxcxd", FinishReason::kLength, params);
  EXPECT_EQ(out.text, "axbxc");
  EXPECT_EQ(out.finish, "stop");
}

TEST_F(Choice, StopTokenAskedForIsNamed) {
  GenerationParams params;
  params.stop_token_ids = {256};
  EXPECT_EQ(run("ab", FinishReason::kStop, params).stop_reason, "256");
  params.output.include_stop = true;
  params.output.skip_special_tokens = false;
  const Outcome out = run("ab", FinishReason::kStop, params);
  EXPECT_EQ(out.text, "ab<|end|>");
  EXPECT_EQ(out.entries.size(), 3U);
}

TEST_F(Choice, LogprobShapes) {
  const std::vector<LogprobEntry> entries = {
      {{'a', -0.5F}, {{'b', -0.25F}, {'a', -0.5F}, {'c', -3.0F}}, 0, true},
      {{0xC3, -INFINITY}, {}, 1, true}};
  EXPECT_EQ(
      chat_logprobs(entries, 2, tokenizer_).dump(),
      R"({"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[)"
      R"({"token":"b","logprob":-0.25,"bytes":[98]},{"token":"a","logprob":-0.5,"bytes":[97]}]},)"
      R"({"token":"\\xc3","logprob":-9999.0,"bytes":[195],"top_logprobs":[]}],"refusal":null})");
  EXPECT_EQ(completion_logprobs(entries, 1, tokenizer_).dump(),
            R"({"text_offset":[0,1],"token_logprobs":[-0.5,-9999.0],"tokens":["a","bytes:\\xc3"],)"
            R"("top_logprobs":[{"b":-0.25,"a":-0.5},{"bytes:\\xc3":-9999.0}]})");
  EXPECT_EQ(completion_logprobs(entries, 0, tokenizer_)["top_logprobs"][0].dump(), R"({"a":-0.5})");
  EXPECT_EQ(vllm_prompt_logprobs({entries[0]}, 1, tokenizer_).dump(),
            R"([{"98":{"logprob":-0.25,"rank":1,"decoded_token":"b"},)"
            R"("97":{"logprob":-0.5,"rank":null,"decoded_token":"a"}}])");
}

TEST_F(Choice, PromptEntries) {
  PromptLogprobsEvent event;
  event.targets = {{'b', -1.0F}, {'c', -2.0F}};
  event.top = {{{'x', -0.1F}}, {}};
  const auto entries = prompt_entries({256, 'b', 'c'}, event, tokenizer_, 1);
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_FALSE(entries[0].known);
  EXPECT_EQ(entries[0].text_offset, 0U);
  EXPECT_EQ(entries[1].text_offset, 0U);  // the hidden token takes no place
  EXPECT_EQ(entries[2].text_offset, 1U);
  EXPECT_EQ(entries[1].token.logprob, -1.0F);
  EXPECT_EQ(entries[1].top.size(), 1U);
}

}  // namespace
}  // namespace millrace::net
