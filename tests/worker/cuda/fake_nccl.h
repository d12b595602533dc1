// A libnccl that moves nothing, with faults: for the start and the error paths of
// parallel/nccl_communicator.h.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/nccl_api.h"

namespace millrace::testing {

// What the fake does next. One at a time; tests set it before they make a communicator.
struct FakeNccl {
  // What a rank starts with.
  struct Init {
    int rank = 0;
    int ranks = 0;
    std::string id;
    int device = 0;  // of the thread that starts it
  };

  int id_code = 0;
  std::string id = "seven";
  int init_code = 0;
  bool init_hangs = false;     // until release
  int call_code = 0;           // of every send, recv and collective,
  std::string failing_call;    // or of this one alone
  bool call_hangs = false;     // until abort, or with abort_does_nothing until release
  bool destroy_hangs = false;  // likewise
  bool abort_does_nothing = false;
  std::atomic<bool> abort_hangs{false};  // until release, as NCCL's does while a graph holds it
  int async_error = 0;
  std::atomic<bool> release{false};
  std::atomic<int> ids{0};  // made
  std::atomic<int> aborts{0};
  std::atomic<int> destroys{0};
  std::vector<std::string> calls;  // of the rank's thread
  std::mutex mutex;
  std::vector<Init> inits;  // of all ranks; guarded by `mutex`
};
FakeNccl& fake_nccl();
// Everything as new.
void reset_fake_nccl();

// `all_to_all` false: as NCCL before 2.28.
const parallel::NcclApi& fake_nccl_api(bool all_to_all = true);

}  // namespace millrace::testing
