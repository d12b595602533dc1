// out = a + b, element by element.
#pragma once

#include "kernels/tensor_view.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// a, b, out [T, D]; out may be a or b itself but not overlap them otherwise.
using AddOp = void(const Context& context, MatrixView<const float> a, MatrixView<const float> b,
                   MatrixView<float> out);

void check_add(MatrixView<const float> a, MatrixView<const float> b, MatrixView<float> out);

}  // namespace millrace::kernels
