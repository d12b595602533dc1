#include "parallel/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <thread>

#include "config/check.h"

namespace millrace::parallel {

using std::chrono::microseconds;

struct NcclCommunicator::State {
  int rank;
  int size;
  CommOptions options;
  ncclComm_t comm = nullptr;
  bool aborted = false;

  [[noreturn]] void fail(const char* operation, std::string detail) {
    if (comm != nullptr && !aborted) {
      aborted = true;
      ncclCommAbort(comm);
    }
    throw CommError(operation, kNoPeer, options.deadline, std::move(detail));
  }

  void check_cuda(cudaError_t code, const char* operation) {
    if (code != cudaSuccess) fail(operation, cudaGetErrorString(code));
  }

  // True when no call on the communicator is in progress any more; throws on an asynchronous error.
  bool settled(const char* operation) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    if (asked != ncclSuccess) fail(operation, ncclGetErrorString(asked));
    if (state == ncclInProgress) return false;
    if (state != ncclSuccess) {
      fail(operation, fmt::format("{}: {}", ncclGetErrorString(state), ncclGetLastError(comm)));
    }
    return true;
  }

  template <class Ready>
  void wait(const char* operation, Ready ready) {
    Backoff backoff(options.backoff);
    while (!ready()) {
      backoff.pause();
      if (backoff.waited() >= options.deadline) fail(operation, "no answer in time");
    }
  }

  // The communicator is non-blocking: a call may return before it has taken effect.
  void check_nccl(ncclResult_t code, const char* operation) {
    if (code == ncclSuccess) return;
    if (code != ncclInProgress) {
      fail(operation, fmt::format("{}: {}", ncclGetErrorString(code), ncclGetLastError(comm)));
    }
    wait(operation, [&] { return settled(operation); });
  }
};

NcclCommunicator::NcclCommunicator(Communicator& bootstrap, int device)
    : state_(std::make_unique<State>()) {
  state_->rank = bootstrap.rank();
  state_->size = bootstrap.size();
  state_->options = bootstrap.options();
  state_->check_cuda(cudaSetDevice(device), "nccl init");
  ncclUniqueId id{};
  if (bootstrap.rank() == 0) state_->check_nccl(ncclGetUniqueId(&id), "nccl init");
  bootstrap.broadcast(0, std::as_writable_bytes(std::span(&id, 1)));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  state_->check_nccl(
      ncclCommInitRankConfig(&state_->comm, bootstrap.size(), id, bootstrap.rank(), &config),
      "nccl init");
}

// Finalize lets the peers finish what was enqueued; when that exceeds the deadline, wait() aborts.
NcclCommunicator::~NcclCommunicator() {
  if (state_->comm == nullptr || state_->aborted) return;
  try {
    state_->check_nccl(ncclCommFinalize(state_->comm), "nccl finalize");
    ncclCommDestroy(state_->comm);
  } catch (const CommError& error) {
    fmt::print(stderr, "{}\n", error.what());
  }
}

int NcclCommunicator::rank() const { return state_->rank; }
int NcclCommunicator::size() const { return state_->size; }

void NcclCommunicator::all_to_all(const void* send, void* recv, std::size_t bytes_per_peer,
                                  DeviceStream stream) {
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
  state_->check_nccl(ncclAlltoAll(send, recv, bytes_per_peer, ncclInt8, state_->comm, stream),
                     "nccl all_to_all");
#else
  state_->check_nccl(ncclGroupStart(), "nccl all_to_all");
  for (int peer = 0; peer < size(); ++peer) {
    const std::size_t offset = peer * bytes_per_peer;
    state_->check_nccl(ncclSend(static_cast<const char*>(send) + offset, bytes_per_peer, ncclInt8,
                                peer, state_->comm, stream),
                       "nccl all_to_all");
    state_->check_nccl(ncclRecv(static_cast<char*>(recv) + offset, bytes_per_peer, ncclInt8, peer,
                                state_->comm, stream),
                       "nccl all_to_all");
  }
  state_->check_nccl(ncclGroupEnd(), "nccl all_to_all");
#endif
}

void NcclCommunicator::all_to_all_v(const std::byte* send, std::span<const ByteRange> send_ranges,
                                    std::byte* recv, std::span<const ByteRange> recv_ranges,
                                    DeviceStream stream) {
  CHECK(send_ranges.size() == static_cast<std::size_t>(size()) &&
            recv_ranges.size() == static_cast<std::size_t>(size()),
        "{} and {} ranges for {} ranks", send_ranges.size(), recv_ranges.size(), size());
  constexpr const char* kOperation = "nccl all_to_all_v";
  state_->check_nccl(ncclGroupStart(), kOperation);
  for (int peer = 0; peer < size(); ++peer) {
    const ByteRange out = send_ranges[peer], in = recv_ranges[peer];
    if (out.bytes > 0) {
      state_->check_nccl(
          ncclSend(send + out.offset, out.bytes, ncclInt8, peer, state_->comm, stream), kOperation);
    }
    if (in.bytes > 0) {
      state_->check_nccl(ncclRecv(recv + in.offset, in.bytes, ncclInt8, peer, state_->comm, stream),
                         kOperation);
    }
  }
  state_->check_nccl(ncclGroupEnd(), kOperation);
}

void NcclCommunicator::synchronize(DeviceStream stream) {
  constexpr const char* kOperation = "nccl synchronize";
  state_->wait(kOperation, [&] {
    state_->settled(kOperation);
    const cudaError_t code = cudaStreamQuery(stream);
    if (code == cudaErrorNotReady) return false;
    state_->check_cuda(code, kOperation);
    return true;
  });
}

}  // namespace millrace::parallel
