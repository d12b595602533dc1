// What panels (kernels/packed_gemm.h) have in common: 16 rows are unpacked for one range of K after
// the other, and each range is multiplied with all tokens while it is in L1.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/packed/unpack.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels::MILLRACE_ISA {

// Asks for what will be wanted soon, in each block of all passes as much.
struct Prefetch {
  const std::byte* at;
  std::int64_t bytes;

  MILLRACE_ALWAYS_INLINE void next() {
    for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
    at += bytes;
  }
};

// add_range(w, first, count, prefetch): adds blocks [first, first + count) of K, which are w[0] to
// w[count - 1], to a.sums of all tokens, or begins them where first is 0.
template <class Format, Unpacked kForm, class AddRange>
MILLRACE_ALWAYS_INLINE void run_ranges(const PackedPanel& a, const AddRange& add_range) {
  UnpackedBlock unpacked[kUnpackedBlocks];
  Bytes unit = reinterpret_cast<Bytes>(a.w);
  Prefetch prefetch = {a.w + a.prefetch_ahead, a.prefetch_bytes};
  for (std::int64_t i = 0; i < a.blocks; i += kUnpackedBlocks) {
    const std::int64_t count = a.blocks - i < kUnpackedBlocks ? a.blocks - i : kUnpackedBlocks;
    unpack<Format, kForm>(unit, count, unpacked);
    unit += count / (Format::kValues / kQuantBlock) * Format::kBytes;
    add_range(unpacked, i, count, prefetch);
  }
  for (std::int64_t t = 0; t < a.tokens; ++t) {
    float* out = a.y + t * a.y_stride;
    const Vec sum = load(a.sums + t * kPackedRows);
    store(out, a.add ? add(load(out), sum) : sum);
  }
}

}  // namespace millrace::kernels::MILLRACE_ISA
