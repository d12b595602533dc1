#include "kernels/attention.h"

#include "kernels/cpu/math.h"
#include "kernels/cpu/set.h"
#include "kernels/cpu/weights.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

static_assert(kAttentionTile == 2 * kLanes);

// One query token against one kv head: what the inner functions share.
struct Task {
  const float* q = nullptr;  // first of the kHeads query heads, head_dim apart
  std::int64_t g = 0;
  const std::uint32_t* blocks = nullptr;
  std::int64_t prefix = 0;  // positions 0..prefix - 1
};

// State of the online softmax for kHeads heads.
template <int kHeads>
struct Softmax {
  float greatest[kHeads];
  float sum[kHeads];
  alignas(64) float p[kHeads][kAttentionTile];
  alignas(64) float acc[kHeads][kMaxHeadDim];
};

template <class Loader>
MILLRACE_ALWAYS_INLINE const typename Loader::Value* pages_at(const std::byte* pages,
                                                              std::int64_t index) {
  return reinterpret_cast<const typename Loader::Value*>(pages) + index;
}

// p[h][0..15] = q_h . k at 16 positions from `first`; lane = position, d in order. Positions past
// the prefix hold whatever the page holds; the caller masks them.
template <class Loader, int kHeads>
MILLRACE_ALWAYS_INLINE void scores_16(const KvPages& pages, const Task& task, std::int64_t first,
                                      float scale, Softmax<kHeads>& s, std::int64_t to) {
  const std::int64_t block = task.blocks[first / pages.block_size];
  const auto* k =
      pages_at<Loader>(pages.k, pages.k_index(block, first % pages.block_size, task.g, 0));
  Vec dot[kHeads];
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) dot[h] = set1(0.0F);
  for (std::int64_t d = 0; d < pages.head_dim; ++d) {
    const Vec kd = load_as<Loader>(k + d * pages.block_size);
    MILLRACE_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      dot[h] = fma(set1(task.q[h * pages.head_dim + d]), kd, dot[h]);
    }
  }
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) store(s.p[h] + to, mul(dot[h], set1(scale)));
}

// Turns the scores of a tile into weights exp(score - greatest) and rescales what was summed
// before.
template <int kHeads>
void update_softmax(Softmax<kHeads>& s, std::int64_t count, std::int64_t head_dim) {
  for (int h = 0; h < kHeads; ++h) {
    float* p = s.p[h];
    for (std::int64_t i = count; i < kAttentionTile; ++i) p[i] = -__builtin_inff();
    const Vec a = load(p);
    const Vec b = load(p + kLanes);
    const float in_tile = reduce_max(max(a, b));
    const float before = s.greatest[h];
    const float greatest = before > in_tile ? before : in_tile;
    const Vec wa = exp(sub(a, set1(greatest)));
    const Vec wb = exp(sub(b, set1(greatest)));
    store(p, wa);
    store(p + kLanes, wb);
    const float tile_sum = reduce_add(add(wa, wb));
    if (greatest != before) {  // otherwise the factor is exactly 1
      const Vec factor = exp(set1(before - greatest));
      alignas(64) float lanes[kLanes];
      store(lanes, factor);
      s.sum[h] *= lanes[0];
      for (std::int64_t d = 0; d < head_dim; d += kLanes) {
        store(s.acc[h] + d, mul(load(s.acc[h] + d), factor));
      }
      s.greatest[h] = greatest;
    }
    s.sum[h] += tile_sum;
  }
}

// acc[h][d0 .. d0 + 16 kVecs) += p[h][i] * v[i] for the positions of a tile in order. `v` holds the
// address of each 16 positions' first row.
template <class Loader, int kHeads, int kVecs>
MILLRACE_ALWAYS_INLINE void add_values(const typename Loader::Value* const v[2], std::int64_t d0,
                                       std::int64_t count, std::int64_t head_dim,
                                       Softmax<kHeads>& s) {
  Vec acc[kHeads][kVecs];
  MILLRACE_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    MILLRACE_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[h][j] = load(s.acc[h] + d0 + j * kLanes);
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
    for (int j = 0; j < kVecs; ++j) store(s.acc[h] + d0 + j * kLanes, acc[h][j]);
  }
}

template <class Loader, int kHeads>
void attend(const KvPages& pages, const Task& task, float scale, float* out) {
  constexpr int kWide = 4;  // head_dim 64 in one pass over a tile's values
  const std::int64_t head_dim = pages.head_dim;
  Softmax<kHeads> s;
  for (int h = 0; h < kHeads; ++h) {
    s.greatest[h] = -__builtin_inff();
    s.sum[h] = 0;
    for (std::int64_t d = 0; d < head_dim; ++d) s.acc[h][d] = 0;
  }
  for (std::int64_t first = 0; first < task.prefix; first += kAttentionTile) {
    const std::int64_t left = task.prefix - first;
    const std::int64_t count = left < kAttentionTile ? left : kAttentionTile;
    const typename Loader::Value* v[2] = {};
    for (std::int64_t i = 0; i < count; i += kLanes) {
      scores_16<Loader, kHeads>(pages, task, first + i, scale, s, i);
      const std::int64_t block = task.blocks[(first + i) / pages.block_size];
      v[i / kLanes] = pages_at<Loader>(
          pages.v, pages.v_index(block, (first + i) % pages.block_size, task.g, 0));
    }
    update_softmax<kHeads>(s, count, head_dim);
    std::int64_t d = 0;
    for (; d + kWide * kLanes <= head_dim; d += kWide * kLanes) {
      add_values<Loader, kHeads, kWide>(v, d, count, head_dim, s);
    }
    for (; d < head_dim; d += kLanes) add_values<Loader, kHeads, 1>(v, d, count, head_dim, s);
  }
  for (int h = 0; h < kHeads; ++h) {
    for (std::int64_t d = 0; d < head_dim; d += kLanes) {
      store(out + h * head_dim + d, div(load(s.acc[h] + d), set1(s.sum[h])));
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
  // kv heads outermost: threads get equal shares of a long prefill, and a head's pages stay in
  // cache from one query to the next.
  parallel_for(context, tokens * a.pages.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t t = i % tokens;
      Task task;
      task.g = i / tokens;
      task.blocks = tables[sequences[t]];
      task.prefix = std::int64_t{positions[t]} + 1;
      std::int64_t h = task.g * group;
      const std::int64_t last = h + group;
      for (; h + kHeadTile <= last; h += kHeadTile) {
        task.q = a.q.row(t) + h * head_dim;
        attend<Loader, kHeadTile>(a.pages, task, a.scale, a.out.row(t) + h * head_dim);
      }
      for (; h < last; ++h) {
        task.q = a.q.row(t) + h * head_dim;
        attend<Loader, 1>(a.pages, task, a.scale, a.out.row(t) + h * head_dim);
      }
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
