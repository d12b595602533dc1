// The device's sampler against kernels/sampling.h, whose own tests compare it with Transformers and
// with a reference in double: token for token, count for count.
#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <random>

#include "kernels/philox.h"
#include "kernels/sampling.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One row with all that decides its result. Rows draw from slots of their own.
struct Case {
  std::vector<float> logits;
  SlotSampling sampling;
  std::vector<LogitBias> bias;
  std::vector<TokenCount> counts;  // of its slot, before
  std::int32_t target = -1;
  std::uint64_t position = 0;
  bool padding = false;
};

struct Result {
  SampleResult row;
  std::vector<TokenCount> counts;
  std::int32_t last_token = 0;
};

constexpr std::int32_t kUntouched = -99;

// What worker/sampler.cc does with the CPU's functions.
Result expected(const Case& c) {
  const auto vocab = static_cast<std::int32_t>(c.logits.size());
  Result out{{}, c.counts, kUntouched};
  if (c.padding) return out;
  SamplingScratch scratch(vocab);
  std::int32_t token = c.target;
  if (c.target < 0) {
    std::vector<float> logits = c.logits;
    std::vector<std::pair<std::int32_t, float>> bias;
    for (const LogitBias& b : c.bias) bias.emplace_back(b.token, b.value);
    EXPECT_TRUE(apply_logit_bias(logits, bias));
    if (c.sampling.uses_history()) {
      apply_penalties(logits, c.counts,
                      {c.sampling.repetition, c.sampling.presence, c.sampling.frequency});
    }
    const auto drawn =
        sample_token(logits,
                     {c.sampling.temperature, c.sampling.top_k, c.sampling.top_p, c.sampling.min_p,
                      draw_bits(c.sampling.seed, c.sampling.choice, c.position)},
                     scratch);
    if (!drawn) return out;
    token = *drawn;
  }
  if (c.target >= 0 || c.sampling.logprobs >= 0) {
    std::vector<LogProbability> top(
        static_cast<std::size_t>(std::clamp(c.sampling.logprobs, 0, std::min(vocab, 20))));
    const auto logprob = log_probabilities(c.logits, token, top, scratch);
    if (!logprob) return out;
    out.row.logprob = *logprob;
    out.row.alternatives = static_cast<std::int32_t>(top.size());
    for (std::size_t i = 0; i < top.size(); ++i) {
      out.row.alternative_tokens[i] = top[i].token;
      out.row.alternative_logprobs[i] = top[i].logprob;
    }
  }
  out.row.token = token;
  if (c.target >= 0) return out;
  out.last_token = token;
  if (c.sampling.uses_history()) count_output(out.counts[static_cast<std::size_t>(token)]);
  return out;
}

