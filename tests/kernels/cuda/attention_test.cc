// Attention on the device against the reference set, and its bits against themselves: whatever the
// chunks, batch mates, block tables, buckets and splits (contract C1). Runs on the emulator and on
// a device; there sequences are longer.
#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

#include "tests/kernels/cuda/attention_support.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace::kernels::cuda::testing {
namespace {

#if defined(MILLRACE_CUDA_EMULATED)
constexpr std::int32_t kLongest = 2100;
#else
constexpr std::int32_t kLongest = 32768;
#endif

const Shape kBf16{{4, 1, 64}, KvType::kBf16};
const Shape kFp8{{4, 1, 64}, KvType::kFp8E4M3};

// Error of an output component, |v| at most 1, prefix of n keys, |q| and |k| at most `size`:
//   - a score of D products, each step of the sum truncated to f32's 24 bits relative to the sum of
//     magnitudes; its scaling and exp2 add a few units in the last place. An error e of all scores
//     moves the result by at most 2e;
//   - weights rounded to bf16 (2^-8) or f16 (2^-11 and, where subnormal, 2^-25 of the largest);
//   - sums over n keys in f32, and the output's own rounding to bf16.
double bound(const Shape& s, std::int32_t n, float size, float want) {
  const double d = s.heads.head_dim;
  const double magnitude = s.scale() * d * size * size;
  const double score = magnitude * (d + 4) * 0x1p-23 + 0x1p-21;
  const double weight = s.type == KvType::kBf16 ? 0x1p-8 : 0x1p-11 + n * 0x1p-25;
  return weight + 2 * score + (n / 8 + 16) * 0x1p-23 + std::fabs(want) * 0x1p-8;
}

void expect_matches(const Shape& s, const Sequence& q, const Bits& got,
                    const std::vector<std::int32_t>& positions, float size = 2.0F) {
  const std::vector<float> want = reference(s, q, positions);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const std::int32_t p = positions[i];
    for (std::int64_t e = 0; e < s.q_row(); ++e) {
      const float value = to_f32(BFloat16{got[static_cast<std::size_t>(p * s.q_row() + e)]});
      const float expected =
          want[i * static_cast<std::size_t>(s.q_row()) + static_cast<std::size_t>(e)];
      ASSERT_LE(std::fabs(value - expected), bound(s, p + 1, size, expected))
          << s.name() << " position " << p << " element " << e << ": " << value << ", want "
          << expected;
    }
  }
}

void expect_same(const Bits& got, const Bits& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i], want[i]) << what << ", element " << i << ": " << to_f32(BFloat16{got[i]})
                               << " and " << to_f32(BFloat16{want[i]});
  }
}

// All positions of a sequence in one step.
Bits run_whole(const Shape& s, Sequence& q, std::int32_t block_size, const Options& options = {}) {
  Pages pages(s, block_size, deal_blocks({&q}, block_size, 7));
  pages.write(q, 0, q.length);
  return run(pages, {q}, {{0, 0, q.length}}, options);
}

// Positions around the edges of tiles, ranges and chunks, up to `length`.
std::vector<std::int32_t> interesting(std::int32_t length) {
  std::vector<std::int32_t> out;
  for (const std::int32_t p : {0, 1, 15, 31, 63, 64, 65, 511, 512, 600, 1023, 1024, 1600, 2047,
                               2048, 4095, 8191, 16384, 32000}) {
    if (p < length - 1) out.push_back(p);
  }
  out.push_back(length - 1);
  return out;
}

TEST(CudaAttention, PrefillMatchesTheReference) {
  for (const Shape& s : {kBf16, kFp8}) {
    for (const std::int32_t length : {65, 600, kLongest}) {
      Sequence q = make_sequence(s, length, 1);
      expect_matches(s, q, run_whole(s, q, 64), interesting(length));
    }
  }
}

