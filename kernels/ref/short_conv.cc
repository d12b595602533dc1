#include "kernels/short_conv.h"

#include <vector>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void short_conv(const Context&, const ShortConvArgs& a) {
  check_short_conv(a);
  const std::int64_t d = a.out.cols();
  const std::int64_t taps = a.taps.cols();
  for (const ConvSegment& segment : a.segments) {
    for (std::int64_t c = 0; c < d; ++c) {
      // columns = the state, then s of every row of the segment
      std::vector<float> columns;
      float* state = a.state.row(segment.slot) + c;
      for (std::int64_t j = 0; j < taps - 1; ++j) columns.push_back(state[j * d]);
      for (std::int64_t t = 0; t < segment.length; ++t) {
        const float* row = a.bcx.row(segment.row_begin + t);
        columns.push_back(row[c] * row[2 * d + c]);
        double sum = 0;
        for (std::int64_t j = 0; j < taps; ++j) {
          sum += static_cast<double>(a.taps.row(c)[j]) * columns[static_cast<std::size_t>(t + j)];
        }
        a.out.row(segment.row_begin + t)[c] = static_cast<float>(row[d + c] * sum);
      }
      const auto leave = [&](std::int64_t length, float* to) {
        for (std::int64_t j = 0; j < taps - 1; ++j) {
          to[j * d] = columns[static_cast<std::size_t>(length + j)];
        }
      };
      for (const ConvSave& save : segment.saves) {
        if (save.slot >= 0) leave(save.length, a.state.row(save.slot) + c);
      }
      leave(segment.length, state);
    }
  }
}

}  // namespace millrace::kernels::reference