// All cases in one launch. Row i uses slot (i * 7 + 3) mod n for n a prime above the rows: slots
// are not rows. The logits must come back as they were.
std::vector<Result> run(const std::vector<Case>& cases) {
  const std::size_t rows = cases.size();
  const auto vocab = static_cast<std::int64_t>(cases[0].logits.size());
  const std::int64_t stride = (vocab + 3) / 4 * 4;
  std::size_t slots = rows + 8;
  while (slots % 7 == 0) ++slots;
  const std::int64_t bias_stride = 40;
  const auto slot_of = [&](std::size_t i) { return (i * 7 + 3) % slots; };

  std::vector<float> logits(rows * static_cast<std::size_t>(stride), kNan);
  std::vector<SampleRow> sample_rows(rows);
  std::vector<SlotSampling> sampling(slots);
  std::vector<LogitBias> bias(slots * static_cast<std::size_t>(bias_stride), LogitBias{-5, kNan});
  std::vector<TokenCount> counts(slots * static_cast<std::size_t>(stride), 0x1234);
  for (std::size_t i = 0; i < rows; ++i) {
    const Case& c = cases[i];
    const std::size_t slot = slot_of(i);
    std::copy(c.logits.begin(), c.logits.end(),
              logits.begin() + static_cast<std::ptrdiff_t>(i) * stride);
    std::copy(c.counts.begin(), c.counts.end(),
              counts.begin() + static_cast<std::ptrdiff_t>(slot) * stride);
    std::copy(c.bias.begin(), c.bias.end(),
              bias.begin() + static_cast<std::ptrdiff_t>(slot) * bias_stride);
    sampling[slot] = c.sampling;
    sampling[slot].bias_count = static_cast<std::int32_t>(c.bias.size());
    sample_rows[i] = {c.padding ? -1 : static_cast<std::int32_t>(slot), c.target, c.position};
  }
  const DeviceArray<float> device_logits(logits), scratch(rows * 40, kNan);
  const DeviceArray<SampleRow> device_rows(sample_rows);
  const DeviceArray<SlotSampling> device_sampling(sampling);
  const DeviceArray<LogitBias> device_bias(bias);
  const DeviceArray<TokenCount> device_counts(counts);
  SampleResult poison;
  poison.token = -1234;
  poison.logprob = kNan;
  poison.alternatives = -7;
  std::fill(std::begin(poison.alternative_tokens), std::end(poison.alternative_tokens), -8);
  const DeviceArray<SampleResult> results(rows, poison);
  const DeviceArray<std::int32_t> last(slots, kUntouched);
  SampleArgs args;
  args.logits = matrix(device_logits.data(), static_cast<std::int64_t>(rows), vocab, stride);
  args.rows = device_rows.data();
  args.slots = device_sampling.data();
  args.bias = device_bias.data();
  args.bias_stride = bias_stride;
  args.bias_scratch = scratch.data();
  args.counts = matrix(device_counts.data(), static_cast<std::int64_t>(slots), vocab, stride);
  args.results = results.data();
  args.last_tokens = last.data();
  sample(default_stream(), args);

  expect_same_bits(device_logits.read(), logits, "logits");
  const std::vector<SampleResult> rows_out = results.read();
  const std::vector<TokenCount> counts_out = device_counts.read();
  const std::vector<std::int32_t> last_out = last.read();
  std::vector<Result> out(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    const auto begin = counts_out.begin() + static_cast<std::ptrdiff_t>(slot_of(i)) * stride;
    out[i] = {rows_out[i], {begin, begin + vocab}, last_out[slot_of(i)]};
  }
  return out;
}

// The logarithm may round differently on the device: one step of f32 in the result.
void expect_logprob(float got, float want) {
  if (std::isinf(want)) {
    EXPECT_EQ(got, want);
  } else {
    EXPECT_NEAR(got, want, std::fabs(want) * 0x1p-23 + 1e-30);
  }
}

void expect_equal(const Result& got, const Result& want, const std::string& what) {
  SCOPED_TRACE(what);
  ASSERT_EQ(got.row.token, want.row.token);
  EXPECT_EQ(got.last_token, want.last_token);
  EXPECT_EQ(got.counts, want.counts);
  expect_logprob(got.row.logprob, want.row.logprob);
  ASSERT_EQ(got.row.alternatives, want.row.alternatives);
  for (int i = 0; i < kMaxAlternatives; ++i) {
    EXPECT_EQ(got.row.alternative_tokens[i], want.row.alternative_tokens[i]) << i;
    expect_logprob(got.row.alternative_logprobs[i], want.row.alternative_logprobs[i]);
  }
}

std::string describe(const Case& c) {
  const SlotSampling& s = c.sampling;
  return "V=" + std::to_string(c.logits.size()) + " T=" + std::to_string(s.temperature) +
         " k=" + std::to_string(s.top_k) + " p=" + std::to_string(s.top_p) +
         " min_p=" + std::to_string(s.min_p) + " r=" + std::to_string(s.repetition) +
         " logprobs=" + std::to_string(s.logprobs) + " bias=" + std::to_string(c.bias.size());
}

void compare(const std::vector<Case>& cases) {
  const std::vector<Result> got = run(cases);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    expect_equal(got[i], expected(cases[i]), "row " + std::to_string(i) + " " + describe(cases[i]));
    if (::testing::Test::HasFatalFailure()) return;
  }
}

