#include "kernels/router.h"

#include "kernels/cpu/math.h"
#include "kernels/cpu/set.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

// The k greatest of rank[0..experts), ties to the lowest index, marked by chosen[e] = true.
void choose(const float* rank, std::int64_t experts, std::int64_t k, bool* chosen) {
  for (std::int64_t e = 0; e < experts; ++e) chosen[e] = false;
  for (std::int64_t i = 0; i < k; ++i) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < experts; ++e) {
      if (!chosen[e] && (best < 0 || rank[e] > rank[best])) best = e;
    }
    chosen[best] = true;
  }
}

void route_token(const RouterArgs& a, const float* bias, std::int64_t t) {
  const std::int64_t experts = a.logits.cols();
  const std::int64_t k = a.ids.cols();
  const float* logits = a.logits.row(t);
  alignas(64) float score[kMaxExperts];
  alignas(64) float rank[kMaxExperts];
  bool chosen[kMaxExperts];
  for (std::int64_t e = 0; e < experts; e += kLanes) {
    store_n(score + e, sigmoid(load_n(logits + e, experts - e)), experts - e);
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    const float biased = bias == nullptr ? score[e] : score[e] + bias[e];
    rank[e] = biased == biased ? biased : -__builtin_inff();  // NaN ranks last
  }
  choose(rank, experts, k, chosen);

  std::int32_t* ids = a.ids.row(t);
  float* weights = a.weights.row(t);
  float sum = 0;
  for (std::int64_t e = 0, i = 0; i < k; ++e) {
    if (!chosen[e]) continue;
    ids[i] = static_cast<std::int32_t>(e);
    weights[i++] = score[e];
    sum += score[e];
  }
  for (std::int64_t i = 0; i < k; ++i) {
    if (a.normalize) weights[i] /= sum + 1e-6F;
    weights[i] *= a.scaling_factor;
  }
}

}  // namespace

void router(const Context& context, const RouterArgs& a) {
  check_router(a);
  const float* bias = a.bias.empty() ? nullptr : a.bias.data();
  parallel_for(context, a.logits.rows(), 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) route_token(a, bias, t);
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