TEST(CudaAttention, AllHeadShapes) {
  for (const KvType type : {KvType::kBf16, KvType::kFp8E4M3}) {
    for (const std::int32_t dim : {32, 64, 128}) {
      for (const std::int32_t group : {1, 2, 4, 8}) {
        const Shape s{{2 * group, 2, dim}, type};
        Sequence q = make_sequence(s, 131, 3);
        std::vector<std::int32_t> all(131);
        std::iota(all.begin(), all.end(), 0);
        const Bits tiled = run_whole(s, q, 16);
        expect_matches(s, q, tiled, all);
        Options decode;
        decode.batch = AttentionBatch::kDecode;
        expect_same(run_whole(s, q, 16, decode), tiled, s.name());
      }
    }
  }
}

// Decode of single tokens at lengths around every edge.
TEST(CudaAttention, DecodeMatchesTheReference) {
  for (const Shape& s : {kBf16, kFp8}) {
    for (const std::int32_t length : {1, 2, 16, 63, 64, 65, 128, 511, 512, 513, 1025, kLongest}) {
      std::vector<Sequence> q = {make_sequence(s, length, 5)};
      Pages pages(s, 32, deal_blocks({&q[0]}, 32, 1));
      pages.write(q[0], 0, length);
      const Bits last = run(pages, q, {{0, length - 1, 1}});
      Bits all(static_cast<std::size_t>(length * s.q_row()));
      std::copy(last.begin(), last.end(), all.end() - s.q_row());
      expect_matches(s, q[0], all, {length - 1});
    }
  }
}

// Equal scores and values of +-1: the weights are exactly 1 and their sums exact, so a key missed,
// counted twice or seen too early changes the result by far more than its rounding.
TEST(CudaAttention, CountsEveryKeyOnce) {
  for (const Shape& s : {kBf16, kFp8}) {
    Sequence q = make_sequence(s, std::min(kLongest, 4100), 9);
    std::fill(q.k.begin(), q.k.end(), 0.0F);
    for (float& x : q.v) x = x < 0 ? -1.0F : 1.0F;
    const Bits got = run_whole(s, q, 48);
    const auto d = static_cast<std::size_t>(s.heads.head_dim);
    std::vector<double> sum(d, 0.0);
    for (std::int32_t p = 0; p < q.length; ++p) {
      for (std::size_t i = 0; i < d; ++i) {
        sum[i] += q.v[static_cast<std::size_t>(p) * d + i];
        const double want = sum[i] / (p + 1);
        for (std::size_t h = 0; h < 4; ++h) {
          const std::size_t at = static_cast<std::size_t>(p * s.q_row()) + h * d + i;
          ASSERT_NEAR(to_f32(BFloat16{got[at]}), want, std::fabs(want) * 0x1.01p-8)
              << s.name() << " position " << p << " component " << i;
        }
      }
    }
  }
}

// Scores of +-3000: weights of all but the largest underflow, in every tile and range anew.
TEST(CudaAttention, LargeScoresStayFinite) {
  for (const Shape& s : {kBf16, kFp8}) {
    Sequence q = make_sequence(s, 700, 13, 2.0F);
    for (float& x : q.q) x = to_f32(to_bf16(x * 400));
    const Bits got = run_whole(s, q, 64);
    // The scores' error is up to 0.3 here, so only single keys without rivals have a known result.
    for (const std::uint16_t bits : got) ASSERT_TRUE(std::isfinite(to_f32(BFloat16{bits})));
    expect_matches(s, q, got, {0});
  }
}

TEST(CudaAttention, HandComputed) {
  // Scores 0 and ln 3: weights 1/4 and 3/4, values 4 and 8.
  const Shape s = kBf16;
  Sequence q{2, {}, std::vector<float>(512), std::vector<float>(128), std::vector<float>(128)};
  const float k = to_f32(to_bf16(std::log(3.0F)));
  for (std::size_t h = 0; h < 4; ++h) q.q[256 + h * 64] = 8;  // times 1/8
  q.k[64] = k;
  q.v[0] = 4;
  q.v[64] = 8;
  const Bits got = run_whole(s, q, 16);
  const double weight = 1 / (1 + std::exp(-static_cast<double>(k)));
  for (std::size_t h = 0; h < 4; ++h) {
    EXPECT_EQ(to_f32(BFloat16{got[h * 64]}), 4.0F);
    EXPECT_NEAR(to_f32(BFloat16{got[256 + h * 64]}), 4 + 4 * weight, 8 * 0x1p-8);
    EXPECT_EQ(got[256 + h * 64 + 1], 0);
  }
}