class Maker {
 public:
  explicit Maker(std::uint32_t seed) : rng_(seed) {}

  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[rng_() % values.size()];
  }

  std::vector<float> logits(std::int32_t vocab) {
    std::normal_distribution<float> normal(0, pick({0.001F, 0.3F, 1.0F, 3.0F, 10.0F, 200.0F}));
    std::vector<float> out(static_cast<std::size_t>(vocab));
    const unsigned kind = rng_() % 6;
    for (float& x : out) {
      x = normal(rng_);
      if (kind == 0) x = std::round(x);  // many ties
      if (kind == 1) x = round_bf16(x);  // as a bf16 head would have them
      if (kind == 2 && rng_() % 4 != 0) x = -kInfinity;
      if (kind == 3) x = 2.5F;  // all equal
    }
    if (kind == 2) out[rng_() % out.size()] = 1;  // not all masked
    if (rng_() % 40 == 0) out[rng_() % out.size()] = pick({kNan, kInfinity, -kInfinity});
    if (rng_() % 60 == 0) std::fill(out.begin(), out.end(), -kInfinity);
    return out;
  }

  Case any(std::int32_t vocab) {
    Case c;
    c.logits = logits(vocab);
    SlotSampling& s = c.sampling;
    s.temperature = pick({0.0F, 1e-40F, 0.05F, 0.1F, 0.3F, 0.7F, 1.0F, 1.0F, 2.0F});
    s.top_k = pick({0, 0, 1, 2, 5, 50, vocab / 2, vocab - 1, vocab, vocab + 5});
    s.top_p = pick({1.0F, 1.0F, 0.999F, 0.95F, 0.5F, 0.1F, 1e-6F, 0.99999994F});
    s.min_p = pick({0.0F, 0.0F, 1e-40F, 1e-30F, 0.05F, 0.3F, 1.0F});
    if (rng_() % 2 == 0) {
      s.repetition = pick({1.0F, 1.05F, 0.5F, 3.0F});
      s.presence = pick({0.0F, 0.5F, -2.0F});
      s.frequency = pick({0.0F, 0.25F, -1.0F});
    }
    for (int i = 0; i < vocab; ++i) {
      TokenCount count = 0;
      if (rng_() % 5 == 0) count = static_cast<TokenCount>(rng_() % 4);
      if (rng_() % 9 == 0) count |= kInPrompt;
      if (rng_() % 50 == 0) count |= kMaxOutputCount;
      c.counts.push_back(count);
    }
    if (rng_() % 3 == 0) add_bias(c, vocab);
    s.logprobs = pick({-1, -1, 0, 1, 5, 20});
    s.seed = rng_();
    s.seed = s.seed << 32 | rng_();
    s.choice = rng_() % 4;
    c.position = rng_() % 2 == 0 ? rng_() % 1000 : std::uint64_t{rng_()} << 20;
    if (rng_() % 10 == 0) c.target = static_cast<std::int32_t>(rng_()) & 0x7fffffff;
    if (c.target >= 0) c.target %= vocab;
    c.padding = rng_() % 25 == 0;
    return c;
  }

 private:
  void add_bias(Case& c, std::int32_t vocab) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(vocab));
    for (std::int32_t i = 0; i < vocab; ++i) tokens[static_cast<std::size_t>(i)] = i;
    std::shuffle(tokens.begin(), tokens.end(), rng_);
    const std::size_t n = 1 + rng_() % std::min<std::size_t>(tokens.size(), 40);
    for (std::size_t i = 0; i < n; ++i) {
      c.bias.push_back({tokens[i], pick({100.0F, -100.0F, 0.5F, -3.0F, 20.0F})});
    }
  }

  std::mt19937 rng_;
};

class CudaSamplingVocab : public ::testing::TestWithParam<std::int32_t> {};

