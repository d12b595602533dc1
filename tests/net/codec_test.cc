#include "net/codec.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "monitoring/catalogue.h"

namespace millrace::net {
namespace {

SequenceRequest sample_request() {
  SequenceRequest r{.id = 77,
                    .tokens = {1, -5, 65535, 9},
                    .prompt_tokens = 3,
                    .max_new_tokens = 10,
                    .min_new_tokens = 2,
                    .stop_token_ids = {7, 2}};
  r.sampling = {.temperature = 0.25F,
                .top_k = 40,
                .top_p = 0.9F,
                .min_p = 0.1F,
                .repetition_penalty = 1.1F,
                .presence_penalty = -1,
                .frequency_penalty = 2,
                .logit_bias = {{3, -100.0F}, {4, 1.5F}},
                .seed = 0xFEEDFACECAFEBEEF,
                .choice = 3,
                .logprobs = 5,
                .prompt_logprobs = true};
  return r;
}

std::vector<TokenEvent> sample_events() {
  return {{.id = 1,
           .index = 0,
           .token = {5, -0.5F},
           .top = {{5, -0.5F}, {6, -1.5F}},
           .since_scheduled_us = 0x12345678,
           .cached_tokens = 0x1234},
          {.id = 0xFFFFFFFFFFFFFFFF,
           .index = 4,
           .has_token = false,
           .finish = FinishReason::kError,
           .error = "a sentence"},
          {.id = 3,
           .index = 9,
           .token = {2, -std::numeric_limits<float>::infinity()},
           .finish = FinishReason::kStop,
           .stop_token = true}};
}

const Hello kHello{
    {"cell-a", 9, "sha256:abc", 32768, 256, 1'000'000, 2, 4, 32, "bfloat16", "cuda", "nccl 2.28.9"},
    "secret"};
const PromptLogprobsEvent kPrompt{
    8, {{1, -1.0F}, {2, -2.0F}}, {{{1, -1.0F}}, {{3, -0.5F}, {2, -2.0F}}}};
CellTelemetry sample_telemetry() {
  CellTelemetry t;
  t.start_phases = {{"plan", 0.5F}, {"load", 2.0F}};
  t.busy_ns = 77;
  t.pipeline_bubble = 0.25F;
  t.step_seconds.counts.assign(describe(Metric::kStepTime).buckets.size() + 1, 3);
  t.step_seconds.sum = 1.5;
  t.step_tokens.counts.assign(describe(Metric::kIterationTokens).buckets.size() + 1, 4);
  t.step_tokens.sum = 40;
  t.workers = {{0, 0, 1, 2, 3, 0, 0}, {1, 1, 4, 5, 6, 2, 7}};
  t.expert_load = {{2, 0, 100}, {2, 1, 90}};
  t.imbalance = {{2, 1.5F, 1.05F}};
  return t;
}
const CellTelemetry kTelemetry = sample_telemetry();
const CellStatus kStatus{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, true};

// Round trip, then every truncation, then one byte more: only the whole message is accepted.
template <class Out, class In>
void check_strict(const In& value, const Out& expected) {
  Bytes bytes;
  encode(value, bytes);
  Out out;
  const auto ok = decode(bytes, out);
  ASSERT_TRUE(ok) << ok.error().to_string();
  EXPECT_EQ(out, expected);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    Out part;
    const auto truncated = decode(ByteView(bytes).first(n), part);
    ASSERT_FALSE(truncated) << "accepted " << n << " of " << bytes.size() << " bytes";
    EXPECT_EQ(truncated.error().code, ErrorCode::kInvalidArgument);
    EXPECT_FALSE(truncated.error().field.empty());
  }
  bytes.push_back(0);
  Out surplus;
  EXPECT_FALSE(decode(bytes, surplus));
}

TEST(Codec, EveryMessageIsStrict) {
  check_strict<Hello>(kHello, kHello);
  check_strict<Welcome>(Welcome{3000}, Welcome{3000});
  check_strict<Notice>(Notice{"why"}, Notice{"why"});
  check_strict<Cancel>(Cancel{12}, Cancel{12});
  check_strict<SequenceRequest>(sample_request(), sample_request());
  check_strict<std::vector<TokenEvent>>(std::span<const TokenEvent>(sample_events()),
                                        sample_events());
  check_strict<PromptLogprobsEvent>(kPrompt, kPrompt);
  check_strict<CellStatus>(kStatus, kStatus);
  check_strict<CellTelemetry>(kTelemetry, kTelemetry);
}

// Byte for byte by hand, so that a change of the format cannot pass unnoticed.
TEST(Codec, StatusBytesAreLittleEndianAndUnpadded) {
  Bytes bytes;
  encode(CellStatus{0x0102, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, true}, bytes);
  const Bytes expected = {2, 1,  0, 0, 0,  0, 0, 0, 3, 0,  0, 0, 4,  0, 0,  0, 5, 0,  0, 0, 0,
                          0, 0,  0, 6, 0,  0, 0, 0, 0, 0,  0, 7, 0,  0, 0,  0, 0, 0,  0, 8, 0,
                          0, 0,  0, 0, 0,  0, 9, 0, 0, 0,  0, 0, 0,  0, 10, 0, 0, 0,  0, 0, 0,
                          0, 11, 0, 0, 0,  0, 0, 0, 0, 12, 0, 0, 0,  0, 0,  0, 0, 13, 0, 0, 0,
                          0, 0,  0, 0, 14, 0, 0, 0, 0, 0,  0, 0, 15, 0, 0,  0, 1};
  EXPECT_EQ(bytes, expected);
}

TEST(Codec, AbsurdCountsAllocateNothing) {
  Bytes bytes = {0xFF, 0xFF, 0xFF, 0xFF};  // four thousand million events
  std::vector<TokenEvent> events;
  const auto ok = decode(bytes, events);
  ASSERT_FALSE(ok);
  EXPECT_EQ(ok.error().field, "Tokens.events");
  EXPECT_EQ(events.capacity(), 0U);
}

TEST(Codec, InconsistentValuesAreNamed) {
  const auto field_of = [](const SequenceRequest& r) {
    Bytes bytes;
    encode(r, bytes);
    SequenceRequest out;
    const auto ok = decode(bytes, out);
    return ok ? std::string("accepted") : ok.error().field;
  };
  auto r = sample_request();
  r.prompt_tokens = 0;
  EXPECT_EQ(field_of(r), "SequenceRequest.prompt_tokens");
  r.prompt_tokens = 5;
  EXPECT_EQ(field_of(r), "SequenceRequest.prompt_tokens");
  r = sample_request();
  r.max_new_tokens = 1;  // one token is there already
  EXPECT_EQ(field_of(r), "SequenceRequest.max_new_tokens");
  r.max_new_tokens = 0;
  EXPECT_EQ(field_of(r), "SequenceRequest.max_new_tokens");
  r.tokens.resize(r.prompt_tokens);  // only the prompt's log-probabilities
  EXPECT_EQ(field_of(r), "accepted");
  r.sampling.prompt_logprobs = false;
  EXPECT_EQ(field_of(r), "SequenceRequest.max_new_tokens");
  r = sample_request();
  r.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(field_of(r), "SequenceRequest.sampling.temperature");
  r = sample_request();
  r.sampling.logit_bias[1].second = std::numeric_limits<float>::infinity();
  EXPECT_EQ(field_of(r), "SequenceRequest.sampling.logit_bias.bias");

  Bytes bytes;
  const std::vector<TokenEvent> endless{{.has_token = false}};
  encode(std::span<const TokenEvent>(endless), bytes);
  std::vector<TokenEvent> out;
  EXPECT_EQ(decode(bytes, out).error().field, "Tokens.finish");
}

// Damaged messages give an error or some valid value; under the address sanitizer this also shows
// that nothing is read out of bounds. A value that is accepted encodes to the very bytes that were
// read: there is one form of each message.
template <class T, class In>
void corrupt(const In& value, std::uint32_t seed) {
  Bytes good;
  encode(value, good);
  std::mt19937 random(seed);
  T out;
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes bad = good;
    for (std::uint32_t i = 0, n = 1 + random() % 4; i < n; ++i) {
      bad[random() % bad.size()] = static_cast<std::uint8_t>(random());
    }
    if (random() % 4 == 0) bad.resize(random() % (bad.size() + 1));
    if (!decode(bad, out)) continue;
    ++accepted;
    Bytes again;
    if constexpr (std::is_same_v<T, std::vector<TokenEvent>>) {
      encode(std::span<const TokenEvent>(out), again);
    } else {
      encode(out, again);
    }
    ASSERT_EQ(again, bad);
  }
  EXPECT_GT(accepted, 0);
}

