#include "worker/cuda/step_results.h"

#include "config/check.h"
#include "worker/cuda/step_inputs.h"

namespace millrace {

namespace {

using kernels::cuda::SampleResult;

static_assert(kernels::cuda::kNoSampledToken == kNoToken);

std::vector<TokenLogprob> alternatives(const SampleResult& result) {
  std::vector<TokenLogprob> out;
  out.reserve(static_cast<std::size_t>(result.alternatives));
  for (std::int32_t i = 0; i < result.alternatives; ++i) {
    out.push_back({result.alternative_tokens[i], result.alternative_logprobs[i]});
  }
  return out;
}

SampledToken sampled(const LogitRow& row, const SampleResult& result) {
  // Logits that are not numbers end this sequence only; its neighbours are not touched.
  if (result.token == kNoToken) return {row.slot, {kNoToken, 0}, {}};
  return {row.slot, {result.token, result.logprob}, alternatives(result)};
}

PromptLogprobs prompt_logprobs(const LogitRow& row, const SampleResult& result) {
  PromptLogprobs out{row.slot, row.position, {row.prompt_target, 0}, {}};
  if (result.token == kNoToken) return out;
  out.target.logprob = result.logprob;
  out.top = alternatives(result);
  return out;
}

}  // namespace

PendingStep::PendingStep(const DeviceShape& shape, const DeviceWorkspace& workspace)
    : work_(workspace),
      last_stage_(shape.shard.last_stage),
      slots_(shape.expert_slots()),
      offsets_(static_cast<std::size_t>(workspace.moe_layers * workspace.offsets_stride) *
               sizeof(std::int32_t)) {
  if (!last_stage_) return;
  samples_ = kernels::cuda::PinnedBuffer(static_cast<std::size_t>(shape.max_logit_rows()) *
                                         sizeof(SampleResult));
  rows_.reserve(static_cast<std::size_t>(shape.max_rows()));
}

void PendingStep::enqueue(kernels::cuda::StreamRef stream, std::uint64_t step,
                          const StepBatch& batch, bool ran) {
  step_ = step;
  ran_ = ran;
  rows_.clear();
  if (ran && offsets_.bytes() > 0) {
    kernels::cuda::copy_to_host(stream, offsets_.data(), work_.expert_offsets, offsets_.bytes());
  }
  if (last_stage_) {
    rows_.assign(batch.logit_rows().begin(), batch.logit_rows().end());
    const auto count = static_cast<std::size_t>(count_sample_rows(batch));
    if (count > 0) {
      kernels::cuda::copy_to_host(stream, samples_.data(), work_.samples,
                                  count * sizeof(SampleResult));
    }
  }
  copied_.record(stream);
}

void PendingStep::read(StepResult& result, std::span<std::uint64_t> expert_rows) const {
  result.step = step_;
  const auto* samples = samples_.as<SampleResult>();
  for (const LogitRow& row : rows_) {
    if (row.sample) result.sampled.push_back(sampled(row, *samples++));
    if (row.prompt_target >= 0) result.prompt_logprobs.push_back(prompt_logprobs(row, *samples++));
  }
  if (!ran_) return;
  const auto* offsets = offsets_.as<std::int32_t>();
  std::size_t at = 0;
  for (std::int64_t layer = 0; layer < work_.moe_layers; ++layer) {
    for (std::int32_t slot = 0; slot < slots_; ++slot) {
      expert_rows[at++] += static_cast<std::uint64_t>(offsets[slot + 1] - offsets[slot]);
    }
    offsets += work_.offsets_stride;
  }
}

}  // namespace millrace