TEST_P(CudaSamplingVocab, DrawsTheTokensOfTheCpu) {
  const std::int32_t vocab = GetParam();
  Maker maker(static_cast<std::uint32_t>(vocab));
  std::vector<Case> cases;
  for (int i = 0; i < (vocab < 2000 ? 250 : 100); ++i) cases.push_back(maker.any(vocab));
  compare(cases);
}

INSTANTIATE_TEST_SUITE_P(Vocab, CudaSamplingVocab,
                         ::testing::Values(1, 2, 3, 20, 127, 128, 129, 257, 1000, 2049, 5003));

std::vector<float> normal_logits(std::int32_t vocab, float spread, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(static_cast<std::size_t>(vocab));
  for (float& x : out) x = normal(rng);
  return out;
}

Case plain(std::vector<float> logits, const SlotSampling& sampling, std::uint64_t position) {
  Case c;
  c.logits = std::move(logits);
  c.sampling = sampling;
  c.counts.assign(c.logits.size(), 0);
  c.position = position;
  return c;
}

// The vocabularies of the models, with settings that models recommend; flat rows leave more
// candidates than fit into shared memory, so that the row itself is searched.
TEST(CudaSamplingTest, WholeVocabularies) {
  for (const std::int32_t vocab : {65536, 128000, 131072}) {
    std::vector<Case> cases;
    const std::vector<SlotSampling> settings = {
        {.temperature = 0},
        {.temperature = 1},
        {.temperature = 0.1F, .top_k = 50, .repetition = 1.05F},
        {.temperature = 0.3F, .min_p = 0.15F, .repetition = 1.05F},
        {.temperature = 1, .top_p = 0.95F, .logprobs = 5},
        {.temperature = 2, .top_k = 30000, .top_p = 0.999F, .min_p = 1e-3F, .logprobs = 20}};
    std::uint64_t position = 0;
    for (const float spread : {0.002F, 0.5F, 2.5F}) {
      for (const SlotSampling& s : settings) {
        Case c =
            plain(normal_logits(vocab, spread, static_cast<std::uint32_t>(position)), s, position);
        for (std::size_t i = 0; i < c.counts.size(); i += 11) c.counts[i] = kInPrompt;
        c.sampling.seed = 77 + position++;
        cases.push_back(std::move(c));
      }
    }
    compare(cases);
  }
}

// More equal logits than the list holds: ties at the cut of top_k, top_p and of the alternatives.
TEST(CudaSamplingTest, ManyEqualLogits) {
  for (const std::int32_t vocab : {1760, 1761, 6000}) {
    std::vector<Case> cases;
    for (int i = 0; i < 12; ++i) {
      std::vector<float> logits(static_cast<std::size_t>(vocab), -1.5F);
      logits[static_cast<std::size_t>(i) * 100] = -1;
      cases.push_back(plain(std::move(logits),
                            {.temperature = 1,
                             .top_k = i % 3 == 0 ? 2 : 0,
                             .top_p = i % 2 == 0 ? 0.3F : 1.0F,
                             .logprobs = 20,
                             .seed = static_cast<std::uint64_t>(i)},
                            5));
    }
    compare(cases);
  }
}

// Zeros of both signs are one value, in every order.
TEST(CudaSamplingTest, SignedZerosAreTies) {
  std::vector<float> logits(64, -0.0F);
  for (std::size_t i = 0; i < 64; i += 3) logits[i] = 0.0F;
  for (float& x : logits) {
    if (&x - logits.data() > 40) x = -4;
  }
  std::vector<Case> cases;
  for (std::uint64_t i = 0; i < 40; ++i) {
    cases.push_back(plain(logits,
                          {.temperature = i % 4 == 0 ? 0.0F : 1.0F,
                           .top_k = i % 3 == 0 ? 10 : 0,
                           .top_p = 0.4F,
                           .logprobs = 20},
                          i));
  }
  compare(cases);
}

