#include "parallel/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "config/check.h"
#include "parallel/keep_for_good.h"

namespace millrace::parallel {

namespace {

constexpr int kActivationTag = 1;
constexpr std::uint32_t kMagic = 0x4d524143;  // "MRAC": not some other message of that tag

}  // namespace

struct PipelineLink::Header {
  std::uint32_t magic;
  std::uint32_t hidden;
  std::uint64_t step;
  std::uint64_t tokens;
  std::uint64_t reserved;  // the floats start on 32 bytes
};

struct PipelineLink::Slot {
  std::unique_ptr<std::byte[]> message;  // Header, then [max_tokens, D] floats
  SendHandle handle;
};

PipelineLink::PipelineLink(Communicator& column, std::size_t max_tokens, std::size_t hidden)
    : column_(&column), max_tokens_(max_tokens), hidden_(hidden) {
  static_assert(sizeof(Header) == 32);
  const std::size_t bytes = sizeof(Header) + max_tokens * hidden * sizeof(float);
  if (has_next()) {
    ring_.resize(column.size() + 1);
    for (Slot& slot : ring_) slot.message = std::make_unique_for_overwrite<std::byte[]>(bytes);
  }
  if (has_previous()) incoming_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
}

PipelineLink::~PipelineLink() {
  try {
    for (const Slot& slot : ring_) column_->wait(slot.handle);
  } catch (const CommError&) {
    // The rank is leaving; the transport may still read the buffers until it has (MPI).
    keep_for_good(std::move(ring_));
  }
}

std::span<float> PipelineLink::send_buffer() {
  CHECK(has_next(), "stage {} of {} has no next", column_->rank(), column_->size());
  Slot& slot = ring_[next_];
  column_->wait(slot.handle);
  return {reinterpret_cast<float*>(slot.message.get() + sizeof(Header)), max_tokens_ * hidden_};
}

void PipelineLink::send(std::uint64_t step, std::size_t tokens) {
  CHECK(has_next() && tokens <= max_tokens_, "stage={} tokens={} max_tokens={}", column_->rank(),
        tokens, max_tokens_);
  Slot& slot = ring_[next_];
  column_->wait(slot.handle);
  const Header header{kMagic, static_cast<std::uint32_t>(hidden_), step, tokens, 0};
  std::memcpy(slot.message.get(), &header, sizeof(header));
  const std::size_t bytes = sizeof(header) + tokens * hidden_ * sizeof(float);
  slot.handle = column_->isend(column_->rank() + 1, kActivationTag, {slot.message.get(), bytes});
  next_ = (next_ + 1) % ring_.size();
}

void PipelineLink::send(std::uint64_t step, std::span<const float> x) {
  CHECK(x.size() % hidden_ == 0 && x.size() <= max_tokens_ * hidden_,
        "{} floats, D={} max_tokens={}", x.size(), hidden_, max_tokens_);
  std::copy(x.begin(), x.end(), send_buffer().begin());
  send(step, x.size() / hidden_);
}

std::span<float> PipelineLink::recv(std::uint64_t step, std::size_t tokens) {
  CHECK(has_previous() && tokens <= max_tokens_, "stage={} tokens={} max_tokens={}",
        column_->rank(), tokens, max_tokens_);
  const int previous = column_->rank() - 1;
  const std::size_t capacity = sizeof(Header) + max_tokens_ * hidden_ * sizeof(float);
  const std::size_t bytes = column_->recv(previous, kActivationTag, {incoming_.get(), capacity});
  Header header{};
  std::memcpy(&header, incoming_.get(), std::min(bytes, sizeof(header)));
  const std::size_t expected = sizeof(header) + tokens * hidden_ * sizeof(float);
  if (bytes != expected || header.magic != kMagic || header.hidden != hidden_ ||
      header.step != step || header.tokens != tokens) {
    throw CommError(
        "pipeline recv", previous, column_->options().deadline,
        fmt::format("expected step {} with {} tokens of width {}, got step {} with {} of {} "
                    "in {} bytes",
                    step, tokens, hidden_, header.step, header.tokens, header.hidden, bytes));
  }
  return {reinterpret_cast<float*>(incoming_.get() + sizeof(header)), tokens * hidden_};
}

}  // namespace millrace::parallel
