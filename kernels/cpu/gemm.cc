#include "kernels/gemm.h"

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/gemm_rows.h"
#include "kernels/cpu/set.h"
#include "kernels/cpu/weights.h"
#include "kernels/packed_gemm.h"
#include "kernels/scratch.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// Loop sizes. Quantised weights are converted once per token block, a panel of kRowGroup rows by
// kChunk at a time: 64 KiB. 16-bit weights are widened in registers, which costs less than a panel
// does. The x of a token block by kChunk is 384 KiB; panel and x stay in an L2 of 1 MiB, a row tile
// of x (24 KiB) in L1. Longer K runs in chunks whose unreduced 16-lane sums wait in `partial`, 96
// KiB, so the order of every sum stays that of one pass.
constexpr std::int64_t kChunk = 1024;
constexpr std::int64_t kTokenBlock = 96;
static_assert(kTokenBlock % kTileTokens == 0 && kChunk % 256 == 0);
static_assert((kRowGroup * kChunk + kTokenBlock * kRowGroup * kLanes) * sizeof(float) <=
              kScratchBytes);

// One register tile: M weight rows by N tokens over k values.
struct Tile {
  const std::byte* w = nullptr;
  std::int64_t w_stride_bytes = 0;
  const float* x[kTileTokens] = {};
  std::int64_t k = 0;
  float* partial = nullptr;  // [N, kRowGroup, kLanes], read unless first, written unless last
  bool first = true;
  bool last = true;
  float* y = nullptr;
  std::int64_t y_stride = 0;
  bool add = false;
};

template <int M, int N>
MILLRACE_ALWAYS_INLINE void write_sums(const Tile& a, Vec (&acc)[M][N]) {
  MILLRACE_UNROLL
  for (int n = 0; n < N; ++n) {
    float* y = a.y + n * a.y_stride;
    if constexpr (M == 4) {
      Float4 sums = reduce_add_4(acc[0][n], acc[1][n], acc[2][n], acc[3][n]);
      Float4 old;
      std::memcpy(&old, y, sizeof old);
      if (a.add) sums = old + sums;
      std::memcpy(y, &sums, sizeof sums);
    } else {
      MILLRACE_UNROLL
      for (int m = 0; m < M; ++m) {
        const float sum = reduce_add(acc[m][n]);
        y[m] = a.add ? y[m] + sum : sum;
      }
    }
  }
}

// kStream: each weight is used by this tile only, so it comes from memory. A row of a few KiB ends
// before the hardware's prefetcher is at speed; asking for the next tile's rows keeps the stream
// going.
template <class Loader, int M, int N, bool kStream>
void run_tile(const Tile& a) {
  using Value = typename Loader::Value;
  const Value* w[M];
  MILLRACE_UNROLL
  for (int m = 0; m < M; ++m) w[m] = reinterpret_cast<const Value*>(a.w + m * a.w_stride_bytes);
  const float* x[N];
  MILLRACE_UNROLL
  for (int n = 0; n < N; ++n) x[n] = a.x[n];

  Vec acc[M][N];
  MILLRACE_UNROLL
  for (int n = 0; n < N; ++n) {
    MILLRACE_UNROLL
    for (int m = 0; m < M; ++m) {
      acc[m][n] = a.first ? set1(0.0F) : load(a.partial + (n * kRowGroup + m) * kLanes);
    }
  }
  std::int64_t k = 0;
  for (; k + kLanes <= a.k; k += kLanes) {
    if constexpr (kStream) {
      MILLRACE_UNROLL
      for (int m = 0; m < M; ++m) {
        __builtin_prefetch(reinterpret_cast<const std::byte*>(w[m] + k) + M * a.w_stride_bytes);
      }
    }
    MILLRACE_UNROLL
    for (int p = 0; p < kParts; ++p) {
      Part wp[M];
      MILLRACE_UNROLL
      for (int m = 0; m < M; ++m) wp[m] = Loader::part(w[m] + k + p * kPartLanes);
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) {
        const Part xp = part_load(x[n] + k + p * kPartLanes);
        MILLRACE_UNROLL
        for (int m = 0; m < M; ++m) acc[m][n].part[p] = part_fma(wp[m], xp, acc[m][n].part[p]);
      }
    }
  }
  if (k < a.k) {
    MILLRACE_UNROLL
    for (int n = 0; n < N; ++n) {
      const Vec xv = load_n(x[n] + k, a.k - k);
      MILLRACE_UNROLL
      for (int m = 0; m < M; ++m) {
        acc[m][n] = fma(load_as_n<Loader>(w[m] + k, a.k - k), xv, acc[m][n]);
      }
    }
  }
  if (a.last) return write_sums<M, N>(a, acc);
  MILLRACE_UNROLL
  for (int n = 0; n < N; ++n) {
    MILLRACE_UNROLL
    for (int m = 0; m < M; ++m) store(a.partial + (n * kRowGroup + m) * kLanes, acc[m][n]);
  }
}

