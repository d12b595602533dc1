#include "kernels/attention.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class AttentionTest : public EachSet {};
MILLRACE_TEST_EACH_SET(AttentionTest);

struct Shape {
  std::int64_t h;
  std::int64_t g;
  std::int64_t d;
};

// One layer's pages, every byte poisoned: a value read before it was written shows as NaN.
struct Cache {
  KvPages pages;
  std::vector<float> k;
  std::vector<float> v;

  Cache(const Shape& s, std::int64_t block_size, std::int64_t blocks, DType dtype) {
    pages = {nullptr, nullptr, dtype, blocks, block_size, s.g, s.d};
    k = poisoned(blocks * pages.block_bytes() / 4);
    v = k;
    if (dtype == DType::kBF16) std::fill(k.begin(), k.end(), std::bit_cast<float>(0x7fc07fc0U));
    if (dtype == DType::kBF16) v = k;
    pages.k = reinterpret_cast<std::byte*>(k.data());
    pages.v = reinterpret_cast<std::byte*>(v.data());
  }
};

struct Sequence {
  std::int64_t length = 0;
  std::vector<std::uint32_t> blocks;
  std::vector<float> q, k, v;  // [length, H or G, D]
};

Sequence make_sequence(const Shape& s, std::int64_t length, std::uint32_t seed) {
  Sequence q;
  q.length = length;
  q.q = random_values(length * s.h * s.d, seed, 2.0F);
  q.k = random_values(length * s.g * s.d, seed + 1, 2.0F);
  q.v = random_values(length * s.g * s.d, seed + 2);
  return q;
}

void write(const KernelTable& table, const Shape& s, Cache& cache, const Sequence& q,
           std::int64_t begin, std::int64_t count) {
  std::vector<std::int64_t> slots;
  for (std::int64_t p = begin; p < begin + count; ++p) {
    slots.push_back(std::int64_t{q.blocks[static_cast<std::size_t>(p / cache.pages.block_size)]} *
                        cache.pages.block_size +
                    p % cache.pages.block_size);
  }
  const std::int64_t row = s.g * s.d;
  table.kv_write({}, heads(q.k.data() + begin * row, count, s.g, s.d),
                 heads(q.v.data() + begin * row, count, s.g, s.d), slots, cache.pages);
}

// Attention of positions [begin, begin + count) of one sequence, written to the cache just before.
std::vector<float> run_chunk(const KernelTable& table, const Shape& s, Cache& cache,
                             const Sequence& q, std::int64_t begin, std::int64_t count,
                             const Context& context = {}) {
  write(table, s, cache, q, begin, count);
  std::vector<std::int32_t> sequences(static_cast<std::size_t>(count), 0);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(begin));
  const std::uint32_t* tables[] = {q.blocks.data()};
  const std::int64_t row = s.h * s.d;
  std::vector<float> out = poisoned(count * row);
  table.attention(context, {heads(q.q.data() + begin * row, count, s.h, s.d), cache.pages,
                            sequences, positions, tables, 1 / std::sqrt(static_cast<float>(s.d)),
                            heads(out.data(), count, s.h, s.d)});
  return out;
}

// The whole sequence in chunks of the given size, over blocks numbered by `order`.
std::vector<float> run_chunked(const KernelTable& table, const Shape& s, Sequence q,
                               std::int64_t chunk, std::int64_t block_size, bool reversed,
                               DType dtype, const Context& context = {}) {
  const std::int64_t blocks = (q.length + block_size - 1) / block_size + 2;
  Cache cache(s, block_size, blocks, dtype);
  q.blocks.resize(static_cast<std::size_t>(blocks));
  std::iota(q.blocks.begin(), q.blocks.end(), 0U);
  if (reversed) std::reverse(q.blocks.begin(), q.blocks.end());
  std::vector<float> out;
  for (std::int64_t begin = 0; begin < q.length; begin += chunk) {
    const auto part =
        run_chunk(table, s, cache, q, begin, std::min(chunk, q.length - begin), context);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

TEST_P(AttentionTest, MatchesTheReference) {
  for (const Shape s : {Shape{4, 1, 64}, Shape{6, 2, 16}, Shape{2, 2, 80}, Shape{5, 1, 128}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const std::int64_t length : {1, 15, 33, 70}) {
        const Sequence q = make_sequence(s, length, 1);
        // Both read the same rounded pages. Scores up to 4 sqrt(D) with D + 2 roundings turn into
        // relative errors of the weights; sums over the prefix add theirs. |v| is at most 1.
        const double bound =
            kEps * (4 * std::sqrt(static_cast<double>(s.d)) * static_cast<double>(s.d + 2) +
                    static_cast<double>(2 * length + 16));
        expect_close(run_chunked(set(), s, q, length, 16, false, dtype),
                     run_chunked(reference_table(), s, q, length, 16, false, dtype), 0, bound,
                     "d=" + std::to_string(s.d) + " length=" + std::to_string(length));
      }
    }
  }
}

TEST_P(AttentionTest, BitsDoNotDependOnChunksBlocksOrThreads) {
  const Shape s{8, 2, 64};
  const Sequence q = make_sequence(s, 101, 11);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto want = run_chunked(set(), s, q, 101, 32, false, dtype);
    for (const std::int64_t chunk : {1, 2, 7, 32, 33, 64}) {
      expect_same_bits(run_chunked(set(), s, q, chunk, 32, false, dtype), want, "chunk");
    }
    for (const std::int64_t block_size : {16, 48, 64, 256}) {
      expect_same_bits(run_chunked(set(), s, q, 50, block_size, false, dtype), want, "block size");
    }
    expect_same_bits(run_chunked(set(), s, q, 101, 16, true, dtype), want, "block table");
    for (const int threads : {2, 3}) {
      ThreadPool pool(threads);
      expect_same_bits(run_chunked(set(), s, q, 40, 16, true, dtype, {&pool}), want, "threads");
    }
  }
}

