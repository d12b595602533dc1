#include "kernels/moe_permute.h"

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void moe_permute(const Context&, const MoePermuteArgs& a) {
  check_moe_permute(a);
  std::int32_t next = 0;
  for (std::size_t e = 0; e + 1 < a.offsets.size(); ++e) {
    a.offsets[e] = next;
    for (std::int64_t t = 0; t < a.ids.rows(); ++t) {
      for (std::int64_t k = 0; k < a.ids.cols(); ++k) {
        const std::int32_t id = a.ids.row(t)[k];
        if (id == kNoExpert) a.rows.row(t)[k] = -1;
        if (id != static_cast<std::int32_t>(e)) continue;
        a.rows.row(t)[k] = next;
        a.tokens[static_cast<std::size_t>(next++)] = static_cast<std::int32_t>(t);
      }
    }
  }
  a.offsets.back() = next;
}

}  // namespace millrace::kernels::reference
