#include "kernels/short_conv.h"

#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class ShortConvTest : public EachSet {};
MILLRACE_TEST_EACH_SET(ShortConvTest);

struct Conv {
  std::int64_t d = 0;
  std::int64_t l = 3;
  std::int64_t slots = 1;
  std::vector<float> taps;
  std::vector<float> state;

  Conv(std::int64_t channels, std::int64_t num_taps, std::int64_t num_slots)
      : d(channels), l(num_taps), slots(num_slots), taps(random_values(d * l, 1)) {
    state.resize(static_cast<std::size_t>(slots * (l - 1) * d));
  }
  std::vector<float> run(const KernelTable& table, const std::vector<float>& bcx,
                         const std::vector<ConvSegment>& segments, const Context& context = {}) {
    const auto t = static_cast<std::int64_t>(bcx.size()) / (3 * d);
    std::vector<float> out = poisoned(t * d);
    table.short_conv(context, {matrix(bcx.data(), t, 3 * d),
                               matrix<const float>(taps.data(), d, l),
                               segments,
                               {state.data(), {slots, l - 1, d}, (l - 1) * d},
                               matrix(out.data(), t, d)});
    return out;
  }
};

// One channel, taps {2, 3, 5} oldest first. s = B x per token = 1, 4, 2; C = 1, 10, 100.
//   token 0: 5*1 = 5; token 1: 3*1 + 5*4 = 23; token 2: 2*1 + 3*4 + 5*2 = 24.
TEST_P(ShortConvTest, HandComputed) {
  for (const KernelTable* table : {GetParam(), &reference_table()}) {
    Conv conv(1, 3, 1);
    conv.taps = {2, 3, 5};
    const std::vector<float> bcx = {1, 1, 1, 2, 10, 2, -1, 100, -2};  // rows of B, C, x
    EXPECT_EQ(conv.run(*table, bcx, {{0, 3, 0}}), (std::vector<float>{5, 230, 2400}));
    EXPECT_EQ(conv.state, (std::vector<float>{4, 2}));
    // The next token continues: 2*4 + 3*2 + 5*(3*1) = 29, C = 1.
    EXPECT_EQ(conv.run(*table, {3, 1, 1}, {{0, 1, 0}}), (std::vector<float>{29}));
    EXPECT_EQ(conv.state, (std::vector<float>{2, 3}));
  }
}

TEST_P(ShortConvTest, MatchesTheReference) {
  for (const std::int64_t d : {1, 16, 37, 4100}) {
    for (const std::int64_t l : {2, 3, 4, 7}) {
      for (const std::int64_t t : {1, 2, 9}) {
        Conv got(d, l, 1);
        got.state = random_values((l - 1) * d, 2);
        Conv want = got;
        const auto bcx = random_values(t * 3 * d, 3);
        const auto a = got.run(set(), bcx, {{0, t, 0}});
        const auto b = want.run(reference_table(), bcx, {{0, t, 0}});
        // At most 2 L + 1 roundings of L terms of at most 1 each.
        expect_close(a, b, 0, kEps * static_cast<double>((2 * l + 1) * l), "out");
        expect_same_bits(got.state, want.state, "state");
      }
    }
  }
}

TEST_P(ShortConvTest, ChunksOfOneAndTwoGiveTheBitsOfTheWhole) {
  for (const std::int64_t l : {3, 5}) {
    const std::int64_t d = 50;
    const std::int64_t t = 23;
    const auto bcx = random_values(t * 3 * d, 4);
    Conv whole(d, l, 1);
    const auto want = whole.run(set(), bcx, {{0, t, 0}});
    for (const std::int64_t chunk : {1, 2, 3, 22}) {
      Conv conv(d, l, 1);
      std::vector<float> out;
      for (std::int64_t begin = 0; begin < t; begin += chunk) {
        const std::int64_t n = std::min(chunk, t - begin);
        const std::vector<float> part(bcx.begin() + begin * 3 * d,
                                      bcx.begin() + (begin + n) * 3 * d);
        const auto y = conv.run(set(), part, {{0, n, 0}});
        out.insert(out.end(), y.begin(), y.end());
      }
      expect_same_bits(out, want, "chunk " + std::to_string(chunk));
      expect_same_bits(conv.state, whole.state, "state, chunk " + std::to_string(chunk));
    }
  }
}

