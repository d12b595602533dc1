#include "kernels/short_conv.h"

#include "kernels/cpu/set.h"
#include "kernels/cpu/simd.h"
#include "kernels/scratch.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// Channels whose taps are transposed at once: kMaxConvTaps x 4096 floats are a quarter of the
// scratch.
constexpr std::int64_t kChannelBlock = 4096;

// One segment over channels [c0, c0 + n); taps [L, n] with row stride kChannelBlock.
void run_segment(const ShortConvArgs& a, const ConvSegment& segment, std::int64_t c0,
                 std::int64_t n, const float* taps) {
  const std::int64_t d = a.out.cols();
  const std::int64_t num_taps = a.taps.cols();
  const std::int64_t history = num_taps - 1;
  float* state = a.state.row(segment.slot) + c0;

  // Column j of the sequence, state first: s at row j - history of the segment.
  const auto column = [&](std::int64_t j, std::int64_t c) __attribute__((always_inline)) {
    if (j < history) return load_n(state + j * d + c, n - c);
    const float* row = a.bcx.row(segment.row_begin + j - history) + c0 + c;
    return mul(load_n(row, n - c), load_n(row + 2 * d, n - c));
  };

  for (std::int64_t t = 0; t < segment.length; ++t) {
    const float* gate = a.bcx.row(segment.row_begin + t) + d + c0;
    float* out = a.out.row(segment.row_begin + t) + c0;
    for (std::int64_t c = 0; c < n; c += kLanes) {
      Vec sum = mul(load_n(taps + c, n - c), column(t, c));
      for (std::int64_t j = 1; j < num_taps; ++j) {
        sum = fma(load_n(taps + j * kChannelBlock + c, n - c), column(t + j, c), sum);
      }
      store_n(out + c, mul(load_n(gate + c, n - c), sum), n - c);
    }
  }
  // Ascending, so a column kept from the old state is read before it is overwritten.
  const auto leave = [&](std::int64_t length, float* to) __attribute__((always_inline)) {
    for (std::int64_t j = 0; j < history; ++j) {
      for (std::int64_t c = 0; c < n; c += kLanes) {
        store_n(to + j * d + c, column(length + j, c), n - c);
      }
    }
  };
  for (const ConvSave& save : segment.saves) {
    if (save.slot >= 0) leave(save.length, a.state.row(save.slot) + c0);
  }
  leave(segment.length, state);
}

}  // namespace

void short_conv(const Context& context, const ShortConvArgs& a) {
  check_short_conv(a);
  const std::int64_t d = a.out.cols();
  const std::int64_t num_taps = a.taps.cols();
  const ConvSegment* segments = a.segments.data();
  const auto count = static_cast<std::int64_t>(a.segments.size());
  // Threads share the channels, in units of a cache line, so that a single long segment is shared
  // too.
  parallel_for(context, (d + kLanes - 1) / kLanes, 16, [&](std::int64_t begin, std::int64_t end) {
    float* taps = reinterpret_cast<float*>(thread_scratch());
    const std::int64_t last = end * kLanes < d ? end * kLanes : d;
    for (std::int64_t c0 = begin * kLanes; c0 < last; c0 += kChannelBlock) {
      const std::int64_t n = last - c0 < kChannelBlock ? last - c0 : kChannelBlock;
      for (std::int64_t c = 0; c < n; ++c) {
        for (std::int64_t j = 0; j < num_taps; ++j) {
          taps[j * kChannelBlock + c] = a.taps.row(c0 + c)[j];
        }
      }
      for (std::int64_t s = 0; s < count; ++s) run_segment(a, segments[s], c0, n, taps);
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
