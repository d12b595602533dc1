// How many prompt tokens a step may take while sequences wait for their next tokens, so that the
// wait stays below a limit. Learns from the steps: their time is measured, not modelled.
#pragma once

#include <chrono>
#include <cstdint>

namespace millrace {

class PrefillPacer {
 public:
  // No step takes more than `most` anyway. limit 0: nor does it take less.
  PrefillPacer(std::chrono::nanoseconds limit, std::uint32_t most)
      : limit_(limit), most_(most), tokens_(most) {}

  // Enough for prompts to go on, however slow steps are.
  static constexpr std::uint32_t kLeast = 16;

  std::uint32_t tokens() const;

  // A step that took `prompt_tokens` has run for `time`.
  void note(std::uint32_t prompt_tokens, std::chrono::nanoseconds time);

 private:
  std::chrono::nanoseconds limit_;
  std::uint32_t most_;
  double tokens_;  // what fits, as far as is known; not rounded, nor kept above kLeast
};

}  // namespace millrace
