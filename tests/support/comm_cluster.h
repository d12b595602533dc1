// Runs one test body on several ranks, whatever they are: threads in parallel_test, processes in
// parallel_mpi_test. The suites of tests/parallel are written once against this.
#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "parallel/communicator.h"

namespace millrace::test {

// Numbers of ranks that this executable can run (threads: 1, 2, 3, 4, 8; MPI: up to the world's
// size).
std::vector<int> cluster_sizes();

// Calls body(comm) on `ranks` ranks and returns when all are through. EXPECT_* count as usual; a
// body that throws is a failure and ends the other ranks' waits. Under MPI every process calls
// this, and those that are not among the `ranks` only wait.
void run_ranks(int ranks, const std::function<void(parallel::Communicator&)>& body,
               std::chrono::milliseconds deadline = std::chrono::milliseconds(60'000));

}  // namespace millrace::test