using TileFn = void (*)(const Tile&);

// Few tokens leave registers free for more weight rows, which hides the latency of the sums.
template <int N>
inline constexpr int kRowsFor = N == 1 && kParts <= 2 ? 4 : kTileRows;

struct TileFns {
  std::int64_t rows;  // weight rows of `full`
  TileFn full;
  TileFn single;  // one row, for the last rows of a panel
};

// fn<N>() for the number of tokens of a tile.
template <class Fn>
MILLRACE_ALWAYS_INLINE auto for_tokens(std::int64_t tokens, Fn fn) {
  switch (tokens) {
#define MILLRACE_TILE(N) \
  case N:                \
    return fn.template operator()<N>();
    MILLRACE_TILE(1)
#if defined(__AVX2__)
    MILLRACE_TILE(2)
    MILLRACE_TILE(3)
#endif
#if defined(__AVX512F__)
    MILLRACE_TILE(4)
    MILLRACE_TILE(5)
    MILLRACE_TILE(6)
#endif
#undef MILLRACE_TILE
    default:
      __builtin_unreachable();
  }
}

template <class Loader, bool kStream>
TileFns tile_for(std::int64_t tokens) {
  return for_tokens(tokens, []<int N>() -> TileFns {
    return {kRowsFor<N>, &run_tile<Loader, kRowsFor<N>, N, kStream>,
            &run_tile<Loader, 1, N, kStream>};
  });
}

// Two rows of a quantised weight, decoded in registers: for the few tokens of a decode step.
template <class Decoder, int M, int N>
void run_decoded(const Tile& a) {
  constexpr int kAhead = 1024;  // bytes of prefetch; rows follow each other in memory
  Vec acc[M][N];
  MILLRACE_UNROLL
  for (int i = 0; i < M * N; ++i) acc[i / N][i % N] = set1(0.0F);
  Bytes b = reinterpret_cast<Bytes>(a.w);
  for (std::int64_t k = 0; k < a.k; k += Decoder::kValues, b += Decoder::kBytes) {
    MILLRACE_UNROLL
    for (int m = 0; m < M; ++m) {
      Bytes block = b + m * a.w_stride_bytes;
      MILLRACE_UNROLL
      for (int at = 0; at < Decoder::kBytes; at += 64) __builtin_prefetch(block + at + kAhead);
      Decoder::decode(
          block, [&](int at, Vec v) __attribute__((always_inline)) {
            MILLRACE_UNROLL
            for (int n = 0; n < N; ++n) acc[m][n] = fma(v, load(a.x[n] + k + at), acc[m][n]);
          });
    }
  }
  write_sums<M, N>(a, acc);
}

template <class Decoder>
TileFns decoded_for(std::int64_t tokens) {
  return for_tokens(tokens, []<int N>() -> TileFns {
    return {2, &run_decoded<Decoder, 2, N>, &run_decoded<Decoder, 1, N>};
  });
}

// All tokens of a block against one panel of weight rows, over one chunk of K.
struct Panel {
  const std::byte* w = nullptr;
  std::int64_t w_stride_bytes = 0;
  std::int64_t n0 = 0;
  std::int64_t rows = 0;
  std::int64_t t0 = 0;
  std::int64_t tokens = 0;
  std::int64_t k0 = 0;
  std::int64_t k = 0;
  float* partial = nullptr;
};

template <class FnsFor>
MILLRACE_ALWAYS_INLINE void run_panel(const GemmJob& job, const Panel& p, FnsFor fns_for) {
  Tile tile;
  tile.w_stride_bytes = p.w_stride_bytes;
  tile.k = p.k;
  tile.first = p.k0 == 0;
  tile.last = p.k0 + p.k == job.w.cols;
  tile.y_stride = job.y_stride;
  tile.add = job.add;
  for (std::int64_t t = 0; t < p.tokens; t += kTileTokens) {
    const std::int64_t n = p.tokens - t < kTileTokens ? p.tokens - t : kTileTokens;
    for (std::int64_t i = 0; i < n; ++i) tile.x[i] = job.x_row(p.t0 + t + i) + p.k0;
    const TileFns fns = fns_for(n);
    for (std::int64_t r = 0; r < p.rows;) {
      const bool full = r + fns.rows <= p.rows;
      tile.w = p.w + r * p.w_stride_bytes;
      tile.partial = p.partial + (t * kRowGroup + r) * kLanes;
      tile.y = job.y + (p.t0 + t) * job.y_stride + p.n0 + r;
      (full ? fns.full : fns.single)(tile);
      r += full ? fns.rows : 1;
    }
  }
}

