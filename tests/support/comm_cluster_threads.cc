#include <gtest/gtest.h>

#include <thread>

#include "parallel/thread_communicator.h"
#include "tests/support/comm_cluster.h"

namespace millrace::test {

std::vector<int> cluster_sizes() { return {1, 2, 3, 4, 8}; }

void run_ranks(int ranks, const std::function<void(parallel::Communicator&)>& body,
               std::chrono::milliseconds deadline) {
  parallel::ThreadGroup group(ranks, {.deadline = deadline});
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto comm = group.take(rank);
      try {
        body(*comm);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
        group.abort("another rank failed");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace millrace::test
