#include "kernels/combine.h"

#include "kernels/cpu/set.h"
#include "kernels/cpu/simd.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

void combine_token(const CombineArgs& a, std::int64_t t) {
  const std::int64_t width = a.out.cols();
  const std::int64_t k = a.rows.cols();
  const std::int32_t* rows = a.rows.row(t);
  const float* weights = a.weights.row(t);
  float* out = a.out.row(t);
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const std::int64_t n = width - i;
    Vec sum = set1(0.0F);
    for (std::int64_t j = 0; j < k; ++j) {
      if (rows[j] < 0) continue;
      sum = fma(set1(weights[j]), load_n(a.y.row(rows[j]) + i, n), sum);
    }
    if (a.accumulate == Accumulate::kAdd) sum = add(load_n(out + i, n), sum);
    store_n(out + i, sum, n);
  }
}

}  // namespace

void combine(const Context& context, const CombineArgs& a) {
  check_combine(a);
  parallel_for(context, a.out.rows(), 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) combine_token(a, t);
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
