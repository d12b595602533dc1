// The sampling state of every slot of a lane, on the last pipeline stage: parameters, and which
// tokens prompt and output contain (for penalties).
//
// Memory is taken once: per slot V counts of two bytes (128 KiB for V = 65,536, 250 KiB for
// 128,000) and 20 V bytes of work space per thread that samples. Counts are dense because penalties
// touch a whole row anyway and a dense row cannot overflow; an output count stays at 32,767 once it
// is there.
//
// Threads: start() of one slot and sample() of the same slot must not overlap. Different slots may
// be sampled at the same time when each caller passes its own `thread` in [0, threads).
//
// Only lists of alternatives (sampling.logprobs > 0) and start() allocate.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "config/result.h"
#include "kernels/sampling.h"
#include "worker/step.h"

namespace millrace {

class Sampler {
 public:
  Sampler(std::uint32_t max_sequences, std::int32_t vocab, std::uint32_t threads = 1);

  static std::size_t memory_bytes(std::uint32_t max_sequences, std::int32_t vocab,
                                  std::uint32_t threads = 1);

  // Binds the slot to a new sequence and forgets the one before. Refuses (kInvalidArgument, `field`
  // names it) a slot or token out of range, prompt_tokens beyond the history, and parameters
  // outside the ranges of config/sampling_params.h; the slot is then unbound.
  Result<void> start(const SequenceStart& start);

  // Draws the token at `position` of the slot's sequence (its first token has position 0) from the
  // logits [V] that follow the tokens before it, and appends it to the slot's history. Fails for a
  // slot that is not bound and for logits that are not numbers; the history is then unchanged.
  Result<SampledToken> sample(SlotId slot, std::uint64_t position, std::span<const float> logits,
                              std::uint32_t thread = 0);

  // The log-probability of `target` under raw logits [V], and of the n likeliest beside it.
  struct TargetLogprob {
    TokenLogprob target;
    std::vector<TokenLogprob> top;
  };
  Result<TargetLogprob> prompt_logprob(std::span<const float> logits, std::int32_t target,
                                       std::int32_t n, std::uint32_t thread = 0);

  std::int32_t vocab() const { return vocab_; }
  // Number of alternatives that the slot's sequence asked for beside each token; 0 for none.
  std::int32_t alternatives(SlotId slot) const {
    return std::max<std::int32_t>(0, slots_[slot].params.logprobs);
  }

 private:
  struct Slot {
    bool bound = false;
    SamplingParams params;
  };

  std::span<kernels::TokenCount> counts(SlotId slot);
  Result<std::int32_t> choose(const SamplingParams& params, SlotId slot, std::uint64_t position,
                              std::span<const float> logits, kernels::SamplingScratch& scratch);

  std::int32_t vocab_;
  std::vector<Slot> slots_;
  std::vector<kernels::TokenCount> counts_;  // [max_sequences][V]
  std::vector<kernels::SamplingScratch> scratch_;
};

}  // namespace millrace
