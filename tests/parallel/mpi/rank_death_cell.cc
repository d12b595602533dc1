// A cell whose rank 1 fails in the middle of a step: usage rank_death_cell kill|stop|exit|none.
// The other ranks keep exchanging until the deadline ends them. Run by rank_death.sh.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "parallel/mpi_communicator.h"

using namespace millrace::parallel;

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "none";
  try {
    MpiRuntime runtime(&argc, &argv, {.deadline = std::chrono::seconds(2)});
    const auto world = runtime.world();
    std::vector<std::byte> out(world->size() * 4096), in(out.size());
    for (int step = 0; step < 2000; ++step) {
      if (world->rank() == 1 && step == 1000) {
        if (mode == "kill") raise(SIGKILL);
        if (mode == "stop") raise(SIGSTOP);
        if (mode == "exit") exit_after_failure(3);
      }
      world->all_to_all(out, in, 4096);
    }
    return 0;
  } catch (const CommError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    exit_after_failure();
  }
}