// ---- the same bits ----------------------------------------------------------------------------

// The whole sequence in chunks; each step sees pages written so far only, all else is NaN.
void expect_chunks_agree(const Shape& s, Sequence& q, const Bits& want, std::int32_t chunk,
                         std::int32_t block_size, const Options& options) {
  Pages pages(s, block_size, deal_blocks({&q}, block_size, static_cast<std::uint32_t>(chunk)));
  for (std::int32_t begin = 0; begin < q.length; begin += chunk) {
    const std::int32_t end = std::min(q.length, begin + chunk);
    pages.write(q, begin, end);
    expect_same(
        run(pages, {q}, {{0, begin, end - begin}}, options), rows_of(s, want, begin, end - begin),
        s.name() + " chunks of " + std::to_string(chunk) + " from " + std::to_string(begin));
  }
}

TEST(CudaAttentionBits, DoNotDependOnChunksOrBlocks) {
  for (const Shape& s : {kBf16, kFp8}) {
    Sequence q = make_sequence(s, 680, 21);
    const Bits want = run_whole(s, q, 64);
    // Blocks of any size, one tile of the chunk alone, chunks that cut tiles and ranges.
    expect_same(run_whole(s, q, 16), want, "blocks of 16");
    expect_same(run_whole(s, q, 48), want, "blocks of 48");
    expect_same(run_whole(s, q, 256), want, "blocks of 256");
    expect_chunks_agree(s, q, want, 13, 32, {});
    expect_chunks_agree(s, q, want, 50, 16, {});
    expect_chunks_agree(s, q, want, 333, 80, {});
  }
}

TEST(CudaAttentionBits, OfOneTokenAreThoseOfALongChunk) {
  for (const Shape& s : {kBf16, kFp8}) {
    std::vector<Sequence> q = {make_sequence(s, kLongest, 23)};
    const Bits want = run_whole(s, q[0], 64);
    Pages pages(s, 16, deal_blocks({&q[0]}, 16, 2));
    std::int32_t written = 0;
    for (const std::int32_t p : interesting(kLongest)) {
      pages.write(q[0], written, p + 1);
      written = p + 1;
      for (const std::int32_t units : {0, 3, 256}) {
        Options options;
        options.split_units = units;
        options.batch = units == 3 ? AttentionBatch::kDecode : AttentionBatch::kMixed;
        expect_same(
            run(pages, q, {{0, p, 1}}, options), rows_of(s, want, p, 1),
            s.name() + " position " + std::to_string(p) + " units " + std::to_string(units));
      }
    }
  }
}

// Outputs that are small differences of large sums: the second range undoes the first, so that the
// last bit of a partial result shows in bf16. The chunk's warps cut the tile that begins at 704,
// where those of the whole sequence do not. All scores share an offset, so that a maximum times the
// scale is not exact.
TEST(CudaAttentionBits, AgreeUnderCancellation) {
  for (const KvType type : {KvType::kBf16, KvType::kFp8E4M3}) {
    const Shape s{{16, 4, 64}, type};
    Sequence q = make_sequence(s, 720, 81, 0.5F);
    for (std::size_t i = 0; i < q.q.size(); i += 64) q.q[i] = 8;
    for (std::size_t i = 0; i < q.k.size(); i += 64) q.k[i] = 8;
    for (std::size_t i = 0; i < q.v.size(); ++i) {
      const bool later = i >= static_cast<std::size_t>(kAttentionRange * s.kv_row());
      const float value = 1.0F + 0.25F * q.v[i];
      q.v[i] = as_stored(s, later ? value * -512.0F / 192.0F : value, kVScale);
    }
    const Bits want = run_whole(s, q, 64);
    expect_chunks_agree(s, q, want, 653, 64, {});
    Pages pages(s, 64, deal_blocks({&q}, 64, 1));
    pages.write(q, 0, 704);
    for (const std::int32_t units : {0, 64}) {
      Options options;
      options.split_units = units;
      expect_same(run(pages, {q}, {{0, 690, 14}}, options), rows_of(s, want, 690, 14), "tokens");
    }
  }
}

