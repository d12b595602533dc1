// The tiles of the packed GEMM: 16 weight rows by up to kTokens tokens, or twice 16 by kPairTokens.
// The sums of a block stay in integer registers, one per token; scales are applied once per block.
// Weights are unpacked once for all tokens of the tile; in panels, once for all tokens there are.
#include <iterator>

#include "kernels/cpu/math.h"
#include "kernels/cpu/packed/panels.h"
#include "kernels/cpu/packed/quantize.h"
#include "kernels/packed_gemm.h"

#define MILLRACE_STRING(x) MILLRACE_STRING_(x)
#define MILLRACE_STRING_(x) #x

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// Rows of a tile that are worked on together, and tokens: for each vector of rows and each token a
// sum of integers and one of floats live in registers (without VNNI one of pairs), beside weights,
// a mask and a broadcast activation. Of 32 registers that leaves 8 tokens by one vector of 16 rows;
// of 16, either 4 tokens by one of 8 rows, where each dot product needs an activation loaded, or 3
// by two, where two share it: some are spilled, which costs less (docs/performance-log.md).
// Portable code, with vectors of four rows, has the former.
constexpr int kTogether = kPartLanes == 8 ? 2 : 1;
constexpr int kTokens = kPartLanes == 16 ? 8 : kPartLanes == 8 ? 3 : 4;

// Of two times 16 rows. With 8 tokens by 16 rows each dot product needs an activation loaded, one
// zmm a clock, and scales and weights come on top; with 4 tokens by 32 rows half as many. 16
// registers are too few for this. Types of 256 values have none: unpacking them is their limit, and
// 8 tokens share it, or in panels all.
constexpr int kPairTokens = kPartLanes == 16 ? 4 : 0;

// One block of M vectors of weight rows, group[m] of their tile, for N tokens. An activation is
// loaded once for all M: loads, not dot products, would be the limit otherwise.
template <class Format, int M, int N>
MILLRACE_ALWAYS_INLINE void add_block(const Bytes (&unit)[M], int b, const int (&group)[M],
                                      const QuantizedBlock* const (&x)[N], Part (&y)[M][N]) {
  MILLRACE_UNROLL
  for (int half = 0; half < Format::kHalves; ++half) {
    Dots<Format::kLargest, M * N> dots;
    MILLRACE_UNROLL
    for (int i = 0; i < M * N; ++i) dots.start(i, x[i % N]->start[half]);
    MILLRACE_UNROLL
    for (int step = 0; step < Format::kSteps; ++step) {
      Quants w[M];
      MILLRACE_UNROLL
      for (int m = 0; m < M; ++m) w[m] = Format::quants(unit[m], b, half, group[m], step);
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) {
        const std::int8_t* inputs = x[n]->q + 4 * Format::inputs(half, step);
        MILLRACE_UNROLL
        for (int m = 0; m < M; ++m) dots.step(m * N + n, step, w[m], inputs);
      }
    }
    MILLRACE_UNROLL
    for (int m = 0; m < M; ++m) {
      const Part d = Format::scale(unit[m], b, half, group[m]);
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) {
        y[m][n] = part_fma(dots.floats(m * N + n), part_mul(d, part_set1(x[n]->scale)), y[m][n]);
      }
    }
  }
  if constexpr (Format::kMinimum) {
    MILLRACE_UNROLL
    for (int m = 0; m < M; ++m) {
      const Part minimum = Format::minimum(unit[m], b, group[m]);
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) y[m][n] = part_fma(minimum, part_set1(x[n]->sum), y[m][n]);
    }
  }
}

template <class Format, int M, int N>
void run_tile(const PackedTile& a) {
  constexpr int kVectors = M * kTogether;
  for (int first = 0; first < kParts; first += kTogether) {
    Part y[kVectors][N];
    Bytes unit[kVectors];
    int group[kVectors];
    MILLRACE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      unit[v] = reinterpret_cast<Bytes>(a.w[v / kTogether]);
      group[v] = first + v % kTogether;
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) y[v][n] = part_set1(0.0F);
    }
    const std::byte* wanted = a.w[0] + a.prefetch_ahead;
    const std::int64_t wanted_bytes = first == 0 ? a.prefetch_bytes : 0;
    for (std::int64_t i = 0; i < a.blocks;) {
      for (int b = 0; b < Format::kValues / kQuantBlock; ++b, ++i) {
        for (std::int64_t at = 0; at < wanted_bytes; at += 64) {
          __builtin_prefetch(wanted + at);
          if constexpr (M == 2) __builtin_prefetch(wanted + (a.w[1] - a.w[0]) + at);
        }
        wanted += wanted_bytes;
        const QuantizedBlock* x[N];
        MILLRACE_UNROLL
        for (int n = 0; n < N; ++n) x[n] = a.x[n] + i;
        add_block<Format, kVectors, N>(unit, b, group, x, y);
      }
      MILLRACE_UNROLL
      for (int v = 0; v < kVectors; ++v) unit[v] += Format::kBytes;
    }
    MILLRACE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) {
        float* out = a.y[v / kTogether] + n * a.y_stride + group[v] * kPartLanes;
        part_store(out, a.add ? part_add(part_load(out), y[v][n]) : y[v][n]);
      }
    }
  }
}

#if defined(__AVX2__)

// What has been unpacked, as a format of its own for add_block.
template <class Format>
struct UnpackedFormat {
  static constexpr int kLargest = Format::kLargest;
  static constexpr int kHalves = Format::kHalves;
  static constexpr bool kMinimum = Format::kMinimum;

