#include "worker/cuda/step_inputs.h"

#include <algorithm>

#include "config/check.h"

namespace millrace {

namespace {

using kernels::cuda::BlockTableUpdate;
using kernels::cuda::ConvChunk;
using kernels::cuda::SampleRow;

constexpr std::size_t kHostBlocks = 2;

// A sequence of n more tokens needs at most n new blocks, and a plan takes at most as many blocks
// from the prefix cache as it may have tokens (coordinator/scheduler.h).
std::int64_t most_updates(const DeviceShape& shape) { return 2 * std::int64_t{shape.max_rows()}; }

std::size_t input_bytes(const DeviceShape& shape) {
  return arena_bytes([&](ArenaCursor& cursor) {
    lay_out_inputs(cursor, shape.max_rows(), shape.max_logit_rows());
  });
}

void fill_rows(const StepBatch& batch, const StepInputs& in) {
  const auto t = static_cast<std::size_t>(batch.tokens());
  std::copy_n(batch.ids().begin(), t, in.ids);
  std::copy_n(batch.positions().begin(), t, in.positions);
  std::copy_n(batch.sequences().begin(), t, in.chunk_of_row);
  std::copy_n(batch.kv_slots().begin(), t, in.kv_slots);
  const auto segments = batch.segments();
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const kernels::ConvSegment& s = segments[i];
    in.chunks[i] = {static_cast<std::int32_t>(s.row_begin), static_cast<std::int32_t>(s.length),
                    static_cast<std::int32_t>(s.slot)};
    std::ranges::transform(s.saves, in.chunks[i].saves, [](const kernels::ConvSave& save) {
      return kernels::cuda::ConvSave{static_cast<std::int32_t>(save.length),
                                     static_cast<std::int32_t>(save.slot)};
    });
    std::fill_n(in.slots + s.row_begin, s.length, static_cast<std::int32_t>(s.slot));
  }
  const auto rows = static_cast<std::size_t>(in.rows);
  std::fill(in.ids + t, in.ids + rows, 0);
  std::fill(in.positions + t, in.positions + rows, 0);
  std::fill(in.slots + t, in.slots + rows, -1);
  std::fill(in.chunk_of_row + t, in.chunk_of_row + rows, -1);
  std::fill(in.kv_slots + t, in.kv_slots + rows, std::int64_t{-1});
  std::fill(in.chunks + segments.size(), in.chunks + rows, ConvChunk{});
}

void fill_samples(const StepBatch& batch, const StepInputs& in) {
  std::int32_t at = 0;
  const auto add = [&](const LogitRow& row, std::int32_t target) {
    in.logit_index[at] = static_cast<std::int32_t>(row.row);
    in.samples[at] = {static_cast<std::int32_t>(row.slot), target, row.position};
    ++at;
  };
  for (const LogitRow& row : batch.logit_rows()) {
    if (row.sample) add(row, -1);
    if (row.prompt_target >= 0) add(row, row.prompt_target);
  }
  for (; at < in.logit_rows; ++at) {
    in.logit_index[at] = -1;
    in.samples[at] = SampleRow{};
  }
}

}  // namespace

StepInputs lay_out_inputs(ArenaCursor& cursor, std::int32_t rows, std::int32_t logit_rows) {
  StepInputs in;
  in.rows = rows;
  in.logit_rows = logit_rows;
  in.ids = cursor.take<std::int32_t>(rows);
  in.positions = cursor.take<std::int32_t>(rows);
  in.slots = cursor.take<std::int32_t>(rows);
  in.chunk_of_row = cursor.take<std::int32_t>(rows);
  in.kv_slots = cursor.take<std::int64_t>(rows);
  in.chunks = cursor.take<ConvChunk>(rows);
  in.logit_index = cursor.take<std::int32_t>(logit_rows);
  in.samples = cursor.take<SampleRow>(logit_rows);
  return in;
}

std::int32_t count_sample_rows(const StepBatch& batch) {
  std::int32_t count = 0;
  for (const LogitRow& row : batch.logit_rows()) {
    count += (row.sample ? 1 : 0) + (row.prompt_target >= 0 ? 1 : 0);
  }
  return count;
}

StepUploader::StepUploader(const DeviceShape& shape)
    : block_tokens_(static_cast<std::int32_t>(shape.limits.block_tokens)),
      blocks_per_sequence_(shape.blocks_per_sequence()),
      max_updates_(most_updates(shape)),
      device_(input_bytes(shape)),
      device_updates_(static_cast<std::size_t>(max_updates_) * sizeof(BlockTableUpdate)) {
  for (std::size_t i = 0; i < kHostBlocks; ++i) {
    HostBlock& block = host_.emplace_back();
    block.memory = kernels::cuda::PinnedBuffer(device_.bytes());
    block.updates = kernels::cuda::PinnedBuffer(device_updates_.bytes());
  }
}

std::size_t StepUploader::device_bytes(const DeviceShape& shape) {
  return input_bytes(shape) +
         static_cast<std::size_t>(most_updates(shape)) * sizeof(BlockTableUpdate);
}

// The batch has checked that a sequence has exactly the blocks that its tokens need.
std::int64_t StepUploader::fill_updates(const LanePlan& plan, BlockTableUpdate* out) const {
  std::int64_t count = 0;
  for (const Chunk& chunk : plan.chunks) {
    const auto tokens = static_cast<std::int32_t>(
        std::max<std::size_t>(chunk.position + chunk.tokens.size(), chunk.cached));
    const std::int32_t blocks = (tokens + block_tokens_ - 1) / block_tokens_;
    const auto added = static_cast<std::int32_t>(chunk.new_blocks.size());
    std::int32_t index =
        static_cast<std::int32_t>(chunk.slot) * blocks_per_sequence_ + blocks - added;
    CHECK(count + added <= max_updates_, "{} new blocks", count + added);
    for (const BlockId block : chunk.new_blocks) {
      out[count++] = {index++, static_cast<std::int32_t>(block)};
    }
  }
  return count;
}

StepInputs StepUploader::upload(kernels::cuda::StreamRef stream, const LanePlan& plan,
                                const StepBatch& batch, std::int32_t rows, std::int32_t logit_rows,
                                const kernels::cuda::BlockTableArgs& block_tables,
                                std::chrono::milliseconds deadline) {
  HostBlock& block = host_[next_];
  next_ = (next_ + 1) % host_.size();
  if (block.used) block.copied.synchronize(deadline);
  block.used = true;

  ArenaCursor host(block.memory.data());
  const StepInputs in = lay_out_inputs(host, rows, logit_rows);
  CHECK(host.used_bytes() <= device_.bytes() && batch.tokens() <= rows, "{} rows, {} of {} bytes",
        rows, host.used_bytes(), device_.bytes());
  fill_rows(batch, in);
  fill_samples(batch, in);
  kernels::cuda::copy_to_device(stream, device_.data(), block.memory.data(), host.used_bytes());

  auto* updates = block.updates.as<BlockTableUpdate>();
  if (const std::int64_t count = fill_updates(plan, updates); count > 0) {
    kernels::cuda::copy_to_device(stream, device_updates_.data(), updates,
                                  static_cast<std::size_t>(count) * sizeof(BlockTableUpdate));
    kernels::cuda::BlockTableArgs args = block_tables;
    args.updates = device_updates_.as<BlockTableUpdate>();
    args.count = count;
    kernels::cuda::update_block_tables(stream, args);
  }
  block.copied.record(stream);
  ArenaCursor device(device_.data());
  return lay_out_inputs(device, rows, logit_rows);
}

}  // namespace millrace
