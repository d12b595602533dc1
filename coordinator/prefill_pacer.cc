#include "coordinator/prefill_pacer.h"

#include <algorithm>

namespace millrace {

namespace {

// A step's time grows at most in proportion to its tokens, so the first guess is never too small
// and a few steps settle it. What has been too slow once, as for weights that had to come from
// disk, comes back by this much a step.
constexpr double kGrowth = 1.5;

}  // namespace

std::uint32_t PrefillPacer::tokens() const {
  return std::min(most_, std::max(kLeast, static_cast<std::uint32_t>(tokens_)));
}

void PrefillPacer::note(std::uint32_t prompt_tokens, std::chrono::nanoseconds time) {
  if (limit_.count() == 0 || prompt_tokens == 0 || time.count() <= 0) return;
  const std::uint32_t allowed = tokens();
  const double fit =
      prompt_tokens * (static_cast<double>(limit_.count()) / static_cast<double>(time.count()));
  if (time > limit_) {
    tokens_ = std::min<double>(allowed, fit);
  } else if (prompt_tokens >= allowed) {
    tokens_ = std::min(fit, kGrowth * allowed);
  }
}

}  // namespace millrace
