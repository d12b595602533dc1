#include "kernels/attention.h"

#include "kernels/cpu/math.h"
#include "kernels/cpu/set.h"
#include "kernels/cpu/weights.h"
#include "kernels/scratch.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

static_assert(kAttentionTile == 2 * kLanes);

// Query tokens of one sequence that go through its tiles side by side, so that a tile is read, and
// widened, once for all of them. It is half of L1 in f32 and stays there; their rows and sums, an
// eighth of that each, pass by. None of them sees another.
constexpr int kQueries = 8;

// kHeads query heads of one token, head_dim apart.
struct Query {
  const float* q = nullptr;
  float* out = nullptr;
  std::int64_t prefix = 0;  // sees positions 0..prefix - 1
};

// State of the online softmax of a query.
template <int kHeads>
struct Softmax {
  float greatest[kHeads];
  float sum[kHeads];
  float* q = nullptr;    // [kHeads, head_dim], beside those of the other queries
  float* acc = nullptr;  // the same
};

// kAttentionTile positions of one kv head, in two halves of kLanes.
template <class Value>
struct Tile {
  const Value* k[2] = {};  // [head_dim, kLanes]
  std::int64_t k_stride = 0;
  const Value* v[2] = {};  // [kLanes, head_dim]
};

// Of one query and one tile: scores, then their weights.
template <int kHeads>
struct alignas(64) Scores {
  float p[kHeads][kAttentionTile];
};

template <class Loader>
MILLRACE_ALWAYS_INLINE const typename Loader::Value* pages_at(const std::byte* pages,
                                                              std::int64_t index) {
  return reinterpret_cast<const typename Loader::Value*>(pages) + index;
}

// p[h][to..to + 15] = q_h . k at 16 positions from `k`; lane = position, d in order. Positions past
// the prefix hold whatever the page holds; the caller masks them.
template <class Loader, int kHeads>
MILLRACE_ALWAYS_INLINE void scores_16(const typename Loader::Value* k, std::int64_t k_stride,
                                      const float* q, std::int64_t head_dim, float scale,
                                      Scores<kHeads>& s, std::int64_t to) {
  Vec dot[kHeads];
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) dot[h] = set1(0.0F);
  for (std::int64_t d = 0; d < head_dim; ++d) {
    const Vec kd = load_as<Loader>(k + d * k_stride);
    MILLRACE_UNROLL
    for (int h = 0; h < kHeads; ++h) dot[h] = fma(set1(q[h * head_dim + d]), kd, dot[h]);
  }
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) store(s.p[h] + to, mul(dot[h], set1(scale)));
}

// Turns the scores of a tile into weights exp(score - greatest) and rescales what was summed
// before. Head by head these are chains of dependent instructions: all heads take each step
// together.
template <int kHeads>
MILLRACE_ALWAYS_INLINE void update_softmax(Scores<kHeads>& scores, Softmax<kHeads>& s,
                                           std::int64_t count, std::int64_t head_dim) {
  float greatest[kHeads];
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    float* p = scores.p[h];
    for (std::int64_t i = count; i < kAttentionTile; ++i) p[i] = -__builtin_inff();
    const float in_tile = reduce_max(max(load(p), load(p + kLanes)));
    greatest[h] = s.greatest[h] > in_tile ? s.greatest[h] : in_tile;
  }
  float tile_sum[kHeads];
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    float* p = scores.p[h];
    const Vec a = exp(sub(load(p), set1(greatest[h])));
    const Vec b = exp(sub(load(p + kLanes), set1(greatest[h])));
    store(p, a);
    store(p + kLanes, b);
    tile_sum[h] = reduce_add(add(a, b));
  }
  for (int h = 0; h < kHeads; ++h) {
    if (greatest[h] != s.greatest[h]) {  // otherwise the factor is exactly 1
      const Vec factor = exp(set1(s.greatest[h] - greatest[h]));
      alignas(64) float lanes[kLanes];
      store(lanes, factor);
      s.sum[h] *= lanes[0];
      float* acc = s.acc + h * head_dim;
      for (std::int64_t d = 0; d < head_dim; d += kLanes) {
        store(acc + d, mul(load(acc + d), factor));
      }
      s.greatest[h] = greatest[h];
    }
    s.sum[h] += tile_sum[h];
  }
}

