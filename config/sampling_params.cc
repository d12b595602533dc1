#include "config/sampling_params.h"

#include <fmt/format.h>

#include <cmath>

namespace millrace {

namespace {

bool in_range(float value, float low, float high) { return value >= low && value <= high; }

}  // namespace

// Written so that NaN fails.
Result<void> check_sampling_params(const SamplingParams& p, std::int32_t vocab) {
  if (!in_range(p.temperature, 0, 2)) return invalid("sampling.temperature", "must be in [0, 2]");
  if (p.top_k < 0) return invalid("sampling.top_k", "must be 0 (off) or positive");
  if (!(p.top_p > 0 && p.top_p <= 1)) return invalid("sampling.top_p", "must be in (0, 1]");
  if (!in_range(p.min_p, 0, 1)) return invalid("sampling.min_p", "must be in [0, 1]");
  if (!(p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty))) {
    return invalid("sampling.repetition_penalty", "must be positive");
  }
  if (!in_range(p.presence_penalty, -2, 2)) {
    return invalid("sampling.presence_penalty", "must be in [-2, 2]");
  }
  if (!in_range(p.frequency_penalty, -2, 2)) {
    return invalid("sampling.frequency_penalty", "must be in [-2, 2]");
  }
  if (p.logprobs < -1 || p.logprobs > vocab) {
    return invalid("sampling.logprobs", fmt::format("must be in [-1, {}]", vocab));
  }
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= vocab || !in_range(bias, -100, 100)) {
      return invalid(
          "sampling.logit_bias",
          fmt::format("token {} must be in [0, {}) and its bias in [-100, 100]", token, vocab));
    }
  }
  return {};
}

}  // namespace millrace
