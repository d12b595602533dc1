// From one row of logits to one token, and log-probabilities.
//
// Every function depends on its arguments only (contract C1): sums of probabilities are sums of
// integers, so no order of summation exists that could change them. A token's weight is
//   w = floor(2^44 * exp(x))      x = (logit - largest logit) / temperature
// where exp is the one in sampling_weight.h (float, the same bits on every processor). Tokens more
// than 30.5 below the maximum get weight 0; for V = 128,000 they and the truncation hold less than
// 2^-27 of the mass together.
//
// Order of the steps, as in config/sampling_params.h:
//   1. logit_bias, then penalties, on the raw logits (the order of vLLM's sampler)
//   2. greedy (temperature 0): the lowest id among the maxima. Otherwise x as above;
//      subtracting the maximum first keeps every temperature > 0 from overflowing
//   3. top_k: keeps every token whose x is at least the k-th largest; ties with it stay
//   4. top_p: in the order (x descending, id ascending) keeps tokens as long as the tokens before
//      them hold less than top_p of what step 3 left; hence always the first
//   5. min_p: keeps tokens with exp(x) >= min_p
//   6. the draw: tokens that are left, in ascending order of id, own consecutive intervals of
//      [0, total weight); the one that contains floor(total * bits / 2^64) is the token
// Filters 3 to 5 have the semantics of the logits warpers of Hugging Face Transformers and of vLLM.
//
// Logits may be -inf (a token that must not appear) but not NaN or +inf, and not all -inf: then the
// result is kInternal with field "logits", and no state has changed.
//
// Threads: functions are reentrant; each concurrent call needs its own SamplingScratch. Nothing is
// allocated after the scratch has been made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "config/result.h"

namespace millrace::kernels {

// The parameters of one row as plain values (kernels do not know the request's own struct).
struct SamplingRow {
  float temperature = 1.0F;
  std::int32_t top_k = 0;  // 0: off
  float top_p = 1.0F;
  float min_p = 0.0F;
  std::uint64_t bits = 0;  // draw_bits() of kernels/philox.h
};

struct Penalties {
  float repetition = 1.0F;  // x > 0 ? x / r : x * r for tokens of prompt and output
  float presence = 0.0F;    // subtracted once for tokens of the output
  float frequency = 0.0F;   // subtracted once per occurrence in the output
};

// What a sequence has seen of one token: bit 15 says that the prompt contains it, the low bits
// count its occurrences in the output and stay at kMaxOutputCount once they reach it.
using TokenCount = std::uint16_t;
inline constexpr TokenCount kInPrompt = 0x8000;
inline constexpr TokenCount kMaxOutputCount = 0x7FFF;
inline void count_output(TokenCount& count) {
  if ((count & kMaxOutputCount) != kMaxOutputCount) ++count;
}

struct Candidate {
  float logit = 0;
  std::int32_t token = 0;
};

struct LogProbability {
  std::int32_t token = 0;
  float logprob = 0;
};

// Work space for rows of up to V logits: 20 bytes per token.
struct SamplingScratch {
  explicit SamplingScratch(std::int32_t vocab);
  static std::size_t bytes(std::int32_t vocab);

  std::int32_t vocab;
  std::vector<float> logits;              // [V] for callers: a row after step 1
  std::vector<float> scaled;              // [V] x - max after temperature, compacted by the filters
  std::vector<std::int32_t> ids;          // [V] the tokens of `scaled` once it is compacted
  std::vector<Candidate> candidates;      // [V] selection of the largest
  std::vector<std::uint64_t> block_sums;  // [ceil(V / kWeightBlock)]
};
inline constexpr std::int32_t kWeightBlock = 256;

// logits[token] += bias. Tokens outside [0, V) are refused with field "logit_bias".
Result<void> apply_logit_bias(std::span<float> logits,
                              std::span<const std::pair<std::int32_t, float>> bias);

// counts has the length of logits.
void apply_penalties(std::span<float> logits, std::span<const TokenCount> counts,
                     const Penalties& penalties);

// Step 2, the greedy half.
Result<std::int32_t> argmax(std::span<const float> logits);

// Steps 2 to 6 on logits [V] after step 1. `logits` may be scratch.logits; it is not changed.
Result<std::int32_t> sample_token(std::span<const float> logits, const SamplingRow& row,
                                  SamplingScratch& scratch);

// log(sum(exp(logits))), by the integer weights above.
Result<double> log_sum_exp(std::span<const float> logits);

// The `top.size()` likeliest tokens (at most V) into `top`: likeliest first, ties lowest id first;
// and `chosen`'s own log-probability as the result. `chosen` must be in [0, V).
Result<float> log_probabilities(std::span<const float> logits, std::int32_t chosen,
                                std::span<LogProbability> top, SamplingScratch& scratch);

namespace ref {

// The definition in double and plain loops, with a full sort; tests compare the above with it. The
// probabilities that steps 2 to 5 leave, 0 for tokens that are out. Greedy gives a single 1.
std::vector<double> filtered_probabilities(std::span<const float> logits, const SamplingRow& row);

// Step 6 on such probabilities, with `u` in (0, 1) in place of the bits.
std::int32_t draw(std::span<const double> probabilities, double u);

void apply_penalties(std::span<float> logits, std::span<const TokenCount> counts,
                     const Penalties& penalties);
double log_sum_exp(std::span<const float> logits);

}  // namespace ref

}  // namespace millrace::kernels