// sums[h][d0 .. d0 + 16 kVecs) += p[h][i] * v[i] for the positions of a tile in order. `v` holds
// the address of each 16 positions' first row.
template <class Loader, int kHeads, int kVecs>
MILLRACE_ALWAYS_INLINE void add_values(const typename Loader::Value* const v[2], std::int64_t d0,
                                       std::int64_t count, std::int64_t head_dim,
                                       const Scores<kHeads>& s, float* sums) {
  Vec acc[kHeads][kVecs];
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    MILLRACE_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[h][j] = load(sums + h * head_dim + d0 + j * kLanes);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const auto* row = v[i / kLanes] + i % kLanes * head_dim + d0;
    Vec values[kVecs];
    MILLRACE_UNROLL
    for (int j = 0; j < kVecs; ++j) values[j] = load_as<Loader>(row + j * kLanes);
    MILLRACE_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const Vec weight = set1(s.p[h][i]);
      MILLRACE_UNROLL
      for (int j = 0; j < kVecs; ++j) acc[h][j] = fma(weight, values[j], acc[h][j]);
    }
  }
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    MILLRACE_UNROLL
    for (int j = 0; j < kVecs; ++j) store(sums + h * head_dim + d0 + j * kLanes, acc[h][j]);
  }
}

// The first `positions` of a tile, for one query.
template <class Loader, int kHeads>
void attend_tile(const Tile<typename Loader::Value>& tile, std::int64_t positions,
                 std::int64_t head_dim, float scale, Softmax<kHeads>& s) {
  constexpr int kWide = kHeads == 1 ? 4 : kHeadWide;  // vectors in one pass over a tile's values
  Scores<kHeads> scores;
  for (std::int64_t i = 0; i < positions; i += kLanes) {
    scores_16<Loader, kHeads>(tile.k[i / kLanes], tile.k_stride, s.q, head_dim, scale, scores, i);
  }
  update_softmax<kHeads>(scores, s, positions, head_dim);
  std::int64_t d = 0;
  for (; d + kWide * kLanes <= head_dim; d += kWide * kLanes) {
    add_values<Loader, kHeads, kWide>(tile.v, d, positions, head_dim, scores, s.acc);
  }
  for (; d < head_dim; d += kLanes) {
    add_values<Loader, kHeads, 1>(tile.v, d, positions, head_dim, scores, s.acc);
  }
}

// Rows of kLanes values in f32, exactly, `to_stride` apart.
template <class Loader>
MILLRACE_ALWAYS_INLINE void widen(const typename Loader::Value* from, std::int64_t from_stride,
                                  std::int64_t rows, float* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    store(to + i * to_stride, load_as<Loader>(from + i * from_stride));
  }
}

