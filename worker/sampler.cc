#include "worker/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "config/check.h"
#include "kernels/philox.h"

namespace millrace {
namespace {

std::vector<TokenLogprob> to_wire(const std::vector<kernels::LogProbability>& top) {
  std::vector<TokenLogprob> out;
  out.reserve(top.size());
  for (const auto& entry : top) out.push_back({entry.token, entry.logprob});
  return out;
}

}  // namespace

Sampler::Sampler(std::uint32_t max_sequences, std::int32_t vocab, std::uint32_t threads)
    : vocab_(vocab),
      slots_(max_sequences),
      counts_(std::size_t{max_sequences} * static_cast<std::size_t>(vocab)),
      scratch_(threads, kernels::SamplingScratch(vocab)) {}

std::size_t Sampler::memory_bytes(std::uint32_t max_sequences, std::int32_t vocab,
                                  std::uint32_t threads) {
  return std::size_t{max_sequences} * static_cast<std::size_t>(vocab) *
             sizeof(kernels::TokenCount) +
         std::size_t{threads} * kernels::SamplingScratch::bytes(vocab);
}

std::span<kernels::TokenCount> Sampler::counts(SlotId slot) {
  const auto v = static_cast<std::size_t>(vocab_);
  return std::span(counts_).subspan(std::size_t{slot} * v, v);
}

Result<void> Sampler::start(const SequenceStart& start) {
  if (start.slot >= slots_.size()) {
    return invalid("start.slot", fmt::format("{} is not below {}", start.slot, slots_.size()));
  }
  Slot& slot = slots_[start.slot];
  slot.bound = false;
  if (auto checked = check_sampling_params(start.sampling, vocab_); !checked)
    return checked.error();
  if (start.sampling.uses_history()) {
    if (start.prompt_tokens > start.history.size()) {
      return invalid("start.prompt_tokens", fmt::format("{} of a history of {} tokens",
                                                        start.prompt_tokens, start.history.size()));
    }
    const std::span<kernels::TokenCount> row = counts(start.slot);
    std::fill(row.begin(), row.end(), kernels::TokenCount{0});
    for (std::size_t i = 0; i < start.history.size(); ++i) {
      const std::int32_t token = start.history[i];
      if (token < 0 || token >= vocab_) {
        return invalid("start.history", fmt::format("token {} at {} is not in the vocabulary of {}",
                                                    token, i, vocab_));
      }
      if (i < start.prompt_tokens) {
        row[static_cast<std::size_t>(token)] |= kernels::kInPrompt;
      } else {
        kernels::count_output(row[static_cast<std::size_t>(token)]);
      }
    }
  }
  slot.params = start.sampling;
  slot.bound = true;
  return {};
}

Result<std::int32_t> Sampler::choose(const SamplingParams& params, SlotId slot,
                                     std::uint64_t position, std::span<const float> logits,
                                     kernels::SamplingScratch& scratch) {
  if (params.uses_history() || !params.logit_bias.empty()) {
    std::copy(logits.begin(), logits.end(), scratch.logits.begin());
    if (auto biased = kernels::apply_logit_bias(scratch.logits, params.logit_bias); !biased) {
      return biased.error();
    }
    if (params.uses_history()) {
      kernels::apply_penalties(
          scratch.logits, counts(slot),
          {params.repetition_penalty, params.presence_penalty, params.frequency_penalty});
    }
    logits = scratch.logits;
  }
  const kernels::SamplingRow row{.temperature = params.temperature,
                                 .top_k = params.top_k,
                                 .top_p = params.top_p,
                                 .min_p = params.min_p,
                                 .bits = kernels::draw_bits(params.seed, params.choice, position)};
  return kernels::sample_token(logits, row, scratch);
}

Result<SampledToken> Sampler::sample(SlotId slot_id, std::uint64_t position,
                                     std::span<const float> logits, std::uint32_t thread) {
  CHECK(logits.size() == static_cast<std::size_t>(vocab_), "logits={} vocab={}", logits.size(),
        vocab_);
  CHECK(thread < scratch_.size(), "thread={} of {}", thread, scratch_.size());
  if (slot_id >= slots_.size() || !slots_[slot_id].bound) {
    return invalid("chunk.slot", fmt::format("slot {} has no sequence", slot_id));
  }
  const SamplingParams& params = slots_[slot_id].params;
  const Result<std::int32_t> token = choose(params, slot_id, position, logits, scratch_[thread]);
  if (!token) return token.error();

  SampledToken sampled{.slot = slot_id, .chosen = {.token = *token}};
  if (params.logprobs >= 0) {
    auto report = prompt_logprob(logits, *token, params.logprobs, thread);
    if (!report) return report.error();
    sampled.chosen = report->target;
    sampled.top = std::move(report->top);
  }
  if (params.uses_history())
    kernels::count_output(counts(slot_id)[static_cast<std::size_t>(*token)]);
  return sampled;
}

Result<Sampler::TargetLogprob> Sampler::prompt_logprob(std::span<const float> logits,
                                                       std::int32_t target, std::int32_t n,
                                                       std::uint32_t thread) {
  CHECK(logits.size() == static_cast<std::size_t>(vocab_), "logits={} vocab={}", logits.size(),
        vocab_);
  CHECK(thread < scratch_.size(), "thread={} of {}", thread, scratch_.size());
  if (target < 0 || target >= vocab_) {
    return invalid("chunk.prompt_targets",
                   fmt::format("token {} is not in the vocabulary of {}", target, vocab_));
  }
  std::vector<kernels::LogProbability> top(static_cast<std::size_t>(std::clamp(n, 0, vocab_)));
  const Result<float> logprob = kernels::log_probabilities(logits, target, top, scratch_[thread]);
  if (!logprob) return logprob.error();
  return TargetLogprob{.target = {target, *logprob}, .top = to_wire(top)};
}

}  // namespace millrace
