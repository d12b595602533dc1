// What the ranks of a cell send each other from device memory, in the order of a CUDA stream.
//
// Two implementations: nccl_communicator.h, which moves data between devices and only enqueues, and
// staged_communicator.h, which takes it through host memory and any Communicator: the way where
// there is no NCCL, and under the emulator. Both move bits and never round, so results do not
// depend on the choice (contract C1).
//
// Order. All ranks make the same calls in the same order. Calls of one rank come from one thread
// and name one stream, except that send and recv may use another stream than the collectives.
//
// Memory. Buffers are device memory and belong to the stream until it has run past the call. `send`
// and `recv` buffers of one call do not overlap. Byte counts are multiples of 4, addresses aligned
// to 16.
//
// Errors. CommError (comm_error.h), also when a peer or the network fails later: check() and wait()
// throw then. A CommError breaks the communicator for good, and the process should leave
// (exit_after_failure of mpi_communicator.h). A failure of the device itself is a CudaError.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "kernels/cuda/runtime.h"
#include "parallel/communicator.h"

namespace millrace::parallel {

using kernels::cuda::StreamRef;

class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const CommOptions& options() const { return options_; }

  // Whether calls only enqueue, so that they can be recorded into a graph.
  virtual bool capturable() const = 0;
  virtual std::string_view name() const = 0;  // "nccl 2.28.9", "staged": for the log

  // send, recv: size() blocks of bytes_per_peer by peer, the own one included.
  virtual void all_to_all(const void* send, void* recv, std::size_t bytes_per_peer,
                          StreamRef stream) = 0;
  // One range per peer, in host memory and read before the call returns; rank a's
  // send_ranges[b].bytes equals rank b's recv_ranges[a].bytes. The own range travels too. Empty
  // ranges cost no message.
  virtual void all_to_all_v(const void* send, std::span<const ByteRange> send_ranges, void* recv,
                            std::span<const ByteRange> recv_ranges, StreamRef stream) = 0;
  // all: size() blocks of `bytes` by rank.
  virtual void all_gather(const void* mine, void* all, std::size_t bytes, StreamRef stream) = 0;
  // in: size() blocks of `bytes` of bf16 by rank. out[i] is the sum of in[i] in the blocks that the
  // ranks have for this one. Callers let at most one rank have another value than -0.0 (bits
  // 0x8000) at an index: -0.0 is the neutral element of addition, so the sum has that value's bits,
  // whoever adds first.
  virtual void reduce_scatter_bf16(const void* in, void* out, std::size_t bytes,
                                   StreamRef stream) = 0;

  // peer != rank(). Messages of a pair arrive in the order sent.
  virtual void send(int peer, const void* data, std::size_t bytes, StreamRef stream) = 0;
  virtual void recv(int peer, void* data, std::size_t bytes, StreamRef stream) = 0;

  // Throws when a peer or the transport has failed since. Cheap; does not wait.
  virtual void check() = 0;
  // Breaks this rank's end, so that its enqueued work ends; peers notice by their own deadlines.
  virtual void abort(std::string_view reason) noexcept = 0;

  // Waits until the stream has done all its work, looking after check() meanwhile. Past `deadline`
  // aborts and throws CommError.
  void wait(StreamRef stream, std::chrono::milliseconds deadline);
  void wait(StreamRef stream) { wait(stream, options_.deadline); }

 protected:
  DeviceCommunicator(int rank, int size, CommOptions options)
      : rank_(rank), size_(size), options_(options) {}

 private:
  int rank_;
  int size_;
  CommOptions options_;
};

}  // namespace millrace::parallel