// Prefill, several short pieces of one sequence, decode and padding in one step.
TEST(CudaAttentionBits, DoNotDependOnBatchMates) {
  for (const Shape& shape : {kBf16, kFp8, Shape{{8, 4, 32}, KvType::kBf16}}) {
    Shape s = shape;
    std::vector<Sequence> q = {make_sequence(s, 640, 31), make_sequence(s, 1, 32),
                               make_sequence(s, 1100, 33), make_sequence(s, 77, 34)};
    std::vector<Bits> alone;
    for (Sequence& one : q) alone.push_back(run_whole(s, one, 32));
    Pages pages(s, 32, deal_blocks({&q[0], &q[1], &q[2], &q[3]}, 32, 5));
    for (const Sequence& one : q) pages.write(one, 0, one.length);
    // Two neighbours of one sequence that do not follow each other, a chunk that needs tiles, three
    // tokens of speculation across a range's edge, and padding in the middle and at the end.
    const std::vector<Chunk> chunks = {{2, 1099, 1}, {-1, 0, 3},  {0, 100, 90}, {0, 600, 1},
                                       {1, 0, 1},    {2, 510, 4}, {3, 0, 77},   {2, 900, 17},
                                       {-1, 0, 1},   {0, 639, 1}, {-1, 0, 70}};
    Bits want;
    for (const Chunk& c : chunks) {
      const Bits rows = c.sequence < 0 ? Bits(static_cast<std::size_t>(c.count * s.q_row()), 0)
                                       : rows_of(s, alone[static_cast<std::size_t>(c.sequence)],
                                                 c.begin, c.count);
      want.insert(want.end(), rows.begin(), rows.end());
    }
    for (const std::int32_t units : {0, 5, 100}) {
      for (const auto batch : {AttentionBatch::kMixed, AttentionBatch::kDecode}) {
        Options options{batch, units, 16};
        expect_same(run(pages, q, chunks, options), want,
                    s.name() + " units " + std::to_string(units));
      }
    }
  }
}

// One plan serves many layers: tickets and partial results are left as they were found.
TEST(CudaAttentionBits, LayersShareAPlanAndAGraphServesOtherTokens) {
  const Shape s = kBf16;
  std::vector<Sequence> q = {make_sequence(s, 1200, 41), make_sequence(s, 90, 42)};
  std::vector<Bits> alone;
  for (Sequence& one : q) alone.push_back(run_whole(s, one, 32));
  Pages pages(s, 32, deal_blocks({&q[0], &q[1]}, 32, 5));
  for (const Sequence& one : q) pages.write(one, 0, one.length);
  Options options;
  options.batch = AttentionBatch::kDecode;
  Step step(pages, q, {{0, 1199, 1}, {1, 40, 1}, {-1, 0, 2}}, options);
  const Graph graph = Graph::capture(step.stream(), [&] {
    step.plan();
    step.layer();
    step.poison_out();
    step.layer();
  });
  const std::vector<std::vector<Chunk>> replays = {{{0, 1199, 1}, {1, 40, 1}, {-1, 0, 2}},
                                                   {{1, 89, 1}, {0, 700, 1}, {0, 511, 2}},
                                                   {{-1, 0, 4}},
                                                   {{0, 1000, 4}}};
  for (const auto& chunks : replays) {
    step.load(pages, q, chunks);
    graph.launch(step.stream());
    Bits want;
    for (const Chunk& c : chunks) {
      const Bits rows = c.sequence < 0 ? Bits(static_cast<std::size_t>(c.count * s.q_row()), 0)
                                       : rows_of(s, alone[static_cast<std::size_t>(c.sequence)],
                                                 c.begin, c.count);
      want.insert(want.end(), rows.begin(), rows.end());
    }
    expect_same(step.result(), want, "replay");
  }
}