template <bool kStream>
void run_plain(const GemmJob& job, const Panel& p) {
  if (job.w.dtype == DType::kF32) return run_panel(job, p, tile_for<LoadF32, kStream>);
  if (job.w.dtype == DType::kBF16) return run_panel(job, p, tile_for<LoadBf16, kStream>);
  run_panel(job, p, tile_for<LoadF16, kStream>);
}

// A tile of tokens against rows straight from the file, over the whole of K.
void run_few(const GemmJob& job, const Panel& p) {
  switch (job.w.dtype) {
    case DType::kQ8_0:
      return run_panel(job, p, decoded_for<Q8_0>);
    case DType::kQ4_0:
      return run_panel(job, p, decoded_for<Q4_0>);
    case DType::kQ4_1:
      return run_panel(job, p, decoded_for<Q4_1>);
    case DType::kQ4_K:
      return run_panel(job, p, decoded_for<Q4_K>);
    case DType::kQ5_K:
      return run_panel(job, p, decoded_for<Q5_K>);
    case DType::kQ6_K:
      return run_panel(job, p, decoded_for<Q6_K>);
    default:
      return run_plain<true>(job, p);
  }
}

// A token block against a panel converted once for all of them.
void run_converted(const GemmJob& job, Panel p, float* scratch) {
  for (std::int64_t r = 0; r < p.rows; ++r) {
    convert_row(job.w.dtype, job.w.row(p.n0 + r), p.k0, p.k, scratch + r * kChunk);
  }
  p.w = reinterpret_cast<const std::byte*>(scratch);
  p.w_stride_bytes = kChunk * static_cast<std::int64_t>(sizeof(float));
  run_panel(job, p, tile_for<LoadF32, false>);
}

}  // namespace

void gemm_rows(const GemmJob& job, std::int64_t n_begin, std::int64_t n_end) {
  const std::int64_t k = job.w.cols;
  const std::int64_t row_bytes = job.w.row_bytes();
  const bool plain = block_values(job.w.dtype) == 1;
  const bool direct = job.w.dtype == DType::kF32 || (plain && kWidenInRegisters);
  const std::int64_t value_bytes = plain ? block_bytes(job.w.dtype) : 0;
  float* scratch = reinterpret_cast<float*>(thread_scratch());
  Panel p;
  p.partial = scratch + kRowGroup * kChunk;
  for (p.t0 = 0; p.t0 < job.tokens; p.t0 += kTokenBlock) {
    p.tokens = job.tokens - p.t0 < kTokenBlock ? job.tokens - p.t0 : kTokenBlock;
    const bool few = p.tokens <= kTileTokens;
    const std::int64_t chunk = few ? k : kChunk;
    for (p.n0 = n_begin; p.n0 < n_end; p.n0 += kRowGroup) {
      p.rows = n_end - p.n0 < kRowGroup ? n_end - p.n0 : kRowGroup;
      p.k0 = 0;
      do {
        p.k = k - p.k0 < chunk ? k - p.k0 : chunk;
        p.w = job.w.data + p.n0 * row_bytes + p.k0 * value_bytes;
        p.w_stride_bytes = row_bytes;
        if (few) {
          run_few(job, p);
        } else if (direct) {
          run_plain<false>(job, p);
        } else {
          run_converted(job, p, scratch);
        }
        p.k0 += p.k;
      } while (p.k0 < k);
    }
  }
}

void gemm(const Context& context, MatrixView<const float> x, const WeightView& w,
          Accumulate accumulate, MatrixView<float> y) {
  check_gemm(x, w, y);
  if (is_packed(w.dtype)) {
    return packed_gemm(packed_kernels(table().name), context, x, w, accumulate, y);
  }
  GemmJob job;
  job.x = x.data;
  job.x_stride = x.row_stride;
  job.tokens = x.rows();
  job.w = w;
  job.y = y.data;
  job.y_stride = y.row_stride;
  job.add = accumulate == Accumulate::kAdd;
  const std::int64_t groups = (w.rows + kRowGroup - 1) / kRowGroup;
  parallel_for(context, groups, gemm_grain(job.tokens, w.cols),
               [&](std::int64_t begin, std::int64_t end) {
                 const std::int64_t last = end * kRowGroup < w.rows ? end * kRowGroup : w.rows;
                 gemm_rows(job, begin * kRowGroup, last);
               });
}

}  // namespace millrace::kernels::MILLRACE_ISA
