// `millrace worker`: one rank of a cell under mpirun.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

struct WorkerCommand {
  std::string config_file;  // written by the supervisor: no automatic value left
  std::uint64_t epoch = 0;
};

// Returns the process's exit status; does not return at all after a failure that MPI_Finalize would
// not survive.
int run_worker_command(const WorkerCommand& command, int* argc, char*** argv);

}  // namespace millrace