TEST(Codec, RandomDamageNeverCrashes) {
  corrupt<Hello>(kHello, 1);
  corrupt<SequenceRequest>(sample_request(), 2);
  corrupt<std::vector<TokenEvent>>(std::span<const TokenEvent>(sample_events()), 3);
  corrupt<PromptLogprobsEvent>(kPrompt, 4);
  corrupt<CellStatus>(kStatus, 5);
  corrupt<CellTelemetry>(kTelemetry, 6);
}

TEST(Codec, RandomBytesNeverCrash) {
  std::mt19937 random(9);
  for (int round = 0; round < 50000; ++round) {
    Bytes bytes(random() % 200);
    for (auto& b : bytes) b = static_cast<std::uint8_t>(random() % 3 == 0 ? random() : 0);
    Hello hello;
    SequenceRequest request;
    std::vector<TokenEvent> events;
    PromptLogprobsEvent prompt;
    (void)decode(bytes, hello);
    (void)decode(bytes, request);
    (void)decode(bytes, events);
    (void)decode(bytes, prompt);
  }
}

TEST(Codec, DecodingReusesTheBuffers) {
  Bytes bytes;
  std::vector<TokenEvent> events(256);
  for (std::uint32_t i = 0; i < events.size(); ++i) events[i] = {.id = i, .token = {1, 0}};
  encode(std::span<const TokenEvent>(events), bytes);
  EXPECT_EQ(bytes.size(), 4 + 256 * 39U);
  std::vector<TokenEvent> out;
  ASSERT_TRUE(decode(bytes, out));
  const auto* data = out.data();
  ASSERT_TRUE(decode(bytes, out));
  EXPECT_EQ(out.data(), data);
  EXPECT_EQ(out, events);
}

}  // namespace
}  // namespace millrace::net
