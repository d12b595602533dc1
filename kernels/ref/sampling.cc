// The definition: double, plain loops, a full sort. See kernels/sampling.h for the steps.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/sampling.h"

namespace millrace::kernels::ref {
namespace {

double sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

// Token ids by probability, descending; ties by id.
std::vector<std::size_t> ranked(const std::vector<double>& p) {
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return p[a] > p[b]; });
  return order;
}

void keep_top_k(std::vector<double>& p, std::int32_t top_k) {
  if (top_k <= 0 || static_cast<std::size_t>(top_k) >= p.size()) return;
  const double threshold = p[ranked(p)[static_cast<std::size_t>(top_k) - 1]];
  for (double& value : p) {
    if (value < threshold) value = 0;
  }
}

void keep_top_p(std::vector<double>& p, double top_p) {
  if (top_p >= 1) return;
  const double limit = top_p * sum(p);
  double before = 0;
  for (const std::size_t token : ranked(p)) {
    const double own = p[token];
    if (before >= limit) p[token] = 0;
    before += own;
  }
}

}  // namespace

std::vector<double> filtered_probabilities(std::span<const float> logits, const SamplingRow& row) {
  std::vector<double> p(logits.size(), 0.0);
  const auto first_max = std::max_element(logits.begin(), logits.end());
  if (row.temperature == 0.0F) {
    p[static_cast<std::size_t>(first_max - logits.begin())] = 1;
    return p;
  }
  for (std::size_t i = 0; i < p.size(); ++i) {
    p[i] = std::exp((static_cast<double>(logits[i]) - *first_max) / row.temperature);
  }
  keep_top_k(p, row.top_k);
  keep_top_p(p, row.top_p);
  for (double& value : p) {
    if (value < row.min_p) value = 0;  // the largest is 1
  }
  const double total = sum(p);
  for (double& value : p) value /= total;
  return p;
}

std::int32_t draw(std::span<const double> probabilities, double u) {
  double before = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] == 0) continue;
    before += probabilities[i];
    last = i;
    if (u < before) break;
  }
  return static_cast<std::int32_t>(last);
}

void apply_penalties(std::span<float> logits, std::span<const TokenCount> counts,
                     const Penalties& penalties) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (counts[i] == 0) continue;
    double x = logits[i];
    x = x > 0 ? x / penalties.repetition : x * penalties.repetition;
    const int produced = counts[i] & kMaxOutputCount;
    if (produced > 0) x -= static_cast<double>(penalties.frequency) * produced + penalties.presence;
    logits[i] = static_cast<float>(x);
  }
}

double log_sum_exp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x) - max);
  return max + std::log(total);
}

}  // namespace millrace::kernels::ref
