// Exchanges between device buffers, on a CUDA stream, over NCCL. Built only where the CUDA toolkit
// and NCCL are found (MILLRACE_NCCL); no part of the serving path uses it yet.
//
// A separate type from Communicator, because its calls only enqueue: they return before the data
// has moved, buffers belong to the stream until synchronize(), and a failure shows later. Every
// wait is a poll with the deadline; a deadline or an asynchronous NCCL error aborts the
// communicator (ncclCommAbort) and throws CommError. A peer that dies inside the node raises no
// error in NCCL, only the deadline does; and an abort may itself hang, so the process should then
// leave without destructors (exit_after_failure of mpi_communicator.h).
//
// One communicator per thread and device; all ranks enqueue the same calls in the same order.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "parallel/communicator.h"

struct CUstream_st;  // cudaStream_t is a pointer to this

namespace millrace::parallel {

using DeviceStream = CUstream_st*;

class NcclCommunicator {
 public:
  // Collective over `bootstrap`, which carries NCCL's unique id and gives rank, size and deadline;
  // it is not used afterwards. `device`: CUDA ordinal; becomes the thread's current device.
  NcclCommunicator(Communicator& bootstrap, int device);
  ~NcclCommunicator();  // lets enqueued work finish, up to the deadline, then aborts
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const;
  int size() const;

  // send, recv: device memory, size() blocks of bytes_per_peer. One ncclAlltoAll from NCCL 2.28 on,
  // grouped ncclSend and ncclRecv before. Can be captured in a graph.
  void all_to_all(const void* send, void* recv, std::size_t bytes_per_peer, DeviceStream stream);
  // Ranges as in Communicator::all_to_all_v, in host memory, over device buffers.
  void all_to_all_v(const std::byte* send, std::span<const ByteRange> send_ranges, std::byte* recv,
                    std::span<const ByteRange> recv_ranges, DeviceStream stream);

  // Waits until all work enqueued on `stream` is done, up to the deadline.
  void synchronize(DeviceStream stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace millrace::parallel
