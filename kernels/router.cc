#include "kernels/router.h"

#include "config/check.h"

namespace millrace::kernels {

void check_router(const RouterArgs& a) {
  const std::int64_t experts = a.logits.cols();
  const std::int64_t k = a.ids.cols();
  CHECK(a.ids.rows() == a.logits.rows() && a.weights.rows() == a.logits.rows() &&
            a.weights.cols() == k,
        "logits=[{}, {}] ids=[{}, {}] weights=[{}, {}]", a.logits.rows(), experts, a.ids.rows(), k,
        a.weights.rows(), a.weights.cols());
  CHECK(
      experts >= 1 && experts <= kMaxExperts && k >= 1 && k <= experts && k <= kMaxExpertsPerToken,
      "E={} K={}", experts, k);
  CHECK(a.bias.empty() || static_cast<std::int64_t>(a.bias.size()) == experts, "bias={} E={}",
        a.bias.size(), experts);
}

}  // namespace millrace::kernels