// Slots are not batch rows; segments stand in any order; unused slots and rows stay as they are.
TEST_P(ShortConvTest, RaggedBatchEqualsEachSequenceAlone) {
  const std::int64_t d = 33;
  const auto bcx = random_values(12 * 3 * d, 5);
  const std::vector<ConvSegment> segments = {
      {6, 1, 3}, {0, 5, 0}, {8, 4, 2}};  // rows 5 and 7: none
  Conv batch(d, 3, 5);
  batch.state = random_values(5 * 2 * d, 6);
  const Conv before = batch;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    batch.state = before.state;
    const auto out = batch.run(set(), bcx, segments, {&pool});
    std::vector<float> want_state = before.state;
    for (const ConvSegment& s : segments) {
      Conv alone(d, 3, 1);
      std::copy_n(&before.state[static_cast<std::size_t>(s.slot * 2 * d)], 2 * d,
                  alone.state.begin());
      const std::vector<float> rows(bcx.begin() + s.row_begin * 3 * d,
                                    bcx.begin() + (s.row_begin + s.length) * 3 * d);
      const auto want = alone.run(set(), rows, {{0, s.length, 0}});
      const std::vector<float> got(out.begin() + s.row_begin * d,
                                   out.begin() + (s.row_begin + s.length) * d);
      expect_same_bits(got, want, "slot " + std::to_string(s.slot));
      std::copy(alone.state.begin(), alone.state.end(),
                want_state.begin() + static_cast<std::ptrdiff_t>(s.slot * 2 * d));
    }
    expect_same_bits(batch.state, want_state, "states");
    for (const std::int64_t row : {5, 7}) {
      EXPECT_TRUE(std::isnan(out[static_cast<std::size_t>(row * d)]));
    }
  }
}

// A save is the state that the segment would leave if it ended there.
TEST_P(ShortConvTest, SavesAreTheStatesOfShorterSegments) {
  const std::int64_t d = 37;
  const std::int64_t t = 9;
  const auto bcx = random_values(t * 3 * d, 9);
  for (const std::int64_t l : {2, 3, 6}) {
    const std::int64_t row = (l - 1) * d;
    Conv before(d, l, 4);
    before.state = random_values(4 * row, 10);
    for (std::int64_t cut = 1; cut <= t; ++cut) {
      const std::int64_t other = 1 + cut * 5 % t;
      Conv got = before;
      const auto out = got.run(set(), bcx, {{0, t, 2, {ConvSave{cut, 3}, ConvSave{other, 0}}}});
      Conv plain = before;
      expect_same_bits(out, plain.run(set(), bcx, {{0, t, 2}}), "out");
      for (const auto& [length, slot] : {std::pair(cut, 3), std::pair(other, 0)}) {
        Conv shorter = before;
        shorter.run(set(), {bcx.begin(), bcx.begin() + length * 3 * d}, {{0, length, 2}});
        std::copy_n(shorter.state.begin() + 2 * row, row, plain.state.begin() + slot * row);
      }
      expect_same_bits(got.state, plain.state, "states, cut " + std::to_string(cut));
      Conv want = before;
      want.run(reference_table(), bcx, {{0, t, 2, {ConvSave{cut, 3}, ConvSave{other, 0}}}});
      expect_same_bits(got.state, want.state, "the reference's");
    }
  }
}

TEST_P(ShortConvTest, ManyChannelsOnThreads) {
  const std::int64_t d = 1000;
  const auto bcx = random_values(5 * 3 * d, 7);
  Conv one(d, 3, 1);
  const auto want = one.run(set(), bcx, {{0, 5, 0}});
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    Conv conv(d, 3, 1);
    expect_same_bits(conv.run(set(), bcx, {{0, 5, 0}}, {&pool}), want, "threads");
    expect_same_bits(conv.state, one.state, "state");
  }
}

TEST(ShortConvBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  const auto bcx = random_values(6 * 3 * 70, 8);
  Conv a(70, 3, 1);
  Conv b(70, 3, 1);
  expect_same_bits(a.run(cpu_table(Isa::kAvx2), bcx, {{0, 6, 0}}),
                   b.run(cpu_table(Isa::kAvx512), bcx, {{0, 6, 0}}), "sets");
}

}  // namespace
}  // namespace millrace::kernels::testing