#if defined(MILLRACE_CUDA_EMULATED)
// Whichever range arrives last merges, and threads of a warp may run apart between barriers.
TEST(CudaAttentionBits, DoNotDependOnTheOrderOfBlocksAndThreads) {
  for (const Shape& s : {kBf16, kFp8}) {
    std::vector<Sequence> q = {make_sequence(s, 1100, 71), make_sequence(s, 700, 72)};
    Pages pages(s, 32, deal_blocks({&q[0], &q[1]}, 32, 5));
    for (const Sequence& one : q) pages.write(one, 0, one.length);
    const std::vector<Chunk> chunks = {{0, 1098, 2}, {1, 600, 40}, {-1, 0, 2}, {1, 699, 1}};
    const Bits want = run(pages, q, chunks);
    for (const auto order : {cuda_emulator::Order::kReverse, cuda_emulator::Order::kShuffled}) {
      cuda_emulator::set_order(order, 3);
      expect_same(run(pages, q, chunks), want, s.name());
    }
    cuda_emulator::set_order(cuda_emulator::Order::kForward);
  }
}
#endif

// A NaN in one sequence stays there; one in a later position of the same sequence does not reach
// earlier chunks.
TEST(CudaAttentionBits, NanStaysInItsSequence) {
  const Shape s = kBf16;
  std::vector<Sequence> q = {make_sequence(s, 300, 51), make_sequence(s, 300, 52)};
  const Bits want = run_whole(s, q[0], 16);
  for (float& x : q[1].k) x = std::nanf("");
  for (float& x : q[1].q) x = std::nanf("");
  Pages pages(s, 16, deal_blocks({&q[0], &q[1]}, 16, 3));
  pages.write(q[0], 0, 300);
  pages.write(q[1], 0, 300);
  const Bits got = run(pages, q, {{0, 100, 100}, {1, 100, 100}, {0, 299, 1}, {1, 299, 1}});
  expect_same(rows_of(s, got, 0, 100), rows_of(s, want, 100, 100), "chunk");
  expect_same(rows_of(s, got, 200, 1), rows_of(s, want, 299, 1), "token");
  for (const std::int32_t row : {100, 199, 201}) {
    for (const std::uint16_t bits : rows_of(s, got, row, 1)) {
      ASSERT_TRUE(std::isnan(to_f32(BFloat16{bits}))) << row;
    }
  }
}

// ---- contract ---------------------------------------------------------------------------------

TEST(CudaAttentionContract, SupportedShapes) {
  EXPECT_TRUE(attention_supports({32, 8, 64}));
  EXPECT_TRUE(attention_supports({16, 2, 128}));
  EXPECT_FALSE(attention_supports({32, 8, 96}));
  EXPECT_FALSE(attention_supports({24, 8, 64}));  // groups of 3
  EXPECT_FALSE(attention_supports({32, 2, 64}));  // of 16
  EXPECT_FALSE(attention_supports({30, 8, 64}));
  AttentionWorkspace w;
  w.shape = {24, 8, 64};
  EXPECT_DEATH(attention_workspace_bytes(w), "H / G in 1, 2, 4");
  w.shape = {32, 8, 64};
  w.max_rows = 1024;
  // 4096 units of 32 heads with 64 values, a maximum and a sum, in 16s of bytes; lists are small
  // beside them.
  const std::size_t partials = 4096ULL * 32 * 68 * 4;
  EXPECT_GE(attention_workspace_bytes(w), partials);
  EXPECT_LE(attention_workspace_bytes(w), partials + (1U << 20));
}

TEST(CudaAttentionContract, NoRowsIsNoWork) {
  const Shape s = kBf16;
  Sequence q = make_sequence(s, 1, 61);
  Pages pages(s, 16, deal_blocks({&q}, 16, 1));
  EXPECT_TRUE(run(pages, {q}, {}).empty());
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
