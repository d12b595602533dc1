// The tiles of the packed GEMM: 16 weight rows by up to kTokens tokens. The sums of a block stay in
// integer registers, one per token; scales are applied once per block. Weights are unpacked once
// for all tokens of the tile.
#include "kernels/cpu/packed/formats.h"
#include "kernels/cpu/packed/quantize.h"
#include "kernels/packed_gemm.h"

#define MILLRACE_STRING(x) MILLRACE_STRING_(x)
#define MILLRACE_STRING_(x) #x

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// For each token a sum of integers and one of floats live in registers (without VNNI also one of
// pairs), beside weights, masks and a broadcast activation: 8 of 32 registers, 4 of 16.
constexpr int kTokens = kPartLanes == 16 ? 8 : 4;

template <class Format, int N>
MILLRACE_ALWAYS_INLINE void add_block(Bytes unit, int b, int group,
                                      const QuantizedBlock* const (&x)[N], Part (&y)[N]) {
  MILLRACE_UNROLL
  for (int half = 0; half < Format::kHalves; ++half) {
    Dots<Format::kLargest, N> dots;
    MILLRACE_UNROLL
    for (int n = 0; n < N; ++n) dots.start(n, x[n]->start[half]);
    Format::quants(
        unit, b, half, group, [&](int index, int g, Quants w) __attribute__((always_inline)) {
          MILLRACE_UNROLL
          for (int n = 0; n < N; ++n) dots.step(n, index, w, x[n]->q + 4 * g);
        });
    const Part d = Format::scale(unit, b, half, group);
    MILLRACE_UNROLL
    for (int n = 0; n < N; ++n) {
      y[n] = part_fma(dots.floats(n), part_mul(d, part_set1(x[n]->scale)), y[n]);
    }
  }
  if constexpr (Format::kMinimum) {
    const Part m = Format::minimum(unit, b, group);
    MILLRACE_UNROLL
    for (int n = 0; n < N; ++n) y[n] = part_fma(m, part_set1(x[n]->sum), y[n]);
  }
}

template <class Format, int N>
void run_tile(const PackedTile& a) {
  for (int group = 0; group < kParts; ++group) {
    Part y[N];
    MILLRACE_UNROLL
    for (int n = 0; n < N; ++n) y[n] = part_set1(0.0F);
    Bytes unit = reinterpret_cast<Bytes>(a.w);
    const std::byte* wanted = a.prefetch;
    const std::int64_t wanted_bytes = group == 0 ? a.prefetch_bytes : 0;
    for (std::int64_t i = 0; i < a.blocks; unit += Format::kBytes) {
      for (int b = 0; b < Format::kValues / kQuantBlock; ++b, ++i) {
        for (std::int64_t at = 0; at < wanted_bytes; at += 64) __builtin_prefetch(wanted + at);
        wanted += wanted_bytes;
        const QuantizedBlock* x[N];
        MILLRACE_UNROLL
        for (int n = 0; n < N; ++n) x[n] = a.x[n] + i;
        add_block<Format, N>(unit, b, group, x, y);
      }
    }
    MILLRACE_UNROLL
    for (int n = 0; n < N; ++n) {
      float* out = a.y + n * a.y_stride + group * kPartLanes;
      part_store(out, a.add ? part_add(part_load(out), y[n]) : y[n]);
    }
  }
}

void quantize(const float* x, std::int64_t blocks, QuantizeMode mode, QuantizedBlock* out) {
  quantize_blocks(x, blocks, mode, out);
}

}  // namespace

const PackedKernels& packed_kernels() {
#define MILLRACE_TILES4(F) &run_tile<F, 1>, &run_tile<F, 2>, &run_tile<F, 3>, &run_tile<F, 4>
#if defined(__AVX512F__)
#define MILLRACE_TILES(F) \
  { MILLRACE_TILES4(F), &run_tile<F, 5>, &run_tile<F, 6>, &run_tile<F, 7>, &run_tile<F, 8> }
#else
#define MILLRACE_TILES(F) \
  { MILLRACE_TILES4(F) }
#endif
  static constexpr PackedKernels kKernels = {
      .name = MILLRACE_STRING(MILLRACE_ISA),
      .tile_tokens = kTokens,
      .quantize = &quantize,
      .tiles = {MILLRACE_TILES(P8_0), MILLRACE_TILES(P4_0), MILLRACE_TILES(P4_1),
                MILLRACE_TILES(P4_K), MILLRACE_TILES(P5_K), MILLRACE_TILES(P6_K)},
  };
  return kKernels;
}

}  // namespace millrace::kernels::MILLRACE_ISA
