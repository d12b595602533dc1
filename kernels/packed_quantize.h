// Our own rounding of plain weights to the block formats Q8_0 and Q4_0 (kernels/dtype.h).
//
// Q8_0: d = max|x| / 127, values to nearest. Q4_0: of all values in [-8, 7] times one scale, those
// with the least sum of squared errors that a search over scales finds: for each of some scales
// around max|x| / 8 of either sign the values are rounded to nearest, then the best scale for
// those values follows in closed form. d is rounded to half precision before values are chosen for
// good. Deterministic: the same bytes on every machine and with any number of threads.
#pragma once

#include "kernels/tensor_view.h"

namespace millrace::kernels {

// `source` of a plain type, `dtype` kQ8_0 or kQ4_0; writes rows * row_bytes(dtype, cols) bytes.
void quantize_weight(const WeightView& source, DType dtype, std::byte* out);

}  // namespace millrace::kernels
