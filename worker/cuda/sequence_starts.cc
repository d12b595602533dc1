#include "worker/cuda/sequence_starts.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace millrace {

namespace {

using kernels::cuda::HistoryStart;
using kernels::cuda::LogitBias;
using kernels::cuda::SlotSampling;

static_assert(kernels::cuda::kMaxAlternatives == kMaxDeviceLogprobs);

std::int64_t history_room(const DeviceShape& shape) {
  return std::max<std::int64_t>(shape.limits.max_context_tokens, 16'384);
}

[[noreturn]] void bad_start(const std::string& what) {
  throw std::runtime_error("step plan: " + what);
}

void check(const SequenceStart& start, std::int32_t vocab, std::int64_t history_tokens) {
  if (auto checked = check_sampling_params(start.sampling, vocab); !checked) {
    bad_start(checked.error().to_string());
  }
  if (start.sampling.logprobs > kernels::cuda::kMaxAlternatives) {
    bad_start(fmt::format("sampling.logprobs: {} alternatives, a device gives at most {}",
                          start.sampling.logprobs, kernels::cuda::kMaxAlternatives));
  }
  if (start.sampling.logit_bias.size() > static_cast<std::size_t>(kMaxLogitBias)) {
    bad_start(fmt::format("sampling.logit_bias: {} entries, a device takes at most {}",
                          start.sampling.logit_bias.size(), kMaxLogitBias));
  }
  if (!start.sampling.uses_history()) return;
  if (start.prompt_tokens > start.history.size()) {
    bad_start(fmt::format("start.prompt_tokens: {} of a history of {} tokens", start.prompt_tokens,
                          start.history.size()));
  }
  if (start.history.size() > static_cast<std::size_t>(history_tokens)) {
    bad_start(fmt::format("start.history: {} tokens, the context has {}", start.history.size(),
                          history_tokens));
  }
  for (const std::int32_t token : start.history) {
    if (token < 0 || token >= vocab) {
      bad_start(fmt::format("start.history: token {} of {}", token, vocab));
    }
  }
}

SlotSampling slot_sampling(const SamplingParams& p) {
  SlotSampling out;
  out.temperature = p.temperature;
  out.top_k = p.top_k;
  out.top_p = p.top_p;
  out.min_p = p.min_p;
  out.repetition = p.repetition_penalty;
  out.presence = p.presence_penalty;
  out.frequency = p.frequency_penalty;
  out.logprobs = p.logprobs;
  out.bias_count = static_cast<std::int32_t>(p.logit_bias.size());
  out.choice = p.choice;
  out.seed = p.seed;
  return out;
}

}  // namespace

SequenceStarter::Block SequenceStarter::lay_out(ArenaCursor& cursor, const DeviceShape& shape,
                                                bool host) {
  const std::int64_t slots = shape.limits.max_sequences;
  Block block;
  block.moves = cursor.take<kernels::cuda::ConvMove>(slots);
  if (!shape.shard.last_stage) return block;
  if (host) {
    block.sampling = cursor.take<SlotSampling>(slots);
    block.bias = cursor.take<LogitBias>(slots * kMaxLogitBias);
  }
  block.histories = cursor.take<HistoryStart>(slots);
  block.tokens = cursor.take<std::int32_t>(history_room(shape));
  return block;
}

std::size_t SequenceStarter::device_bytes(const DeviceShape& shape) {
  return arena_bytes([&](ArenaCursor& cursor) { lay_out(cursor, shape, false); });
}

SequenceStarter::SequenceStarter(const DeviceShape& shape, const DeviceState& state)
    : shape_(shape), state_(state), history_tokens_(history_room(shape)) {
  host_memory_ = kernels::cuda::PinnedBuffer(
      arena_bytes([&](ArenaCursor& cursor) { lay_out(cursor, shape, true); }));
  ArenaCursor host(host_memory_.data());
  host_ = lay_out(host, shape, true);
  device_memory_ =
      make_arena([&](ArenaCursor& cursor) { device_ = lay_out(cursor, shape, false); });
}

void SequenceStarter::start(kernels::cuda::StreamRef stream, std::span<const SequenceStart> starts,
                            std::span<const StateMove> moves, std::chrono::milliseconds deadline) {
  if (starts.empty() && moves.empty()) return;
  if (starts.size() > shape_.limits.max_sequences) {
    bad_start(fmt::format("{} starts for {} slots", starts.size(), shape_.limits.max_sequences));
  }
  // All of them before the first copy: a copy under way must not outlive its memory.
  if (shape_.shard.last_stage) {
    for (const SequenceStart& start : starts) {
      check(start, shape_.model->vocab_size, history_tokens_);
    }
  }
  stream_ = stream;
  deadline_ = deadline;
  if (used_) copied_.synchronize(deadline);
  used_ = true;
  move_conv(moves);
  if (shape_.shard.last_stage) {
    for (std::size_t i = 0; i < starts.size(); ++i) {
      set_sampling(starts[i], i);
      if (starts[i].sampling.uses_history()) add_history(starts[i]);
    }
    flush_histories();
  }
  copied_.record(stream);
}

void SequenceStarter::move_conv(std::span<const StateMove> moves) {
  if (state_.conv.empty() || moves.empty()) return;
  std::ranges::transform(moves, host_.moves, [](const StateMove& move) {
    return kernels::cuda::ConvMove{static_cast<std::int32_t>(move.slot),
                                   static_cast<std::int32_t>(move.from)};
  });
  kernels::cuda::copy_to_device(stream_, device_.moves, host_.moves,
                                moves.size() * sizeof(kernels::cuda::ConvMove));
  kernels::cuda::MoveConvStateArgs args;
  args.state = state_.conv.front().data;
  args.layers = static_cast<std::int64_t>(state_.conv.size());
  args.layer_stride = state_.conv_layer_stride;
  args.slot_elements = state_.conv.front().cols();
  args.moves = device_.moves;
  args.count = static_cast<std::int64_t>(moves.size());
  kernels::cuda::move_conv_state(stream_, args);
}

void SequenceStarter::set_sampling(const SequenceStart& start, std::size_t index) {
  SlotSampling& sampling = host_.sampling[index];
  sampling = slot_sampling(start.sampling);
  kernels::cuda::copy_to_device(stream_, state_.sampling + start.slot, &sampling, sizeof sampling);
  if (start.sampling.logit_bias.empty()) return;
  LogitBias* bias = host_.bias + index * kMaxLogitBias;
  std::transform(start.sampling.logit_bias.begin(), start.sampling.logit_bias.end(), bias,
                 [](const auto& entry) {
                   return LogitBias{entry.first, entry.second};
                 });
  kernels::cuda::copy_to_device(stream_, state_.bias + std::int64_t{start.slot} * kMaxLogitBias,
                                bias, start.sampling.logit_bias.size() * sizeof(LogitBias));
}

void SequenceStarter::add_history(const SequenceStart& start) {
  const auto tokens = static_cast<std::int64_t>(start.history.size());
  if (tokens_ + tokens > history_tokens_) {
    flush_histories();
    kernels::cuda::synchronize(stream_, deadline_);  // rare: many long histories in one step
  }
  std::copy(start.history.begin(), start.history.end(), host_.tokens + tokens_);
  HistoryStart& history = host_.histories[histories_++];
  history.slot = static_cast<std::int32_t>(start.slot);
  history.prompt_tokens = static_cast<std::int32_t>(start.prompt_tokens);
  history.tokens = static_cast<std::int32_t>(tokens);
  history.begin = tokens_;
  tokens_ += tokens;
}

void SequenceStarter::flush_histories() {
  if (histories_ == 0) return;
  kernels::cuda::copy_to_device(stream_, device_.histories, host_.histories,
                                static_cast<std::size_t>(histories_) * sizeof(HistoryStart));
  if (tokens_ > 0) {
    kernels::cuda::copy_to_device(stream_, device_.tokens, host_.tokens,
                                  static_cast<std::size_t>(tokens_) * sizeof(std::int32_t));
  }
  kernels::cuda::StartHistoriesArgs args;
  args.starts = device_.histories;
  args.count = histories_;
  args.tokens = device_.tokens;
  args.counts = state_.counts;
  kernels::cuda::start_histories(stream_, args);
  histories_ = 0;
  tokens_ = 0;
}

}  // namespace millrace
