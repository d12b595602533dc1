// The dot products of gemm and grouped_gemm: some rows of one weight against some rows of x.
#pragma once

#include "kernels/tensor_view.h"

namespace millrace::kernels::MILLRACE_ISA {

struct GemmJob {
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  const std::int32_t* x_rows = nullptr;  // null: token t is row t of x
  std::int64_t tokens = 0;
  WeightView w;
  float* y = nullptr;  // [tokens, w.rows]
  std::int64_t y_stride = 0;
  bool add = false;

  MILLRACE_ALWAYS_INLINE const float* x_row(std::int64_t t) const {
    return x + (x_rows == nullptr ? t : std::int64_t{x_rows[t]}) * x_stride;
  }
};

// Threads get whole groups of weight rows, so that no two write one cache line of y for long.
inline constexpr std::int64_t kRowGroup = 16;

// Columns [n_begin, n_end) of y for all tokens of the job.
void gemm_rows(const GemmJob& job, std::int64_t n_begin, std::int64_t n_end);

// The least number of row groups worth a thread for this much work a row.
MILLRACE_ALWAYS_INLINE std::int64_t gemm_grain(std::int64_t tokens, std::int64_t k) {
  // 32 Ki multiply-adds are a few microseconds, about what a wake-up costs.
  return 1 + 32768 / (kRowGroup * (tokens + 1) * (k + 1));
}

}  // namespace millrace::kernels::MILLRACE_ISA
