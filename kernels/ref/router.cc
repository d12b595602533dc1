#include "kernels/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {

void router(const Context&, const RouterArgs& a) {
  check_router(a);
  const auto experts = static_cast<std::size_t>(a.logits.cols());
  const auto k = static_cast<std::size_t>(a.ids.cols());
  std::vector<float> score(experts);
  std::vector<float> rank(experts);
  std::vector<std::int32_t> order(experts);
  for (std::int64_t t = 0; t < a.logits.rows(); ++t) {
    for (std::size_t e = 0; e < experts; ++e) {
      score[e] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(a.logits.row(t)[e]))));
      rank[e] = a.bias.empty() ? score[e] : score[e] + a.bias[e];
      if (std::isnan(rank[e])) rank[e] = -std::numeric_limits<float>::infinity();
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t i, std::int32_t j) {
      return rank[static_cast<std::size_t>(i)] > rank[static_cast<std::size_t>(j)];
    });
    std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k));
    double sum = 0;
    for (std::size_t i = 0; i < k; ++i) sum += score[static_cast<std::size_t>(order[i])];
    for (std::size_t i = 0; i < k; ++i) {
      double weight = score[static_cast<std::size_t>(order[i])];
      if (a.normalize) weight /= sum + 1e-6;
      a.ids.row(t)[i] = order[i];
      a.weights.row(t)[i] = static_cast<float>(weight * a.scaling_factor);
    }
  }
}

}  // namespace millrace::kernels::reference
