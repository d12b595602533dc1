// Sampling on the device: from rows of logits to tokens and log-probabilities, with the definition
// of kernels/sampling.h and for the same logits the same token, whatever the batch (contract C1).
//
// Parameters live on the device by slot (a SlotSampling is uploaded when a sequence starts), token
// counts too, and the newest token of every slot stays there for the next step's embedding. So a
// captured decode step reads all that varies from memory.
//
// A block has one row. It finds the largest logit, then keeps only the few candidates that the
// filters can leave (by a histogram of x in steps of 1/64 for top_k; by the bounds that top_p and
// min_p imply otherwise) and decides among these exactly; where they are too many it reads the row
// again instead. Nothing is sorted; all sums are sums of integers.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/sampling.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

inline constexpr std::int32_t kMaxAlternatives = 20;
inline constexpr std::int64_t kMaxSampledVocab = 131072;
inline constexpr std::int32_t kNoSampledToken = -1;  // worker/step.h, kNoToken

struct LogitBias {
  std::int32_t token = 0;
  float value = 0;
};

// How the tokens of one slot's sequence are chosen; ranges as in config/sampling_params.h.
struct SlotSampling {
  float temperature = 1.0F;  // 0: greedy
  std::int32_t top_k = 0;
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition = 1.0F;
  float presence = 0.0F;
  float frequency = 0.0F;
  std::int32_t logprobs = -1;   // -1 none, 0 the token's own, n (up to 20) the n likeliest as well
  std::int32_t bias_count = 0;  // entries of the slot's list; its tokens are distinct
  std::uint32_t choice = 0;
  std::uint64_t seed = 0;

  bool uses_history() const { return repetition != 1.0F || presence != 0.0F || frequency != 0.0F; }
};

// One row of logits in this step.
struct SampleRow {
  std::int32_t slot = -1;    // -1: padding, the result has kNoSampledToken
  std::int32_t target = -1;  // -1: draw. Otherwise only the log-probability of this token is wanted
  std::uint64_t position = 0;  // of the token to draw, in its sequence
};

struct SampleResult {
  std::int32_t token = kNoSampledToken;  // or the row's target; kNoSampledToken when the logits
                                         // were not numbers
  float logprob = 0;              // 0 when none was asked for
  std::int32_t alternatives = 0;  // entries below: likeliest first, ties lowest id first
  std::int32_t reserved = 0;
  std::int32_t alternative_tokens[kMaxAlternatives] = {};
  float alternative_logprobs[kMaxAlternatives] = {};
};

// All pointers are device memory.
struct SampleArgs {
  // [B, V], rows aligned to 16 bytes, V at most kMaxSampledVocab. The kernel adds a row's
  // logit_bias in place and takes it back, so afterwards the logits are what they were.
  MatrixView<float> logits;
  const SampleRow* rows = nullptr;      // [B]; rows that draw have distinct slots
  const SlotSampling* slots = nullptr;  // [slots]
  const LogitBias* bias = nullptr;      // [slots, bias_stride], null when no slot has any
  std::int64_t bias_stride = 0;
  float* bias_scratch = nullptr;        // [B, bias_stride]: the logits under the bias
  MatrixView<TokenCount> counts;        // [slots, V], rows aligned to 8 bytes; see start_histories
  SampleResult* results = nullptr;      // [B]
  std::int32_t* last_tokens = nullptr;  // [slots] or null: gets the drawn token
};

// A drawn token is counted in its slot's history when the slot has penalties. A row that cannot be
// drawn (NaN, +inf, nothing but -inf, before or after penalties) changes no state.
void sample(StreamRef stream, const SampleArgs& args);

// What a slot's sequence has seen before its next token: prompt, then output.
struct HistoryStart {
  std::int32_t slot = -1;  // -1: nothing to do
  std::int32_t prompt_tokens = 0;
  std::int32_t tokens = 0;  // of the history, prompt included
  std::int32_t reserved = 0;
  std::int64_t begin = 0;  // of the history, in StartHistoriesArgs::tokens
};

struct StartHistoriesArgs {
  const HistoryStart* starts = nullptr;  // [count], device; slots distinct
  std::int64_t count = 0;
  const std::int32_t* tokens = nullptr;  // device; ids outside [0, V) are skipped
  MatrixView<TokenCount> counts;         // [slots, V]
};

// Clears the counts of each slot and counts its history. Only slots with penalties need it.
void start_histories(StreamRef stream, const StartHistoriesArgs& args);

}  // namespace millrace::kernels::cuda
