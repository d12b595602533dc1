#include "parallel/staged_communicator.h"

#include <algorithm>
#include <cstring>

#include "config/check.h"
#include "parallel/keep_for_good.h"

namespace millrace::parallel {

namespace {

constexpr int kMessageTag = 2;
constexpr std::uint16_t kNegativeZero = 0x8000;  // bf16

// The ranges of a collective end at most here.
std::size_t extent(std::span<const ByteRange> ranges) {
  std::size_t end = 0;
  for (const ByteRange& range : ranges) {
    if (range.bytes > 0) end = std::max(end, range.offset + range.bytes);
  }
  return end;
}

}  // namespace

StagedCommunicator::StagedCommunicator(Communicator& host, const Capacity& capacity)
    : DeviceCommunicator(host.rank(), host.size(), host.options()),
      host_(&host),
      out_(capacity.collective_bytes),
      in_(capacity.collective_bytes),
      received_(capacity.message_bytes) {
  CHECK(capacity.sends > 0, "sends={}", capacity.sends);
  if (capacity.message_bytes == 0) return;
  for (int i = 0; i < capacity.sends; ++i) {
    sending_.push_back({kernels::cuda::PinnedBuffer(capacity.message_bytes), {}});
  }
}

StagedCommunicator::~StagedCommunicator() {
  try {
    for (const Sending& sending : sending_) host_->wait(sending.handle);
  } catch (const CommError&) {
    // The rank is leaving; the transport may still read the buffers until it has (MPI).
    keep_for_good(std::move(sending_));
  }
}

std::size_t StagedCommunicator::pinned_bytes(const Capacity& capacity) {
  return 2 * capacity.collective_bytes +
         capacity.message_bytes * static_cast<std::size_t>(1 + capacity.sends);
}

// Host collectives on a communicator that has failed throw, so only the transport is asked here.
void StagedCommunicator::check() { host_->progress(); }

void StagedCommunicator::abort(std::string_view reason) noexcept { host_->abort(reason); }

void StagedCommunicator::settle(StreamRef stream) { wait(stream); }

// The bytes in host memory. Waiting for the copy also waits for the stream's earlier copies out of
// in_, so that it may be written again.
std::span<std::byte> StagedCommunicator::fetch(const void* device, std::size_t bytes,
                                               StreamRef stream) {
  CHECK(bytes <= out_.bytes(), "{} bytes of {}", bytes, out_.bytes());
  if (bytes > 0) kernels::cuda::copy_to_host(stream, out_.data(), device, bytes);
  settle(stream);
  return {out_.data(), bytes};
}

void StagedCommunicator::store(void* device, std::size_t bytes, StreamRef stream) {
  if (bytes > 0) kernels::cuda::copy_to_device(stream, device, in_.data(), bytes);
}

void StagedCommunicator::all_to_all(const void* send, void* recv, std::size_t bytes_per_peer,
                                    StreamRef stream) {
  const std::size_t bytes = bytes_per_peer * static_cast<std::size_t>(size());
  const auto out = fetch(send, bytes, stream);
  host_->all_to_all(out, {in_.data(), bytes}, bytes_per_peer);
  store(recv, bytes, stream);
}

void StagedCommunicator::all_to_all_v(const void* send, std::span<const ByteRange> send_ranges,
                                      void* recv, std::span<const ByteRange> recv_ranges,
                                      StreamRef stream) {
  const std::size_t in_bytes = extent(recv_ranges);
  CHECK(in_bytes <= in_.bytes(), "{} bytes of {}", in_bytes, in_.bytes());
  const auto out = fetch(send, extent(send_ranges), stream);
  host_->all_to_all_v(out, send_ranges, {in_.data(), in_bytes}, recv_ranges);
  // Only the ranges: what lies between them is the caller's.
  for (const ByteRange& range : recv_ranges) {
    if (range.bytes == 0) continue;
    kernels::cuda::copy_to_device(stream, static_cast<std::byte*>(recv) + range.offset,
                                  in_.data() + range.offset, range.bytes);
  }
}

void StagedCommunicator::all_gather(const void* mine, void* all, std::size_t bytes,
                                    StreamRef stream) {
  const std::size_t total = bytes * static_cast<std::size_t>(size());
  CHECK(total <= in_.bytes(), "{} bytes of {}", total, in_.bytes());
  const auto out = fetch(mine, bytes, stream);
  host_->all_gather(out, {in_.data(), total});
  store(all, total, stream);
}

void StagedCommunicator::reduce_scatter_bf16(const void* in, void* out, std::size_t bytes,
                                             StreamRef stream) {
  const std::size_t total = bytes * static_cast<std::size_t>(size());
  const auto blocks = fetch(in, total, stream);
  host_->all_to_all(blocks, {in_.data(), total}, bytes);
  auto* sum = in_.as<std::uint16_t>();
  const std::size_t count = bytes / sizeof(std::uint16_t);
  for (int rank = 1; rank < size(); ++rank) {
    const std::uint16_t* theirs = sum + static_cast<std::size_t>(rank) * count;
    for (std::size_t i = 0; i < count; ++i) {
      if (sum[i] == kNegativeZero) sum[i] = theirs[i];
    }
  }
  store(out, bytes, stream);
}

void StagedCommunicator::send(int peer, const void* data, std::size_t bytes, StreamRef stream) {
  CHECK(!sending_.empty() && bytes <= sending_[0].data.bytes(), "{} bytes", bytes);
  Sending& slot = sending_[next_send_];
  next_send_ = (next_send_ + 1) % sending_.size();
  host_->wait(slot.handle);
  kernels::cuda::copy_to_host(stream, slot.data.data(), data, bytes);
  settle(stream);
  slot.handle = host_->isend(peer, kMessageTag, {slot.data.data(), bytes});
}

void StagedCommunicator::recv(int peer, void* data, std::size_t bytes, StreamRef stream) {
  CHECK(bytes <= received_.bytes(), "{} bytes of {}", bytes, received_.bytes());
  if (received_busy_) settle(received_stream_);
  const std::size_t got = host_->recv(peer, kMessageTag, {received_.data(), bytes});
  if (got != bytes) {
    throw CommError("recv", peer, options().deadline,
                    fmt::format("message of {} bytes, expected {}", got, bytes));
  }
  kernels::cuda::copy_to_device(stream, data, received_.data(), bytes);
  received_stream_ = stream;
  received_busy_ = true;
}

}  // namespace millrace::parallel
