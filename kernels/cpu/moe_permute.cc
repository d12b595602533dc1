#include "kernels/moe_permute.h"

#include "kernels/cpu/set.h"

namespace millrace::kernels::MILLRACE_ISA {

// Not split over threads: a few thousand integers, far below the cost of the expert GEMMs.
void moe_permute(const Context&, const MoePermuteArgs& a) {
  check_moe_permute(a);
  const std::int64_t tokens = a.ids.rows();
  const std::int64_t k = a.ids.cols();
  const auto experts = static_cast<std::int64_t>(a.offsets.size()) - 1;
  std::int64_t* offsets = a.offsets.data();
  std::int32_t* token_of = a.tokens.data();

  // offsets[e + 1] counts expert e, then becomes the end of its rows.
  for (std::int64_t e = 0; e <= experts; ++e) offsets[e] = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < k; ++i) {
      if (a.ids.row(t)[i] != kNoExpert) ++offsets[a.ids.row(t)[i] + 1];
    }
  }
  for (std::int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];

  // offsets[e] is moved forward as rows are handed out, which leaves it at the start of e + 1.
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int32_t e = a.ids.row(t)[i];
      if (e == kNoExpert) {
        a.rows.row(t)[i] = -1;
        continue;
      }
      const std::int64_t row = offsets[e]++;
      a.rows.row(t)[i] = static_cast<std::int32_t>(row);
      token_of[row] = static_cast<std::int32_t>(t);
    }
  }
  for (std::int64_t e = experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

}  // namespace millrace::kernels::MILLRACE_ISA