// `count` queries against kv head g.
template <class Loader, int kHeads>
void attend(const KvPages& pages, const std::uint32_t* blocks, std::int64_t g, const Query* queries,
            int count, float scale) {
  const std::int64_t head_dim = pages.head_dim;
  // Close together, lest they meet in few sets of the cache.
  auto* wide_k = reinterpret_cast<float*>(thread_scratch());
  float* wide_v = wide_k + head_dim * kAttentionTile;
  float* rows = wide_v + head_dim * kAttentionTile;
  float* sums = rows + count * kHeads * head_dim;
  static_assert((2 * kAttentionTile + 2 * kQueries * kHeads) * kMaxHeadDim * sizeof(float) <=
                kScratchBytes);
  const bool widens = count > 1 && sizeof(typename Loader::Value) < sizeof(float);
  Softmax<kHeads> state[kQueries];
  std::int64_t longest = 0;
  for (int n = 0; n < count; ++n) {
    Softmax<kHeads>& s = state[n];
    s.q = rows + n * kHeads * head_dim;
    s.acc = sums + n * kHeads * head_dim;
    for (std::int64_t i = 0; i < kHeads * head_dim; ++i) {
      s.q[i] = queries[n].q[i];
      s.acc[i] = 0;
    }
    for (int h = 0; h < kHeads; ++h) {
      s.greatest[h] = -__builtin_inff();
      s.sum[h] = 0;
    }
    longest = longest > queries[n].prefix ? longest : queries[n].prefix;
  }
  for (std::int64_t first = 0; first < longest; first += kAttentionTile) {
    Tile<typename Loader::Value> tile;
    Tile<float> wide;
    tile.k_stride = pages.block_size;
    wide.k_stride = kAttentionTile;
    for (int half = 0; half < 2 && first + half * kLanes < longest; ++half) {
      const std::int64_t at = first + half * kLanes;
      const std::int64_t block = blocks[at / pages.block_size];
      const std::int64_t offset = at % pages.block_size;
      tile.k[half] = pages_at<Loader>(pages.k, pages.k_index(block, offset, g, 0));
      tile.v[half] = pages_at<Loader>(pages.v, pages.v_index(block, offset, g, 0));
      if (!widens) continue;
      float* k = wide_k + half * kLanes;
      float* v = wide_v + half * kLanes * head_dim;
      widen<Loader>(tile.k[half], pages.block_size, head_dim, k, kAttentionTile);
      widen<Loader>(tile.v[half], kLanes, head_dim, v, kLanes);  // its 16 rows are contiguous
      wide.k[half] = k;
      wide.v[half] = v;
    }
    for (int n = 0; n < count; ++n) {
      const std::int64_t left = queries[n].prefix - first;
      if (left <= 0) continue;
      const std::int64_t positions = left < kAttentionTile ? left : kAttentionTile;
      if (widens) {
        attend_tile<LoadF32, kHeads>(wide, positions, head_dim, scale, state[n]);
      } else {
        attend_tile<Loader, kHeads>(tile, positions, head_dim, scale, state[n]);
      }
    }
  }
  for (int n = 0; n < count; ++n) {
    for (int h = 0; h < kHeads; ++h) {
      const std::int64_t at = h * head_dim;
      for (std::int64_t d = at; d < at + head_dim; d += kLanes) {
        store(queries[n].out + d, div(load(state[n].acc + d), set1(state[n].sum[h])));
      }
    }
  }
}

template <class Loader>
void run(const Context& context, const AttentionArgs& a) {
  const std::int64_t tokens = a.q.rows();
  const std::int64_t group = a.q.shape[1] / a.pages.kv_heads;
  const std::int64_t head_dim = a.pages.head_dim;
  const std::int32_t* positions = a.positions.data();
  const std::int32_t* sequences = a.sequences.data();
  const std::uint32_t* const* tables = a.block_tables.data();
  // Tokens [t, t + count) of one sequence, heads [h, h + kHeads).
  const auto attend_heads = [&]<int kHeads>(std::int64_t t, int count, std::int64_t h) {
    Query queries[kQueries];
    for (int n = 0; n < count; ++n) {
      queries[n] = {a.q.row(t + n) + h * head_dim, a.out.row(t + n) + h * head_dim,
                    std::int64_t{positions[t + n]} + 1};
    }
    attend<Loader, kHeads>(a.pages, tables[sequences[t]], h / group, queries, count, a.scale);
  };
  // kv heads outermost: threads get equal shares of a long prefill, and a head's pages stay in
  // cache from one query to the next.
  parallel_for(context, tokens * a.pages.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t t = i % tokens;
      int count = 1;
      while (count < kQueries && i + count < end && t + count < tokens &&
             sequences[t + count] == sequences[t]) {
        ++count;
      }
      std::int64_t h = i / tokens * group;
      const std::int64_t last = h + group;
      for (; h + kHeadTile <= last; h += kHeadTile) {
        attend_heads.template operator()<kHeadTile>(t, count, h);
      }
      for (; h < last; ++h) attend_heads.template operator()<1>(t, count, h);
      i += count;
    }
  });
}

}  // namespace

void attention(const Context& context, const AttentionArgs& args) {
  check_attention(args);
  if (args.pages.dtype == DType::kF32) return run<LoadF32>(context, args);
  run<LoadBf16>(context, args);
}

}  // namespace millrace::kernels::MILLRACE_ISA
