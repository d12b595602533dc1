// Device memory through host memory: device -> pinned -> Communicator -> pinned -> device.
//
// Every collective waits for the stream, so nothing overlaps and nothing can be captured; a send
// copies and returns while up to `sends` messages are on their way. Good for cells of few tokens a
// step, for networks without NCCL, and for tests of every exchange without a device.
#pragma once

#include <vector>

#include "parallel/device_communicator.h"

namespace millrace::parallel {

class StagedCommunicator final : public DeviceCommunicator {
 public:
  struct Capacity {
    std::size_t collective_bytes = 0;  // of the larger of a collective's two buffers
    std::size_t message_bytes = 0;     // of one send or recv; 0: none is made
    int sends = 2;                     // messages sent and not yet received
  };

  // `host` has the ranks and the deadline; it must outlive this and is used by no other collective
  // meanwhile. Allocates all pinned memory here; a call beyond the capacity is our bug (CHECK).
  StagedCommunicator(Communicator& host, const Capacity& capacity);
  ~StagedCommunicator() override;

  // Pinned bytes that the constructor takes.
  static std::size_t pinned_bytes(const Capacity& capacity);

  bool capturable() const override { return false; }
  std::string_view name() const override { return "staged"; }

  void all_to_all(const void* send, void* recv, std::size_t bytes_per_peer,
                  StreamRef stream) override;
  void all_to_all_v(const void* send, std::span<const ByteRange> send_ranges, void* recv,
                    std::span<const ByteRange> recv_ranges, StreamRef stream) override;
  void all_gather(const void* mine, void* all, std::size_t bytes, StreamRef stream) override;
  void reduce_scatter_bf16(const void* in, void* out, std::size_t bytes,
                               StreamRef stream) override;
  void send(int peer, const void* data, std::size_t bytes, StreamRef stream) override;
  void recv(int peer, void* data, std::size_t bytes, StreamRef stream) override;
  void check() override;
  void abort(std::string_view reason) noexcept override;

 private:
  struct Sending {
    kernels::cuda::PinnedBuffer data;
    SendHandle handle;
  };

  std::span<std::byte> fetch(const void* device, std::size_t bytes, StreamRef stream);
  void store(void* device, std::size_t bytes, StreamRef stream);
  void settle(StreamRef stream);

  Communicator* host_;
  kernels::cuda::PinnedBuffer out_, in_;
  kernels::cuda::PinnedBuffer received_;
  StreamRef received_stream_;
  bool received_busy_ = false;  // the stream may still read received_
  std::vector<Sending> sending_;
  std::size_t next_send_ = 0;
};

}  // namespace millrace::parallel
