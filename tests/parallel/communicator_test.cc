// The contract of parallel/communicator.h, on every backend (tests/support/comm_cluster.h).
#include "parallel/communicator.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <bit>
#include <cstring>
#include <numeric>
#include <random>

#include "tests/support/comm_cluster.h"

namespace millrace::parallel {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}
template <class T>
std::span<std::byte> room_of(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

class CommunicatorTest : public testing::TestWithParam<int> {
 protected:
  void run(const std::function<void(Communicator&)>& body,
           milliseconds deadline = milliseconds(60'000)) {
    test::run_ranks(GetParam(), body, deadline);
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorTest, testing::ValuesIn(test::cluster_sizes()),
                         testing::PrintToStringParamName());

TEST_P(CommunicatorTest, MessagesArriveInOrderAndByTag) {
  run([](Communicator& comm) {
    if (comm.size() == 1) return;
    const int next = (comm.rank() + 1) % comm.size();
    const int previous = (comm.rank() + comm.size() - 1) % comm.size();
    std::vector<SendHandle> handles;
    std::vector<std::vector<int>> messages;
    for (int i = 0; i < 20; ++i) messages.push_back(std::vector<int>(i, 100 * comm.rank() + i));
    for (int i = 0; i < 20; ++i) handles.push_back(comm.isend(next, i % 2, bytes_of(messages[i])));
    for (const int parity : {1, 0}) {  // tags may be taken in another order than sent
      for (int i = parity; i < 20; i += 2) {
        std::vector<int> got(20, -1);
        ASSERT_EQ(comm.recv(previous, parity, room_of(got)), i * sizeof(int));
        got.resize(i);
        EXPECT_EQ(got, std::vector<int>(i, 100 * previous + i));
      }
    }
    for (const SendHandle handle : handles) comm.wait(handle);
    EXPECT_TRUE(comm.done(handles.front()));  // stays done
    EXPECT_TRUE(comm.done(SendHandle{}));
  });
}

TEST_P(CommunicatorTest, LargeMessagesCrossWithoutDeadlock) {
  run([](Communicator& comm) {
    constexpr std::size_t kWords = 1 << 20;  // 4 MiB: above every eager limit
    std::vector<std::uint32_t> mine(kWords), got(kWords);
    std::iota(mine.begin(), mine.end(), comm.rank() * 1000u);
    for (int peer = 0; peer < comm.size(); ++peer) {
      if (peer == comm.rank()) continue;
      const SendHandle handle = comm.isend(peer, 7, bytes_of(mine));
      ASSERT_EQ(comm.recv(peer, 7, room_of(got)), kWords * 4);
      EXPECT_EQ(got.front(), peer * 1000u);
      EXPECT_EQ(got.back(), peer * 1000u + kWords - 1);
      comm.wait(handle);
    }
  });
}

TEST_P(CommunicatorTest, PostsDoNotWaitForABusyPeer) {
  run([](Communicator& comm) {
    constexpr int kPosts = 30;  // seven peers: below max_posted
    if (comm.rank() == 0) {
      std::vector<int> message(3000);
      for (int peer = 1; peer < comm.size(); ++peer) {
        for (int i = 0; i < kPosts; ++i) {
          message[0] = i;
          message.back() = -i;
          comm.post(peer, 3, bytes_of(message));  // the buffer is free at once
        }
      }
    }
    comm.barrier();  // nobody received before this
    std::vector<std::byte> data;
    for (int i = 0; comm.rank() != 0 && i < kPosts; ++i) {
      const auto envelope = comm.recv_any(3, data, milliseconds(30'000));
      ASSERT_TRUE(envelope.has_value());
      EXPECT_EQ(envelope->peer, 0);
      ASSERT_EQ(envelope->bytes, 12'000u);
      int first = 0, last = 0;
      std::memcpy(&first, data.data(), 4);
      std::memcpy(&last, data.data() + 11'996, 4);
      EXPECT_EQ(first, i);
      EXPECT_EQ(last, -i);
    }
    comm.flush();
  });
}

TEST_P(CommunicatorTest, PollingSeesWithoutTaking) {
  run([](Communicator& comm) {
    if (comm.size() == 1) return;
    std::vector<std::byte> data;
    if (comm.rank() == 0) {
      EXPECT_FALSE(comm.poll(kAnyPeer, 9).has_value());
      EXPECT_FALSE(comm.try_recv(kAnyPeer, 9, data).has_value());
      EXPECT_FALSE(comm.recv_any(9, data, milliseconds(5)).has_value());
    }
    comm.barrier();
    const std::vector<char> mine(10 + comm.rank(), 'x');
    if (comm.rank() != 0) comm.send(0, 9, bytes_of(mine));
    std::vector<bool> seen(comm.size());
    for (int i = 1; comm.rank() == 0 && i < comm.size(); ++i) {
      if (i == 1) {
        while (!comm.poll(1, 9)) std::this_thread::yield();
        EXPECT_EQ(comm.poll(1, 9), 11u);
        EXPECT_EQ(comm.poll(1, 8), std::nullopt);
      }
      const auto envelope = comm.recv_any(9, data, milliseconds(30'000));
      ASSERT_TRUE(envelope.has_value());
      EXPECT_EQ(data.size(), 10u + envelope->peer);
      EXPECT_FALSE(seen[envelope->peer]);
      seen[envelope->peer] = true;
    }
  });
}

TEST_P(CommunicatorTest, AllToAllGivesEachPeerItsBlock) {
  run([](Communicator& comm) {
    const int n = comm.size();
    for (const std::size_t words : {1, 3, 1024, 70'000}) {
      std::vector<int> out(n * words), in(n * words, -1);
      for (int peer = 0; peer < n; ++peer) {
        for (std::size_t i = 0; i < words; ++i)
          out[peer * words + i] = comm.rank() * 1000 + peer * 10 + i % 7;
      }
      comm.all_to_all(bytes_of(out), room_of(in), words * sizeof(int));
      for (int peer = 0; peer < n; ++peer) {
        for (std::size_t i = 0; i < words; ++i) {
          ASSERT_EQ(in[peer * words + i], peer * 1000 + comm.rank() * 10 + static_cast<int>(i % 7));
        }
      }
    }
  });
}

TEST_P(CommunicatorTest, AllToAllVMovesRaggedAndEmptyRanges) {
  run([](Communicator& comm) {
    const int n = comm.size(), me = comm.rank();
    // Rank a sends (a * b) % 4 words to rank b, out of a buffer in descending peer order.
    const auto words = [](int from, int to) { return static_cast<std::size_t>(from * to % 4); };
    std::vector<std::uint64_t> to_peers(n), from_peers(n);
    for (int peer = 0; peer < n; ++peer) to_peers[peer] = words(me, peer);
    comm.exchange_counts(to_peers, from_peers);
    std::vector<int> out, in(4 * n, -1);
    std::vector<ByteRange> out_ranges(n), in_ranges(n);
    for (int peer = n - 1; peer >= 0; --peer) {
      out_ranges[peer] = {out.size() * 4, to_peers[peer] * 4};
      out.insert(out.end(), to_peers[peer], 100 * me + peer);
      EXPECT_EQ(from_peers[peer], words(peer, me));
      in_ranges[peer] = {static_cast<std::size_t>(peer) * 16, from_peers[peer] * 4};
    }
    comm.all_to_all_v(bytes_of(out), out_ranges, room_of(in), in_ranges);
    for (int peer = 0; peer < n; ++peer) {
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(in[peer * 4 + i], i < words(peer, me) ? 100 * peer + me : -1);
      }
    }
  });
}

TEST_P(CommunicatorTest, GatherBroadcastBarrier) {
  run([](Communicator& comm) {
    const std::vector<int> mine = {comm.rank(), -comm.rank()};
    std::vector<int> all(2 * comm.size());
    comm.all_gather(bytes_of(mine), room_of(all));
    for (int peer = 0; peer < comm.size(); ++peer) {
      EXPECT_EQ(all[2 * peer], peer);
      EXPECT_EQ(all[2 * peer + 1], -peer);
    }
    for (int root = 0; root < comm.size(); ++root) {
      std::vector<int> data(1000, comm.rank() == root ? 77 + root : 0);
      comm.broadcast(root, room_of(data));
      EXPECT_EQ(data, std::vector<int>(1000, 77 + root));
    }
    comm.barrier();
  });
}

TEST_P(CommunicatorTest, ReduceScatterAddsInRankOrder) {
  run([](Communicator& comm) {
    const int n = comm.size();
    constexpr std::size_t kWidth = 33;
    // Magnitudes far apart: another order gives other bits.
    const auto value = [](int rank, std::size_t i) {
      std::mt19937 random(static_cast<unsigned>(rank * 100'000 + i));
      return std::ldexp(std::uniform_real_distribution<float>(-1, 1)(random),
                        static_cast<int>(random() % 40) - 20);
    };
    std::vector<float> in(n * kWidth), out(kWidth);
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = value(comm.rank(), i);
    comm.reduce_scatter_sum(in, out);
    for (std::size_t i = 0; i < kWidth; ++i) {
      const std::size_t at = comm.rank() * kWidth + i;
      float sum = value(0, at);
      for (int rank = 1; rank < n; ++rank) sum += value(rank, at);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(sum));
    }
    std::fill(in.begin(), in.end(), -0.0f);  // stays -0.0: the neutral element
    comm.reduce_scatter_sum(in, out);
    for (const float sum : out) EXPECT_TRUE(sum == 0 && std::signbit(sum));
  });
}

TEST_P(CommunicatorTest, SplitOrdersByKeyAndSkipsNonMembers) {
  run([](Communicator& comm) {
    const int color = comm.rank() % 3 == 2 ? -1 : comm.rank() % 3;
    const auto part = comm.split(color, -comm.rank());
    const auto again = comm.split(0, 0);  // several splits live together
    ASSERT_EQ(again->size(), comm.size());
    EXPECT_EQ(again->rank(), comm.rank());
    ASSERT_EQ(part == nullptr, color < 0);
    if (part != nullptr) {
      std::vector<int> mine = {comm.rank()}, all(part->size());
      part->all_gather(bytes_of(mine), room_of(all));
      EXPECT_EQ(all[part->rank()], comm.rank());
      EXPECT_TRUE(std::is_sorted(all.rbegin(), all.rend()));
      for (const int member : all) EXPECT_EQ(member % 3, color);
    }
    again->barrier();
  });
}

TEST_P(CommunicatorTest, ManyMixedCallsStayInStep) {
  run([](Communicator& comm) {
    std::vector<int> out(comm.size()), in(comm.size());
    const int next = (comm.rank() + 1) % comm.size();
    for (int round = 0; round < 300; ++round) {
      if (comm.size() > 1) comm.post(next, 5, bytes_of(std::vector<int>{round}));
      std::fill(out.begin(), out.end(), round * 100 + comm.rank());
      comm.all_to_all(bytes_of(out), room_of(in), sizeof(int));
      for (int peer = 0; peer < comm.size(); ++peer) ASSERT_EQ(in[peer], round * 100 + peer);
      if (comm.size() == 1) continue;
      std::vector<int> got(1);
      comm.recv((comm.rank() + comm.size() - 1) % comm.size(), 5, room_of(got));
      ASSERT_EQ(got[0], round);
    }
    comm.flush();
  });
}

// Calls `call`, expects a CommError within the deadline plus scheduling slack, and returns it.
template <class Call>
std::optional<CommError> expect_timeout(Communicator& comm, Call call) {
  const auto start = Clock::now();
  std::optional<CommError> caught;
  try {
    call();
  } catch (const CommError& error) {
    caught = error;
  }
  const auto waited = Clock::now() - start;
  EXPECT_TRUE(caught.has_value());
  EXPECT_GE(waited, comm.options().deadline);
  EXPECT_LE(waited, comm.options().deadline + milliseconds(2000));
  return caught;
}

TEST_P(CommunicatorTest, SilentPeerIsAnErrorInTime) {
  run(
      [](Communicator& comm) {
        if (comm.size() == 1 || comm.rank() != 0) return;  // the others never answer
        std::vector<int> data(4);
        const auto error = expect_timeout(comm, [&] { comm.recv(1, 2, room_of(data)); });
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->operation(), "recv");
        EXPECT_EQ(error->peer(), 1);
        EXPECT_EQ(error->deadline(), milliseconds(200));
        EXPECT_FALSE(error->detail().empty());
        const auto start = Clock::now();
        EXPECT_THROW(comm.barrier(), CommError);  // broken for good, and at once
        EXPECT_LT(Clock::now() - start, milliseconds(150));
      },
      milliseconds(200));
}

TEST_P(CommunicatorTest, SendToAPeerThatNeverReceivesEnds) {
  run(
      [](Communicator& comm) {
        if (comm.size() == 1 || comm.rank() != 0) return;
        const std::vector<int> data(1 << 20);
        const auto error = expect_timeout(comm, [&] { comm.send(1, 2, bytes_of(data)); });
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->operation(), "send");
        EXPECT_EQ(error->peer(), 1);
      },
      milliseconds(200));
}

TEST_P(CommunicatorTest, CollectiveNamesTheMissingRank) {
  run(
      [](Communicator& comm) {
        const int missing = comm.size() - 1;
        if (comm.size() == 1 || comm.rank() == missing) return;
        std::vector<int> out(comm.size()), in(comm.size());
        const auto error =
            expect_timeout(comm, [&] { comm.all_to_all(bytes_of(out), room_of(in), sizeof(int)); });
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->operation(), "all_to_all");
        EXPECT_EQ(error->peer(), missing);
      },
      milliseconds(300));
}

TEST_P(CommunicatorTest, PostsAreBounded) {
  run(
      [](Communicator& comm) {
        if (comm.size() == 1 || comm.rank() != 0) return;
        const std::vector<std::byte> data(200'000);
        const auto post_for_ever = [&] {
          for (std::size_t i = 0; i <= comm.options().max_posted; ++i) comm.post(1, 2, data);
        };
        const auto error = expect_timeout(comm, post_for_ever);
        ASSERT_TRUE(error.has_value());
        EXPECT_EQ(error->operation(), "post");
      },
      milliseconds(300));
}

TEST_P(CommunicatorTest, DisagreeingSizesAreAnErrorNotACorruption) {
  run(
      [](Communicator& comm) {
        if (comm.size() == 1) return;
        const std::size_t words = comm.rank() == 0 ? 2 : 1;
        std::vector<int> out(comm.size() * words), in(comm.size() * words);
        EXPECT_THROW(
            {
              comm.all_to_all(bytes_of(out), room_of(in), words * sizeof(int));
              if (comm.size() > 2 && comm.rank() > 1) comm.barrier();  // its neighbours have failed
            },
            CommError);
      },
      milliseconds(500));
}

// Counted in sleeps, not in time: how long a core takes for one test of the transport is the
// machine's business, how often the wait asks for it is ours. A wait that spins never sleeps.
TEST_P(CommunicatorTest, IdleWaitLeavesTheCoreToOthers) {
  run([](Communicator& comm) {
    const auto usage = [] {
      rusage now{};
      getrusage(RUSAGE_THREAD, &now);
      return now;
    };
    const auto cpu_us = [](const rusage& at) {
      return (at.ru_utime.tv_sec + at.ru_stime.tv_sec) * 1'000'000 + at.ru_utime.tv_usec +
             at.ru_stime.tv_usec;
    };
    constexpr milliseconds kWait{1500};
    comm.barrier();
    const rusage before = usage();
    std::vector<std::byte> data;
    EXPECT_FALSE(comm.recv_any(4, data, kWait).has_value());
    const rusage after = usage();

    const BackoffPolicy& policy = comm.options().backoff;
    const auto most = policy.idle_after / policy.sleep_min + kWait / policy.sleep_idle;
    const auto sleeps = after.ru_nvcsw - before.ru_nvcsw;
    EXPECT_GE(sleeps, 1) << "rank " << comm.rank();
    EXPECT_LE(sleeps, most) << "rank " << comm.rank();
    if (comm.rank() == 0) {
      testing::Test::RecordProperty("idle_cpu_us",
                                    static_cast<int>(cpu_us(after) - cpu_us(before)));
    }
    comm.barrier();
  });
}

}  // namespace
}  // namespace millrace::parallel
