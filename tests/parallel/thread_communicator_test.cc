// What only the thread backend promises: abort, and buffers that are given back after a failure.
#include "parallel/thread_communicator.h"

#include <gtest/gtest.h>

#include <thread>

namespace millrace::parallel {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

TEST(ThreadCommunicator, AbortEndsPendingAndLaterCallsOfAllRanks) {
  constexpr int kRanks = 4;
  ThreadGroup group(kRanks, {.deadline = milliseconds(60'000)});
  std::atomic<int> ended{0};
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto comm = group.take(rank);
      const auto pair = comm->split(rank / 2, rank);
      std::vector<std::byte> data(8);
      try {
        if (rank == 0) comm->recv(1, 0, data);  // pending in the world
        if (rank == 1) {
          std::this_thread::sleep_for(milliseconds(50));
          comm->abort("lane 1 ran out of memory");
          comm->barrier();  // later
        }
        if (rank == 2) pair->recv(1, 0, data);  // pending in a sub-group
        if (rank == 3) comm->recv_any(0, data, milliseconds(60'000));
      } catch (const CommError& error) {
        EXPECT_NE(error.detail().find("lane 1 ran out of memory"), std::string::npos);
        ++ended;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ended, kRanks);
  EXPECT_LT(Clock::now() - start, milliseconds(5000));
}

TEST(ThreadCommunicator, FailedSendGivesItsBufferBack) {
  ThreadGroup group(2, {.deadline = milliseconds(100)});
  const auto sender = group.take(0), receiver = group.take(1);
  {
    const std::vector<std::byte> data(64);
    EXPECT_THROW(sender->send(1, 0, data), CommError);
  }  // the buffer is gone, and so is the message
  EXPECT_FALSE(receiver->poll(0, 0).has_value());
}

TEST(ThreadCommunicator, DestroyedSenderLeavesNoDanglingMessage) {
  ThreadGroup group(2);
  auto sender = group.take(0);
  const auto receiver = group.take(1);
  sender->post(1, 0, std::vector<std::byte>(64));
  ASSERT_TRUE(receiver->poll(0, 0).has_value());
  sender.reset();
  EXPECT_FALSE(receiver->poll(0, 0).has_value());
}

TEST(ThreadCommunicator, CommunicatorsOutliveTheGroup) {
  auto group = std::make_unique<ThreadGroup>(2);
  const auto a = group->take(0), b = group->take(1);
  group.reset();
  a->post(1, 0, std::vector<std::byte>(3));
  std::vector<std::byte> data;
  EXPECT_TRUE(b->try_recv(0, 0, data).has_value());
  EXPECT_EQ(data.size(), 3u);
}

TEST(ThreadCommunicator, MessageLongerThanTheBufferIsAnError) {
  ThreadGroup group(2);
  const auto a = group.take(0), b = group.take(1);
  a->post(1, 0, std::vector<std::byte>(64));
  std::vector<std::byte> data(63);
  EXPECT_THROW(b->recv(0, 0, data), CommError);
}

}  // namespace
}  // namespace millrace::parallel
