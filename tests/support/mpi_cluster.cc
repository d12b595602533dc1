// The MPI side of comm_cluster.h, with main(): every process runs all tests in the same order.
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>

#include "parallel/mpi_communicator.h"
#include "tests/support/comm_cluster.h"

namespace millrace::test {

namespace {

parallel::Communicator* world = nullptr;

// Rank 0 tells the story; the others speak only of failures.
class FailurePrinter : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s:%d: %s\n", world->rank(), result.file_name(),
                 result.line_number(), result.summary());
  }
};

}  // namespace

std::vector<int> cluster_sizes() {
  // Asked before main() has started MPI; the test is registered with four ranks.
  return {1, 2, 3, 4};
}

void run_ranks(int ranks, const std::function<void(parallel::Communicator&)>& body,
               std::chrono::milliseconds deadline) {
  ASSERT_LE(ranks, world->size()) << "start with mpirun -n 4";
  try {
    const auto part = world->split(world->rank() < ranks ? 0 : -1, world->rank());
    if (part != nullptr) {
      part->set_deadline(deadline);
      body(*part);
    }
    world->barrier();
  } catch (const std::exception& error) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::fprintf(stderr, "[rank %d] %s.%s: %s\n", world->rank(), test->test_suite_name(),
                 test->name(), error.what());
    std::fflush(nullptr);
    parallel::exit_after_failure();  // the others could only wait for their deadlines
  }
}

}  // namespace millrace::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  millrace::parallel::MpiRuntime runtime(&argc, &argv, {.deadline = std::chrono::seconds(60)});
  const auto comm = runtime.world();
  millrace::test::world = comm.get();
  if (comm->rank() != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new millrace::test::FailurePrinter);
  }
  return RUN_ALL_TESTS();
}