// Logits whose difference to the largest rounds to one number: ties for the draw, but not for the
// list of alternatives, which orders by the logits themselves.
TEST(CudaSamplingTest, AlternativesOrderByTheLogitItself) {
  std::vector<Case> cases;
  for (const float largest : {8.0F, 1000.0F}) {  // within the coarse histogram, and beyond it
    std::vector<float> logits(300);
    for (std::size_t i = 0; i < 300; ++i) logits[i] = static_cast<float>(i) * 1e-9F;
    logits[7] = largest;
    cases.push_back(plain(logits, {.temperature = 1, .top_p = 0.5F, .logprobs = 20}, 1));
  }
  const std::vector<Result> got = run(cases);
  EXPECT_EQ(got[0].row.alternative_tokens[1], 299);
  compare(cases);
}

TEST(CudaSamplingTest, BadRowsLeaveNeighboursAlone) {
  const SlotSampling s{
      .temperature = 0.8F, .top_k = 20, .top_p = 0.9F, .presence = 0.1F, .logprobs = 3};
  std::vector<Case> cases;
  for (std::uint64_t i = 0; i < 5; ++i) cases.push_back(plain(normal_logits(500, 2, 3), s, 9));
  cases[1].logits[499] = kNan;
  cases[3].logits[0] = kInfinity;
  const std::vector<Result> got = run(cases);
  EXPECT_EQ(got[1].row.token, kNoSampledToken);
  EXPECT_EQ(got[3].row.token, kNoSampledToken);
  EXPECT_EQ(got[1].counts, cases[1].counts);
  EXPECT_EQ(got[1].last_token, kUntouched);
  EXPECT_EQ(got[0].row.token, got[2].row.token);
  EXPECT_EQ(got[0].row.token, got[4].row.token);
  compare(cases);
}

// 64-bit sums decide: one token's weight against many small ones behind it.
TEST(CudaSamplingTest, EveryPartOfTheInterval) {
  std::vector<float> logits = normal_logits(3000, 1, 4);
  logits[1500] = 9;
  std::vector<Case> cases;
  for (std::uint64_t i = 0; i < 500; ++i) cases.push_back(plain(logits, {.seed = 5}, i));
  compare(cases);
}

TEST(CudaSamplingHistoryTest, CountsPromptsAndOutputs) {
  const std::int64_t vocab = 1001;
  const std::int64_t stride = 1004;
  const DeviceArray<TokenCount> counts(static_cast<std::size_t>(4 * stride), 0x5555);
  std::mt19937 rng(3);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 70000; ++i) tokens.push_back(static_cast<std::int32_t>(rng() % 1001));
  for (int i = 0; i < 40000; ++i) tokens[20000 + static_cast<std::size_t>(i)] = 7;  // saturates
  tokens[5] = -1;
  tokens[6] = 1001;
  const DeviceArray<std::int32_t> device_tokens(tokens);
  const std::vector<HistoryStart> starts = {
      {2, 10000, 65000, 0, 3}, {-1, 5, 10, 0, 0}, {0, 0, 0, 0, 0}, {3, 4, 4, 0, 69000}};
  const DeviceArray<HistoryStart> device_starts(starts);
  start_histories(default_stream(), {.starts = device_starts.data(),
                                     .count = 4,
                                     .tokens = device_tokens.data(),
                                     .counts = matrix(counts.data(), 4, vocab, stride)});
  const std::vector<TokenCount> got = counts.read();
  for (const HistoryStart& start : starts) {
    if (start.slot < 0) continue;
    std::vector<TokenCount> want(static_cast<std::size_t>(vocab), 0);
    for (std::int64_t i = 0; i < start.tokens; ++i) {
      const std::int32_t token = tokens[static_cast<std::size_t>(start.begin + i)];
      if (token < 0 || token >= vocab) continue;
      TokenCount& count = want[static_cast<std::size_t>(token)];
      if (i < start.prompt_tokens) {
        count |= kInPrompt;
      } else {
        count_output(count);
      }
    }
    const auto begin = got.begin() + start.slot * stride;
    EXPECT_EQ(std::vector<TokenCount>(begin, begin + vocab), want) << start.slot;
  }
  EXPECT_EQ(got[static_cast<std::size_t>(stride)], 0x5555) << "slot 1 was not started";
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