  static constexpr int kSteps = Format::kSteps;
  MILLRACE_ALWAYS_INLINE static int inputs(int half, int step) { return kSteps * half + step; }
  MILLRACE_ALWAYS_INLINE static Quants quants(Bytes unit, int, int half, int group, int step) {
    return line(block(unit).values[inputs(half, step)], 0, group);
  }
  MILLRACE_ALWAYS_INLINE static Part scale(Bytes unit, int, int half, int group) {
    return part_load(block(unit).scale[half] + kPartLanes * group);
  }
  MILLRACE_ALWAYS_INLINE static Part minimum(Bytes unit, int, int group) {
    return part_load(block(unit).minimum + kPartLanes * group);
  }

 private:
  MILLRACE_ALWAYS_INLINE static const UnpackedBlock& block(Bytes unit) {
    return *reinterpret_cast<const UnpackedBlock*>(unit);
  }
};

// Blocks [first, first + count) of N tokens, added to their sums or their beginning.
template <class Format, int N>
void add_range(const UnpackedBlock* w, const QuantizedBlock* const* rows, std::int64_t first,
               std::int64_t count, Prefetch& prefetch, float* sums) {
  for (int begin = 0; begin < kParts; begin += kTogether) {
    Part y[kTogether][N];
    int group[kTogether];
    MILLRACE_UNROLL
    for (int v = 0; v < kTogether; ++v) {
      group[v] = begin + v;
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) {
        const float* sum = sums + n * kPackedRows + group[v] * kPartLanes;
        y[v][n] = first == 0 ? part_set1(0.0F) : part_load(sum);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      if (begin == 0) prefetch.next();
      Bytes unit[kTogether];
      MILLRACE_UNROLL
      for (int v = 0; v < kTogether; ++v) unit[v] = reinterpret_cast<Bytes>(w + i);
      const QuantizedBlock* x[N];
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) x[n] = rows[n] + first + i;
      add_block<UnpackedFormat<Format>, kTogether, N>(unit, 0, group, x, y);
    }
    MILLRACE_UNROLL
    for (int v = 0; v < kTogether; ++v) {
      MILLRACE_UNROLL
      for (int n = 0; n < N; ++n) {
        part_store(sums + n * kPackedRows + group[v] * kPartLanes, y[v][n]);
      }
    }
  }
}

// A PackedPanelFn with groups of one token.
template <class Format>
void run_panel(const PackedPanel& a) {
  static constexpr decltype(&add_range<Format, 1>) kRanges[] = {
    &add_range<Format, 1>,
    &add_range<Format, 2>,
    &add_range<Format, 3>,
#if defined(__AVX512F__)
    &add_range<Format, 4>,
    &add_range<Format, 5>,
    &add_range<Format, 6>,
    &add_range<Format, 7>,
    &add_range<Format, 8>
#endif
  };
  static_assert(std::size(kRanges) == kTokens);
  run_ranges<Format, Unpacked::kQuants>(
      a, [&](const UnpackedBlock* w, std::int64_t first, std::int64_t count, Prefetch& prefetch)
             __attribute__((always_inline)) {
               for (std::int64_t t = 0; t < a.tokens; t += kTokens) {
                 const std::int64_t left = a.tokens - t < kTokens ? a.tokens - t : kTokens;
                 kRanges[left - 1](w, a.x + t, first, count, prefetch, a.sums + t * kPackedRows);
               }
             });
}

#endif

void quantize(const float* x, std::int64_t blocks, QuantizeMode mode, QuantizedBlock* out) {
  quantize_blocks(x, blocks, mode, out);
}

void gate(const float* gate_values, const float* up, float* y) {
  store(y, mul(silu(load(gate_values)), load(up)));
}

}  // namespace

const PackedKernels& packed_kernels() {
#define MILLRACE_TILES3(F, M) &run_tile<F, M, 1>, &run_tile<F, M, 2>, &run_tile<F, M, 3>
#define MILLRACE_TILES4(F, M) MILLRACE_TILES3(F, M), &run_tile<F, M, 4>
#if defined(__AVX512F__)
#define MILLRACE_TILES(F)                                                            \
  MILLRACE_TILES4(F, 1), &run_tile<F, 1, 5>, &run_tile<F, 1, 6>, &run_tile<F, 1, 7>, \
      &run_tile<F, 1, 8>
#define MILLRACE_PAIRS(F) MILLRACE_TILES4(F, 2)
#elif defined(__AVX2__)
#define MILLRACE_TILES(F) MILLRACE_TILES3(F, 1)
#define MILLRACE_PAIRS(F) nullptr
#else
#define MILLRACE_TILES(F) MILLRACE_TILES4(F, 1)
#define MILLRACE_PAIRS(F) nullptr
#endif
  static constexpr PackedKernels kKernels = {
    .name = MILLRACE_STRING(MILLRACE_ISA),
    .tile_tokens = kTokens,
    .pair_tokens = kPairTokens,
    .quantize = &quantize,
    .gate = &gate,
    .tiles = {{{MILLRACE_TILES(P8_0)}, {MILLRACE_PAIRS(P8_0)}},
              {{MILLRACE_TILES(P4_0)}, {MILLRACE_PAIRS(P4_0)}},
              {{MILLRACE_TILES(P4_1)}, {MILLRACE_PAIRS(P4_1)}},
              {{MILLRACE_TILES(P4_K)}},
              {{MILLRACE_TILES(P5_K)}},
              {{MILLRACE_TILES(P6_K)}}},
#if defined(__AVX2__)
    // The others are unpacked by an instruction or two: panels are no faster
    // (docs/performance-log.md).
    .panels = {nullptr, nullptr, nullptr, &run_panel<P4_K>, &run_panel<P5_K>, &run_panel<P6_K>},
    .panel_least = 2 * kTokens,
#endif
  };
  return kKernels;
}

}  // namespace millrace::kernels::MILLRACE_ISA
