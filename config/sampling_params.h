// How the next token of one sequence is chosen. Plain values; checked where a request enters.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "config/result.h"

namespace millrace {

// Order of application, as in vLLM: penalties and logit_bias on the raw logits, then temperature,
// then top_k, top_p, min_p on what is left. Temperature 0 is greedy: the filters do not apply and
// ties go to the lowest token id.
struct SamplingParams {
  float temperature = 1.0F;         // [0, 2]
  std::int32_t top_k = 0;           // 0: off
  float top_p = 1.0F;               // (0, 1]
  float min_p = 0.0F;               // [0, 1], relative to the likeliest token
  float repetition_penalty = 1.0F;  // > 0, over prompt and output (CTRL, Keskar et al. 2019)
  float presence_penalty = 0.0F;    // [-2, 2], over output only
  float frequency_penalty = 0.0F;   // [-2, 2], over output only
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // (token, [-100, 100]), token ids unique

  // The draw for a position depends on (seed, choice, position) and on nothing else (contract C1).
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;

  // Number of alternatives reported beside each token: -1 none, 0 only the chosen token's own
  // log-probability, n the n likeliest as well. Taken from the raw logits, before penalties, bias
  // and temperature.
  std::int32_t logprobs = -1;
  bool prompt_logprobs = false;  // also for the prompt's own tokens (`echo` with `logprobs`)

  bool greedy() const { return temperature == 0.0F; }
  bool uses_history() const {
    return repetition_penalty != 1.0F || presence_penalty != 0.0F || frequency_penalty != 0.0F;
  }
  bool operator==(const SamplingParams&) const = default;
};

// Checks the ranges above; `vocab` bounds token ids and logprobs. The error's field is
// "sampling.<name>". A request from a client is checked where it enters, with the client's names
// for the fields; this is the check of what arrives from a peer.
Result<void> check_sampling_params(const SamplingParams& params, std::int32_t vocab);

}  // namespace millrace
