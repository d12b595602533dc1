// Ranks as processes of one mpirun (Open MPI 4.1).
//
// Only non-blocking MPI is used after start-up, tested in a loop with the deadline and backoff of
// communicator.h. The few calls that MPI offers in blocking form only (init, split, finalize) run
// under a watchdog thread that ends the process at the deadline. Errors come back as CommError.
//
// After a CommError, receives that nothing has reached are cancelled, but a transfer half through,
// or a send, may still touch its buffer during later MPI calls, and MPI_Finalize would wait for
// ever for a peer that is gone: leave with exit_after_failure(). mpirun then ends the other ranks
// of the cell (Open MPI 4.1.4: about a second later) and exits non-zero.
//
// MPI is initialised MPI_THREAD_FUNNELED: all communicators of a process belong to the thread that
// made the MpiRuntime.
#pragma once

#include <chrono>
#include <memory>

#include "parallel/communicator.h"

namespace millrace::parallel {

// Owns MPI_Init_thread .. MPI_Finalize; one per process, made first and destroyed last.
class MpiRuntime {
 public:
  // Throws CommError when MPI cannot start, or not with MPI_THREAD_FUNNELED.
  MpiRuntime(int* argc, char*** argv, CommOptions options = {});
  ~MpiRuntime();  // finalizes; ends the process with kCommFailureExit when that exceeds the
                  // deadline
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  // A communicator of all ranks, separate from MPI_COMM_WORLD. Collective.
  std::unique_ptr<Communicator> world();

 private:
  CommOptions options_;
};

inline constexpr int kCommFailureExit = 70;  // EX_SOFTWARE: the supervisor restarts the cell

// Leaves by _exit: no destructor, no MPI_Finalize, no flush, nothing that could wait. Write logs
// out first.
[[noreturn]] void exit_after_failure(int code = kCommFailureExit);

}  // namespace millrace::parallel
