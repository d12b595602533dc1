#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace millrace::kernels {
namespace {

TEST(ThreadPool, EveryIndexOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    const Context context{&pool};
    for (const std::int64_t count : {0, 1, 2, 3, 7, 100, 1001}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      parallel_for(context, count, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
      });
      for (const auto& n : seen) ASSERT_EQ(n, 1) << threads << " threads, count " << count;
    }
  }
}

TEST(ThreadPool, EachThreadIsToldItsNumberAsItStarts) {
  std::mutex mutex;
  std::map<int, std::thread::id> started;
  ThreadPool pool(3, ThreadPool::kDefaultSpins, [&](int thread) {
    const std::lock_guard lock(mutex);
    EXPECT_TRUE(started.emplace(thread, std::this_thread::get_id()).second);
  });
  EXPECT_EQ(started.at(0), std::this_thread::get_id());
  parallel_for({&pool}, 3, 1, [&](std::int64_t begin, std::int64_t) {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(started.at(static_cast<int>(begin)), std::this_thread::get_id());
  });
}

TEST(ThreadPool, TheCutIsByCountAloneAndTheCallerTakesPart) {
  ThreadPool pool(3);
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges(3);
  std::vector<std::thread::id> ids(3);
  parallel_for({&pool}, 10, 1, [&](std::int64_t begin, std::int64_t end) {
    const auto part = static_cast<std::size_t>(begin == 0 ? 0 : begin == 3 ? 1 : 2);
    ranges[part] = {begin, end};
    ids[part] = std::this_thread::get_id();
  });
  EXPECT_EQ(ranges[0], std::make_pair(std::int64_t{0}, std::int64_t{3}));
  EXPECT_EQ(ranges[1], std::make_pair(std::int64_t{3}, std::int64_t{6}));
  EXPECT_EQ(ranges[2], std::make_pair(std::int64_t{6}, std::int64_t{10}));
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), 3U);
}

TEST(ThreadPool, GrainKeepsSmallLoopsOnTheCaller) {
  ThreadPool pool(4);
  std::atomic<int> ranges = 0;
  parallel_for({&pool}, 19, 10, [&](std::int64_t, std::int64_t) { ++ranges; });
  EXPECT_EQ(ranges, 1);
  ranges = 0;
  parallel_for({&pool}, 20, 10, [&](std::int64_t, std::int64_t) { ++ranges; });
  EXPECT_EQ(ranges, 2);
}

// Many jobs in a row with no spinning at all: each wake-up goes through the sleep.
TEST(ThreadPool, JobsFollowEachOther) {
  ThreadPool pool(3, /*spins=*/0);
  std::vector<std::int64_t> sums(3);
  for (int job = 0; job < 2000; ++job) {
    parallel_for({&pool}, 3, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) sums[static_cast<std::size_t>(i)] += job;
    });
  }
  for (const std::int64_t sum : sums) EXPECT_EQ(sum, 1999 * 1000);
}

TEST(ThreadPool, NestingIsOurBug) {
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        const Context context{&pool};
        parallel_for(context, 2, 1, [&](std::int64_t, std::int64_t) {
          parallel_for(context, 2, 1, [](std::int64_t, std::int64_t) {});
        });
      },
      "parallel_for inside parallel_for");
}

}  // namespace
}  // namespace millrace::kernels
