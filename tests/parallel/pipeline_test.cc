#include "parallel/pipeline.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/comm_alloc_counter.h"
#include "tests/support/comm_cluster.h"

namespace millrace::parallel {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kHidden = 5;
constexpr std::size_t kMaxTokens = 6;

float value(std::uint64_t step, std::size_t i) { return static_cast<float>(step * 1000 + i); }

class PipelineTest : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Stages, PipelineTest, testing::ValuesIn(test::cluster_sizes()),
                         testing::PrintToStringParamName());

// Every stage adds one; the last sees the number of hops.
TEST_P(PipelineTest, StepsFlowThroughAllStages) {
  test::run_ranks(GetParam(), [](Communicator& column) {
    PipelineLink link(column, kMaxTokens, kHidden);
    EXPECT_EQ(link.has_previous(), column.rank() > 0);
    EXPECT_EQ(link.has_next(), column.rank() + 1 < column.size());
    for (std::uint64_t step = 1; step <= 40; ++step) {
      const std::size_t tokens = step % (kMaxTokens + 1);  // also none
      std::vector<float> own(tokens * kHidden);
      std::span<float> x = own;
      if (link.has_previous()) {
        x = link.recv(step, tokens);
      } else {
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = value(step, i);
      }
      ASSERT_EQ(x.size(), tokens * kHidden);
      for (std::size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(x[i], value(step, i) + static_cast<float>(column.rank()));
        x[i] += 1;
      }
      if (!link.has_next()) continue;
      if (step % 2 == 0) {
        link.send(step, x);
      } else {  // without the copy
        std::copy(x.begin(), x.end(), link.send_buffer().begin());
        link.send(step, tokens);
      }
    }
  });
}

TEST_P(PipelineTest, AsManyStepsInFlightAsStagesPlusOne) {
  if (GetParam() == 1) GTEST_SKIP() << "one stage sends nothing";
  test::run_ranks(
      GetParam(),
      [](Communicator& column) {
        PipelineLink link(column, kMaxTokens, kHidden);
        const int in_flight = column.size() + 1;
        const std::vector<float> x(kHidden, 3.0f);
        if (column.rank() == 0) {
          for (int step = 1; step <= in_flight; ++step) link.send(step, x);
        }
        column.barrier();  // stage 1 has received nothing so far
        if (column.rank() == 1) {
          for (int step = 1; step <= in_flight; ++step) EXPECT_EQ(link.recv(step, 1)[0], 3.0f);
        }
      },
      milliseconds(20'000));
}

TEST_P(PipelineTest, FullRingWaitsAndThenFails) {
  if (GetParam() == 1) GTEST_SKIP() << "one stage sends nothing";
  test::run_ranks(
      GetParam(),
      [](Communicator& column) {
        if (column.rank() != 0) return;
        // Large enough that MPI does not buffer it.
        PipelineLink link(column, 1, 200'000);
        const std::vector<float> x(200'000);
        EXPECT_THROW(for (int step = 1; step <= column.size() + 2; ++step) link.send(step, x),
                     CommError);
      },
      milliseconds(300));
}

class WrongMessage : public testing::Test {
 protected:
  // Stage 0 sends `step` with `tokens`; stage 1 expects step 7 with 2 tokens.
  void expect_refused(std::uint64_t step, std::size_t tokens, std::size_t hidden = kHidden) {
    test::run_ranks(
        2,
        [&](Communicator& column) {
          PipelineLink link(column, kMaxTokens, column.rank() == 0 ? hidden : kHidden);
          if (column.rank() == 0) {
            link.send(step, std::vector<float>(tokens * hidden));
            return;
          }
          try {
            link.recv(7, 2);
            ADD_FAILURE() << "accepted";
          } catch (const CommError& error) {
            EXPECT_EQ(error.operation(), "pipeline recv");
            EXPECT_EQ(error.peer(), 0);
            EXPECT_NE(error.detail().find(fmt::format("got step {}", step)), std::string::npos)
                << error.what();
          }
        },
        milliseconds(10'000));
  }
};

TEST_F(WrongMessage, Step) { expect_refused(8, 2); }
TEST_F(WrongMessage, Tokens) { expect_refused(7, 3); }
TEST_F(WrongMessage, Width) { expect_refused(7, 2, kHidden - 1); }

TEST_P(PipelineTest, StepsAllocateNothing) {
  test::run_ranks(GetParam(), [](Communicator& column) {
    PipelineLink link(column, kMaxTokens, kHidden);
    const std::vector<float> x(kMaxTokens * kHidden);
    const auto round = [&](std::uint64_t step) {
      if (link.has_previous()) link.recv(step, kMaxTokens);
      if (link.has_next()) link.send(step, x);
    };
    std::uint64_t step = 0;
    while (step < 100) round(++step);
    const auto before = test::allocations_of_this_thread();
    while (step < 150) round(++step);
    EXPECT_EQ(test::allocations_of_this_thread() - before, 0u);
  });
}

}  // namespace
}  // namespace millrace::parallel