// A mixed batch, tokens of several sequences interleaved, against each sequence alone.
TEST_P(AttentionTest, BitsDoNotDependOnBatchMates) {
  const Shape s{4, 2, 32};
  const std::int64_t row = s.h * s.d;
  std::vector<Sequence> sequences = {make_sequence(s, 40, 21), make_sequence(s, 1, 24),
                                     make_sequence(s, 77, 27)};
  std::vector<std::vector<float>> alone;
  for (const Sequence& q : sequences) {
    alone.push_back(run_chunked(set(), s, q, q.length, 16, false, DType::kF32));
  }
  Cache cache(s, 16, 10, DType::kF32);
  sequences[0].blocks = {9, 2, 5};
  sequences[1].blocks = {0};
  sequences[2].blocks = {1, 8, 3, 7, 4};
  for (const Sequence& q : sequences) write(set(), s, cache, q, 0, q.length);
  // A prefill chunk of sequence 2, decode tokens of 0 and 1, and one more token of 2.
  const std::vector<std::int32_t> which = {2, 2, 2, 0, 1, 2};
  const std::vector<std::int32_t> positions = {30, 31, 32, 39, 0, 76};
  std::vector<float> q, want;
  for (std::size_t t = 0; t < which.size(); ++t) {
    const auto from = static_cast<std::size_t>(positions[t] * row);
    const auto seq = static_cast<std::size_t>(which[t]);
    q.insert(q.end(), &sequences[seq].q[from], &sequences[seq].q[from] + row);
    want.insert(want.end(), &alone[seq][from], &alone[seq][from] + row);
  }
  const std::uint32_t* tables[] = {sequences[0].blocks.data(), sequences[1].blocks.data(),
                                   sequences[2].blocks.data()};
  std::vector<float> out = poisoned(6 * row);
  set().attention({}, {heads<const float>(q.data(), 6, s.h, s.d), cache.pages, which, positions,
                       tables, 1 / std::sqrt(32.0F), heads(out.data(), 6, s.h, s.d)});
  expect_same_bits(out, want, "batch");
}

TEST_P(AttentionTest, AFusedRowAndItsStride) {
  const Shape s{4, 1, 16};
  Sequence q = make_sequence(s, 3, 31);
  const auto want = run_chunked(set(), s, q, 3, 16, false, DType::kF32);
  Cache cache(s, 16, 1, DType::kF32);
  q.blocks = {0};
  write(set(), s, cache, q, 0, 3);
  const std::int64_t stride = 6 * 16;
  std::vector<float> qkv = poisoned(3 * stride);
  for (std::size_t t = 0; t < 3; ++t) std::copy_n(&q.q[t * 64], 64, &qkv[t * stride]);
  const std::vector<std::int32_t> sequences = {0, 0, 0};
  const std::vector<std::int32_t> positions = {0, 1, 2};
  const std::uint32_t* tables[] = {q.blocks.data()};
  std::vector<float> out = poisoned(3 * 64);
  set().attention({}, {heads<const float>(qkv.data(), 3, 4, 16, stride), cache.pages, sequences,
                       positions, tables, 0.25F, heads(out.data(), 3, 4, 16)});
  expect_same_bits(out, want, "strided");
}

// Scores of +-1000: the running maximum must keep exp in range in every tile.
TEST_P(AttentionTest, LargeScoresStayFinite) {
  const Shape s{1, 1, 16};
  Sequence q = make_sequence(s, 80, 41);
  for (float& v : q.q) v *= 50;
  const auto out = run_chunked(set(), s, q, 80, 16, false, DType::kF32);
  expect_close(out, run_chunked(reference_table(), s, q, 80, 16, false, DType::kF32), 0, 1e-3,
               "large");
}

