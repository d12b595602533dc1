#include "kernels/short_conv.h"

#include "config/check.h"

namespace millrace::kernels {

void check_short_conv(const ShortConvArgs& a) {
  const std::int64_t d = a.out.cols();
  const std::int64_t taps = a.taps.cols();
  CHECK(a.bcx.cols() == 3 * d && a.bcx.rows() == a.out.rows() && a.taps.rows() == d,
        "bcx=[{}, {}] taps=[{}, {}] out=[{}, {}]", a.bcx.rows(), a.bcx.cols(), a.taps.rows(), taps,
        a.out.rows(), d);
  CHECK(taps >= 2 && taps <= kMaxConvTaps && a.state.shape[1] == taps - 1 && a.state.shape[2] == d,
        "L={} D={} state=[{}, {}, {}]", taps, d, a.state.rows(), a.state.shape[1],
        a.state.shape[2]);
  for (std::size_t i = 0; i < a.segments.size(); ++i) {
    const ConvSegment& s = a.segments[i];
    CHECK(s.length >= 1 && s.row_begin >= 0 && s.row_begin + s.length <= a.bcx.rows() &&
              s.slot >= 0 && s.slot < a.state.rows(),
          "segments[{}]: row_begin={} length={} slot={}; T={} slots={}", i, s.row_begin, s.length,
          s.slot, a.bcx.rows(), a.state.rows());
    for (const ConvSave& save : s.saves) {
      CHECK(save.slot < a.state.rows() &&
                (save.slot < 0 || (save.length >= 1 && save.length <= s.length)),
            "segments[{}] of {} rows: save behind {} rows in slot {} of {}", i, s.length,
            save.length, save.slot, a.state.rows());
    }
  }
}

}  // namespace millrace::kernels
