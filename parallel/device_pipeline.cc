#include "parallel/device_pipeline.h"

#include "config/check.h"

namespace millrace::parallel {

namespace {

// One message on its way and one being written.
constexpr int kSlots = 2;

}  // namespace

DevicePipeline::DevicePipeline(DeviceCommunicator& column, std::int64_t max_tokens,
                               std::int64_t hidden)
    : column_(&column), max_tokens_(max_tokens), hidden_(hidden) {
  const auto make = [&](std::vector<Slot>& ring) {
    for (int i = 0; i < kSlots; ++i) {
      ring.emplace_back().data = kernels::cuda::DeviceBuffer(bytes(max_tokens));
    }
  };
  if (has_next()) make(out_);
  if (has_previous()) make(in_);
}

std::size_t DevicePipeline::bytes(std::int64_t tokens) const {
  return static_cast<std::size_t>(tokens * hidden_) * sizeof(float);
}

// Of an inner stage; the first and the last need half.
std::size_t DevicePipeline::device_bytes(int stages, std::int64_t max_tokens, std::int64_t hidden) {
  if (stages == 1) return 0;
  return 2 * kSlots * static_cast<std::size_t>(max_tokens * hidden) * sizeof(float);
}

DevicePipeline::Slot& DevicePipeline::next(std::vector<Slot>& ring, std::size_t& at) {
  Slot& slot = ring[at];
  at = (at + 1) % ring.size();
  return slot;
}

void DevicePipeline::send(StreamRef stream, const float* x, std::int64_t tokens) {
  CHECK(has_next() && tokens <= max_tokens_, "stage={} of {} tokens={} of {}", column_->rank(),
        column_->size(), tokens, max_tokens_);
  Slot& slot = next(out_, next_out_);
  if (slot.used) slot.drained.make_wait(stream);
  slot.used = true;
  kernels::cuda::copy_on_device(stream, slot.data.data(), x, bytes(tokens));
  slot.filled.record(stream);
  slot.filled.make_wait(stream_);
  column_->send(column_->rank() + 1, slot.data.data(), bytes(tokens), stream_);
  slot.drained.record(stream_);
}

void DevicePipeline::recv(StreamRef stream, float* x, std::int64_t tokens) {
  CHECK(has_previous() && tokens <= max_tokens_, "stage={} of {} tokens={} of {}", column_->rank(),
        column_->size(), tokens, max_tokens_);
  Slot& slot = next(in_, next_in_);
  if (slot.used) slot.drained.make_wait(stream_);
  slot.used = true;
  column_->recv(column_->rank() - 1, slot.data.data(), bytes(tokens), stream_);
  slot.filled.record(stream_);
  slot.filled.make_wait(stream);
  kernels::cuda::copy_on_device(stream, x, slot.data.data(), bytes(tokens));
  slot.drained.record(stream);
}

}  // namespace millrace::parallel
