#include "kernels/grouped_gemm.h"

#include "kernels/cpu/gemm_rows.h"
#include "kernels/cpu/set.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

GemmJob expert_job(const GroupedGemmArgs& a, std::int64_t begin, std::int64_t end,
                   const WeightView& w) {
  GemmJob job;
  job.x_stride = a.x.row_stride;
  job.x = a.x_rows.empty() ? a.x.row(begin) : a.x.data;
  job.x_rows = a.x_rows.empty() ? nullptr : a.x_rows.data() + begin;
  job.tokens = end - begin;
  job.w = w;
  job.y = a.y.row(begin);
  job.y_stride = a.y.row_stride;
  return job;
}

}  // namespace

void grouped_gemm(const Context& context, const GroupedGemmArgs& a) {
  check_grouped_gemm(a);
  const auto experts = static_cast<std::int64_t>(a.weights.size());
  const std::int64_t* offsets = a.offsets.data();
  const WeightView* weights = a.weights.data();
  bool packed = false;
  bool plain = false;
  for (std::int64_t e = 0; e < experts; ++e) {
    if (offsets[e] == offsets[e + 1]) continue;
    (is_packed(weights[e].dtype) ? packed : plain) = true;
  }
  if (packed) packed_grouped_gemm(packed_kernels(table().name), context, a);
  if (!plain) return;
  const std::int64_t n = a.y.cols();
  const std::int64_t groups = (n + kRowGroup - 1) / kRowGroup;
  // Every thread takes its share of the columns of every expert: even work however uneven the rows.
  parallel_for(context, groups, gemm_grain(offsets[experts], a.x.cols()),
               [&](std::int64_t begin, std::int64_t end) {
                 const std::int64_t last = end * kRowGroup < n ? end * kRowGroup : n;
                 for (std::int64_t e = 0; e < experts; ++e) {
                   if (offsets[e] == offsets[e + 1] || is_packed(weights[e].dtype)) continue;
                   gemm_rows(expert_job(a, offsets[e], offsets[e + 1], weights[e]),
                             begin * kRowGroup, last);
                 }
               });
}

}  // namespace millrace::kernels::MILLRACE_ISA
