#include "kernels/moe_permute.h"

#include "config/check.h"

namespace millrace::kernels {

void check_moe_permute(const MoePermuteArgs& a) {
  CHECK(!a.offsets.empty(), "offsets needs E + 1 entries");
  const auto experts = static_cast<std::int64_t>(a.offsets.size()) - 1;
  const std::int64_t pairs = a.ids.rows() * a.ids.cols();
  CHECK(a.rows.rows() == a.ids.rows() && a.rows.cols() == a.ids.cols() &&
            static_cast<std::int64_t>(a.tokens.size()) >= pairs,
        "ids=[{}, {}] rows=[{}, {}] tokens={}", a.ids.rows(), a.ids.cols(), a.rows.rows(),
        a.rows.cols(), a.tokens.size());
  for (std::int64_t t = 0; t < a.ids.rows(); ++t) {
    for (std::int64_t k = 0; k < a.ids.cols(); ++k) {
      const std::int32_t id = a.ids.row(t)[k];
      CHECK(id == kNoExpert || (id >= 0 && id < experts), "ids[{}, {}]={} E={}", t, k, id, experts);
    }
  }
}

}  // namespace millrace::kernels
