#include "parallel/device_communicator.h"

namespace millrace::parallel {

void DeviceCommunicator::wait(StreamRef stream, std::chrono::milliseconds deadline) {
  Backoff backoff(options_.backoff);
  while (!kernels::cuda::done(stream)) {
    check();
    if (backoff.waited() >= deadline) {
      abort("device work exceeded its deadline");
      throw CommError("wait", kNoPeer, deadline, "the device did not finish in time");
    }
    backoff.pause();
  }
}

}  // namespace millrace::parallel
