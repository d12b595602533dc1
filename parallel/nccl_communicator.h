// Device memory between devices, over NCCL: every call only enqueues and may be captured.
//
// NCCL's own calls block: while connections are made, and for ever when a peer is gone. So the
// communicator is made on a helper thread that is left behind at the deadline, and every other call
// is watched by one thread per communicator, which calls ncclCommAbort at the deadline; the call
// then returns and becomes a CommError. (NCCL's non-blocking mode would need a thread per call.)
// Should the call not come back from the abort within a grace, `stuck` ends the process.
//
// A peer that dies inside the node raises no error in NCCL, only the deadline does; wait() aborts
// then too, so that the kernels that wait for the peer end.
//
// Kernels of two communicators may run on a device at the same time, on different streams, in any
// order: each takes a few multiprocessors and leaves the others to the kernels it waits for.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "parallel/device_communicator.h"
#include "parallel/nccl_api.h"

namespace millrace::parallel {

class NcclCommunicator final : public DeviceCommunicator {
 public:
  struct Options {
    // Between an abort and `stuck`.
    std::chrono::milliseconds abort_grace{2'000};
    // Must not return in a real process. Empty: exit_after_failure().
    std::function<void()> stuck;
  };

  // Collective over `bootstrap`, which carries NCCL's unique id and gives rank, size and deadline;
  // it is not used afterwards. The device is the calling thread's.
  NcclCommunicator(const NcclApi& api, Communicator& bootstrap, Options options);
  NcclCommunicator(const NcclApi& api, Communicator& bootstrap)
      : NcclCommunicator(api, bootstrap, Options{}) {}
  // Enqueued work should be done: see wait(). Aborts when something failed before.
  ~NcclCommunicator() override;

  bool capturable() const override { return true; }
  std::string_view name() const override { return name_; }

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
  class Watchdog;

  void connect(Communicator& bootstrap);
  [[noreturn]] void fail(const char* operation, const std::string& detail);
  template <class Call>
  void guarded(const char* operation, Call call);
  void must(const char* operation, int code);

  const NcclApi* api_;
  std::string name_;
  NcclApi::Comm comm_ = nullptr;
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace millrace::parallel