TEST(AttentionReference, HandComputed) {
  // head_dim 16 with one component in use; scale 1. Scores 0 and ln 3: weights 1/4 and 3/4.
  const Shape s{1, 1, 16};
  Sequence q;
  q.length = 2;
  q.blocks = {0};
  q.q.assign(32, 0);
  q.k.assign(32, 0);
  q.v.assign(32, 0);
  q.q[16] = 1;
  q.k[16] = std::log(3.0F);
  q.v[0] = 4;
  q.v[16] = 8;
  for (const KernelTable* table : cpu_sets()) {
    Cache cache(s, 16, 1, DType::kF32);
    write(*table, s, cache, q, 0, 2);
    std::vector<float> out = poisoned(32);
    const std::vector<std::int32_t> sequences = {0, 0};
    const std::vector<std::int32_t> positions = {0, 1};
    const std::uint32_t* tables[] = {q.blocks.data()};
    table->attention({}, {heads<const float>(q.q.data(), 2, 1, 16), cache.pages, sequences,
                          positions, tables, 1.0F, heads(out.data(), 2, 1, 16)});
    EXPECT_EQ(out[0], 4.0F);
    EXPECT_NEAR(out[16], 0.25 * 4 + 0.75 * 8, 2e-6);
  }
}

TEST(AttentionBits, Avx2AndAvx512Agree) {
  if (!isa_supported(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  for (const Shape s : {Shape{8, 2, 64}, Shape{3, 1, 80}}) {
    const Sequence q = make_sequence(s, 90, 51);
    expect_same_bits(run_chunked(cpu_table(Isa::kAvx2), s, q, 90, 32, false, DType::kF32),
                     run_chunked(cpu_table(Isa::kAvx512), s, q, 90, 32, false, DType::kF32),
                     "sets");
  }
}

class KvWriteTest : public EachSet {};
MILLRACE_TEST_EACH_SET(KvWriteTest);

TEST_P(KvWriteTest, WritesItsSlotsAndNothingElse) {
  const Shape s{1, 2, 16};
  const Sequence q = make_sequence(s, 3, 61);
  const std::vector<std::int64_t> slots = {37, kNoKvSlot, 5};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Cache got(s, 16, 3, dtype);
    set().kv_write({}, heads(q.k.data(), 3, 2, 16), heads(q.v.data(), 3, 2, 16), slots, got.pages);
    Cache want(s, 16, 3, dtype);
    for (const std::int64_t t : {0, 2}) {
      const std::int64_t block = slots[static_cast<std::size_t>(t)] / 16;
      const std::int64_t offset = slots[static_cast<std::size_t>(t)] % 16;
      for (std::int64_t g = 0; g < 2; ++g) {
        for (std::int64_t d = 0; d < 16; ++d) {
          const auto from = static_cast<std::size_t>((t * 2 + g) * 16 + d);
          const auto at_k = static_cast<std::size_t>(want.pages.k_index(block, offset, g, d));
          const auto at_v = static_cast<std::size_t>(want.pages.v_index(block, offset, g, d));
          if (dtype == DType::kF32) {
            want.k[at_k] = q.k[from];
            want.v[at_v] = q.v[from];
          } else {
            reinterpret_cast<std::uint16_t*>(want.k.data())[at_k] = f32_to_bf16(q.k[from]);
            reinterpret_cast<std::uint16_t*>(want.v.data())[at_v] = f32_to_bf16(q.v[from]);
          }
        }
      }
    }
    expect_same_bits(got.k, want.k, "k");
    expect_same_bits(got.v, want.v, "v");
  }
}

TEST(KvWriteContract, IndicesAreABijectionOfTheBlock) {
  const KvPages p{nullptr, nullptr, DType::kF32, 2, 32, 3, 16};
  std::vector<int> seen_k(static_cast<std::size_t>(2 * p.block_bytes() / 4));
  std::vector<int> seen_v = seen_k;
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t o = 0; o < 32; ++o) {
      for (std::int64_t g = 0; g < 3; ++g) {
        for (std::int64_t d = 0; d < 16; ++d) {
          ++seen_k.at(static_cast<std::size_t>(p.k_index(b, o, g, d)));
          ++seen_v.at(static_cast<std::size_t>(p.v_index(b, o, g, d)));
          // Whole blocks may be copied as bytes.
          ASSERT_EQ(p.k_index(b, o, g, d) / (p.block_bytes() / 4), b);
          ASSERT_EQ(p.v_index(b, o, g, d) / (p.block_bytes() / 4), b);
        }
      }
    }
  }
  EXPECT_EQ(seen_k, std::vector<int>(seen_k.size(), 1));
  EXPECT_EQ(seen_v, std::vector<int>(seen_v.size(), 1));
  EXPECT_DEATH(check_kv_pages({nullptr, nullptr, DType::kF32, 2, 24, 3, 16}), "multiples of 16");
  EXPECT_DEATH(check_kv_pages({nullptr, nullptr, DType::kF16, 2, 32, 3, 16}), "f16");
}

}  // namespace
}  // namespace millrace::kernels::testing
