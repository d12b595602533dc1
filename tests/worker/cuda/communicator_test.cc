// The communicators of device memory: staged through host memory for real, NCCL's errors with a
// library that fails and hangs on command.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "kernels/cuda/runtime.h"
#include "parallel/device_communicator.h"
#include "parallel/device_pipeline.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/support/comm_cluster.h"
#include "tests/worker/cuda/fake_nccl.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace::parallel {
namespace {

namespace cuda = kernels::cuda;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Words = std::vector<std::uint16_t>;

// Values on the device, and back.
class DeviceWords {
 public:
  DeviceWords(cuda::StreamRef stream, const Words& values) : stream_(stream), size_(values.size()) {
    memory_ = cuda::DeviceBuffer(size_ * 2);
    cuda::copy_to_device(stream, memory_.data(), values.data(), size_ * 2);
    cuda::synchronize(stream, milliseconds(10'000));
  }
  void* data() const { return memory_.data(); }
  Words read() const {
    Words out(size_);
    cuda::copy_to_host(stream_, out.data(), memory_.data(), size_ * 2);
    cuda::synchronize(stream_, milliseconds(10'000));
    return out;
  }

 private:
  cuda::StreamRef stream_;
  std::size_t size_;
  cuda::DeviceBuffer memory_;
};

// A value that names source, destination and place.
std::uint16_t word(int from, int to, int i) {
  return static_cast<std::uint16_t>(1000 * from + 100 * to + i);
}

class Staged : public ::testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Ranks, Staged, ::testing::Values(1, 2, 3, 4));

TEST_P(Staged, CollectivesMoveEveryBlockToItsPlace) {
  test::run_ranks(GetParam(), [](Communicator& host) {
    const int n = host.size();
    const int me = host.rank();
    constexpr int kWords = 8;
    StagedCommunicator comm(host, {.collective_bytes = 1024});
    EXPECT_FALSE(comm.capturable());
    const cuda::Stream stream;
    for (int round = 0; round < 3; ++round) {  // buffers are used again
      Words out, expected;
      for (int peer = 0; peer < n; ++peer) {
        for (int i = 0; i < kWords; ++i) {
          out.push_back(word(me, peer, i + round));
          expected.push_back(word(peer, me, i + round));
        }
      }
      const DeviceWords send(stream, out);
      const DeviceWords recv(stream, Words(out.size(), 9));
      comm.all_to_all(send.data(), recv.data(), kWords * 2, stream);
      EXPECT_EQ(recv.read(), expected);

      const DeviceWords mine(stream, Words(out.begin(), out.begin() + kWords));
      const DeviceWords all(stream, Words(out.size(), 9));
      comm.all_gather(mine.data(), all.data(), kWords * 2, stream);
      Words gathered;
      for (int peer = 0; peer < n; ++peer) {
        for (int i = 0; i < kWords; ++i) gathered.push_back(word(peer, 0, i + round));
      }
      EXPECT_EQ(all.read(), gathered);
    }
  });
}

// Rank a sends a + b + 1 pairs of words to rank b, none to itself when a is 0, with a gap after
// each.
TEST_P(Staged, ExactRangesLeaveTheirSurroundingsAlone) {
  test::run_ranks(GetParam(), [](Communicator& host) {
    const int n = host.size();
    const int me = host.rank();
    StagedCommunicator comm(host, {.collective_bytes = 1024});
    const cuda::Stream stream;
    const auto count = [](int a, int b) { return a == b && a == 0 ? 0 : 2 * (a + b + 1); };
    Words out, expected;
    std::vector<ByteRange> send_ranges, recv_ranges;
    for (int peer = 0; peer < n; ++peer) {
      send_ranges.push_back({out.size() * 2, static_cast<std::size_t>(count(me, peer)) * 2});
      for (int i = 0; i < count(me, peer); ++i) out.push_back(word(me, peer, i));
      out.push_back(9);
      out.push_back(9);
      recv_ranges.push_back({expected.size() * 2, static_cast<std::size_t>(count(peer, me)) * 2});
      for (int i = 0; i < count(peer, me); ++i) expected.push_back(word(peer, me, i));
      expected.push_back(7);
      expected.push_back(7);
    }
    const DeviceWords send(stream, out);
    const DeviceWords recv(stream, Words(expected.size(), 7));
    comm.all_to_all_v(send.data(), send_ranges, recv.data(), recv_ranges, stream);
    EXPECT_EQ(recv.read(), expected);
  });
}

// Value i is rank (i mod n)'s, whatever its bits; all others have -0.0.
TEST_P(Staged, ReduceScatterKeepsTheOneValueOfEachPlace) {
  test::run_ranks(GetParam(), [](Communicator& host) {
    const int n = host.size();
    const int me = host.rank();
    StagedCommunicator comm(host, {.collective_bytes = 1024});
    const cuda::Stream stream;
    const Words special = {0x0000, 0x8000, 0x7f80, 0xff80, 0x3f80, 0x0001, 0x8001, 0xc000};
    Words in, expected;
    for (int block = 0; block < n; ++block) {
      for (std::size_t i = 0; i < special.size(); ++i) {
        in.push_back(static_cast<int>(i) % n == me ? special[i] : 0x8000);
      }
    }
    const DeviceWords send(stream, in);
    const DeviceWords recv(stream, Words(special.size(), 9));
    comm.reduce_scatter_bf16(send.data(), recv.data(), special.size() * 2, stream);
    EXPECT_EQ(recv.read(), special);
  });
}

// Every stage adds its number to what it got.
TEST_P(Staged, StagesPassStepsOnInOrder) {
  test::run_ranks(GetParam(), [](Communicator& host) {
    constexpr std::int64_t kTokens = 5;
    constexpr std::int64_t kHidden = 3;
    StagedCommunicator comm(host, {.message_bytes = kTokens * kHidden * 4, .sends = 2});
    DevicePipeline pipeline(comm, kTokens, kHidden);
    const cuda::Stream stream;
    const cuda::DeviceBuffer x(kTokens * kHidden * 4);
    for (int step = 0; step < 12; ++step) {
      const std::int64_t tokens = 1 + step % kTokens;
      std::vector<float> values(static_cast<std::size_t>(tokens * kHidden));
      if (pipeline.has_previous()) {
        pipeline.recv(stream, x.as<float>(), tokens);
        cuda::copy_to_host(stream, values.data(), x.data(), values.size() * 4);
        comm.wait(stream);
      } else {
        std::iota(values.begin(), values.end(), static_cast<float>(100 * step));
      }
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(values[i], static_cast<float>(100 * step + static_cast<int>(i) + host.rank()));
        values[i] += 1;
      }
      if (!pipeline.has_next()) continue;
      cuda::copy_to_device(stream, x.data(), values.data(), values.size() * 4);
      comm.wait(stream);  // `values` goes
      pipeline.send(stream, x.as<float>(), tokens);
    }
  });
}

// The message stays where the peer would fetch it, and the buffer with it: its end does not hang.
TEST(StagedFailure, AMessageThatNobodyTakesDoesNotHoldTheRank) {
  test::run_ranks(
      2,
      [](Communicator& host) {
        if (host.rank() == 1) return;
        StagedCommunicator comm(host, {.message_bytes = 64, .sends = 1});
        const cuda::Stream stream;
        const cuda::DeviceBuffer memory(64);
        cuda::fill(stream, memory.data(), 0, 64);
        comm.send(1, memory.data(), 64, stream);
        EXPECT_THROW(comm.send(1, memory.data(), 64, stream), CommError) << "no buffer is free";
      },
      milliseconds(100));
}

TEST(StagedFailure, ASilentPeerIsAnErrorAtTheDeadline) {
  test::run_ranks(
      2,
      [](Communicator& host) {
        if (host.rank() == 1) return;
        StagedCommunicator comm(host, {.collective_bytes = 64});
        const cuda::Stream stream;
        const cuda::DeviceBuffer memory(64);
        cuda::fill(stream, memory.data(), 0, 64);
        EXPECT_THROW(comm.all_gather(memory.data(), memory.data(), 16, stream), CommError);
        EXPECT_THROW(comm.check(), CommError) << "and stays broken";
      },
      milliseconds(100));
}

#if defined(MILLRACE_CUDA_EMULATED)
TEST(StagedFailure, AStalledDeviceIsAnErrorAtTheDeadline) {
  test::run_ranks(
      1,
      [](Communicator& host) {
        StagedCommunicator comm(host, {.collective_bytes = 64});
        const cuda::Stream stream;
        const cuda::DeviceBuffer memory(64);
        cuda_emulator::set_stalled(true);
        EXPECT_THROW(comm.all_gather(memory.data(), memory.data(), 16, stream), CommError);
        cuda_emulator::reset();
      },
      milliseconds(50));
}
#endif

// --- NCCL ---

class Nccl : public ::testing::Test {
 protected:
  void SetUp() override { testing::reset_fake_nccl(); }

  // `body` on a world of one rank.
  static void with_rank(const std::function<void(Communicator&)>& body, int deadline_ms = 200) {
    test::run_ranks(1, body, milliseconds(deadline_ms));
  }
  // What the CommError of `call` says.
  template <class Call>
  static std::string failure(Call call) {
    try {
      call();
    } catch (const CommError& error) {
      return fmt::format("{}: {}", error.operation(), error.detail());
    }
    ADD_FAILURE() << "no CommError";
    return "";
  }

  testing::FakeNccl& fake() { return testing::fake_nccl(); }
  char byte_ = 0;
};

TEST_F(Nccl, CallsAreThoseOfTheLibrary) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    EXPECT_TRUE(comm.capturable());
    EXPECT_EQ(comm.name(), "nccl 2.28.9");
    comm.all_to_all(&byte_, &byte_, 4, {});
    const ByteRange range{0, 4};
    comm.all_to_all_v(&byte_, {&range, 1}, &byte_, {&range, 1}, {});
    comm.all_gather(&byte_, &byte_, 4, {});
    comm.reduce_scatter_bf16(&byte_, &byte_, 4, {});
    comm.check();
  });
  EXPECT_THAT(fake().calls, ElementsAre("all_to_all", "group_start", "send", "recv", "group_end",
                                        "all_gather", "reduce_scatter"));
  EXPECT_EQ(fake().destroys, 1);
  EXPECT_EQ(fake().aborts, 0);
}

TEST_F(Nccl, OlderLibrariesGetPointToPointCalls) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(false), host);
    comm.all_to_all(&byte_, &byte_, 4, {});
  });
  EXPECT_THAT(fake().calls, ElementsAre("group_start", "send", "recv", "group_end"));
}

TEST_F(Nccl, EmptyRangesCostNoCall) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    const ByteRange none{0, 0};
    comm.all_to_all_v(&byte_, {&none, 1}, &byte_, {&none, 1}, {});
  });
  EXPECT_THAT(fake().calls, ElementsAre("group_start", "group_end"));
}

TEST_F(Nccl, AFailedStartNamesTheReason) {
  fake().init_code = kNcclSystemError;
  with_rank([&](Communicator& host) {
    EXPECT_EQ(failure([&] { NcclCommunicator comm(testing::fake_nccl_api(), host); }),
              "nccl init: some error: the last words");
  });
}

TEST_F(Nccl, AStartThatHangsEndsAtTheDeadline) {
  fake().init_hangs = true;
  with_rank([&](Communicator& host) {
    EXPECT_THAT(failure([&] { NcclCommunicator comm(testing::fake_nccl_api(), host); }),
                HasSubstr("in time"));
  });
  fake().release = true;  // the helper thread goes
  std::this_thread::sleep_for(milliseconds(20));
}

TEST_F(Nccl, AnErrorOfACallAbortsTheCommunicator) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    fake().call_code = kNcclRemoteError;
    EXPECT_EQ(failure([&] { comm.all_gather(&byte_, &byte_, 4, {}); }),
              "nccl all_gather: remote error: the last words");
    fake().call_code = kNcclSuccess;
    EXPECT_THAT(failure([&] { comm.check(); }), HasSubstr("aborted")) << "broken for good";
  });
  EXPECT_EQ(fake().aborts, 1);
  EXPECT_EQ(fake().destroys, 0) << "an aborted communicator must not be destroyed";
}

TEST_F(Nccl, AnAsynchronousErrorShowsAtTheNextLook) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    comm.check();
    fake().async_error = kNcclRemoteError;
    EXPECT_THAT(failure([&] { comm.check(); }), HasSubstr("remote error"));
  });
  EXPECT_EQ(fake().aborts, 1);
}

TEST_F(Nccl, ACallThatHangsIsAbortedAtTheDeadline) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    fake().call_hangs = true;
    EXPECT_EQ(failure([&] { comm.send(0, &byte_, 4, {}); }), "nccl send: no answer in time");
    EXPECT_THAT(failure([&] { comm.check(); }), HasSubstr("aborted"));
  });
  EXPECT_EQ(fake().aborts, 1);
}

// Whatever is called.
TEST_F(Nccl, EveryCallHasTheDeadline) {
  using Call = std::function<void(NcclCommunicator&)>;
  const ByteRange range{0, 4};
  const std::vector<std::pair<std::string, Call>> calls = {
      {"nccl all_to_all", [&](NcclCommunicator& c) { c.all_to_all(&byte_, &byte_, 4, {}); }},
      {"nccl all_to_all_v",
       [&](NcclCommunicator& c) {
         c.all_to_all_v(&byte_, {&range, 1}, &byte_, {&range, 1}, {});
       }},
      {"nccl all_gather", [&](NcclCommunicator& c) { c.all_gather(&byte_, &byte_, 4, {}); }},
      {"nccl reduce_scatter",
       [&](NcclCommunicator& c) { c.reduce_scatter_bf16(&byte_, &byte_, 4, {}); }},
      {"nccl send", [&](NcclCommunicator& c) { c.send(0, &byte_, 4, {}); }},
      {"nccl recv", [&](NcclCommunicator& c) { c.recv(0, &byte_, 4, {}); }},
  };
  for (const auto& [operation, call] : calls) {
    testing::reset_fake_nccl();
    with_rank(
        [&, operation = operation, call = call](Communicator& host) {
          NcclCommunicator comm(testing::fake_nccl_api(), host);
          fake().call_hangs = true;
          EXPECT_EQ(failure([&] { call(comm); }), operation + ": no answer in time");
        },
        60);
    EXPECT_EQ(fake().aborts, 1) << operation;
    EXPECT_EQ(fake().destroys, 0) << operation;
  }
}

// A group that was begun is ended, or NCCL would keep everything after it for the group's end.
TEST_F(Nccl, AFailureInsideAGroupEndsTheGroup) {
  for (const char* failing : {"send", "recv", "group_end"}) {
    testing::reset_fake_nccl();
    with_rank([&](Communicator& host) {
      NcclCommunicator comm(testing::fake_nccl_api(), host);
      fake().failing_call = failing;
      fake().call_code = kNcclRemoteError;
      const ByteRange range{0, 4};
      EXPECT_THAT(failure([&] {
                    comm.all_to_all_v(&byte_, {&range, 1}, &byte_, {&range, 1}, {});
                  }),
                  HasSubstr("remote error"));
    });
    EXPECT_EQ(fake().calls.front(), "group_start") << failing;
    EXPECT_EQ(fake().calls.back(), "group_end") << failing;
    EXPECT_EQ(fake().aborts, 1) << failing;
  }
}

TEST_F(Nccl, ADestructionThatHangsIsAborted) {
  with_rank(
      [&](Communicator& host) {
        NcclCommunicator comm(testing::fake_nccl_api(), host);
        fake().destroy_hangs = true;
      },
      60);
  EXPECT_EQ(fake().destroys, 1);
  EXPECT_EQ(fake().aborts, 1);
}

TEST_F(Nccl, AbortIsDoneOnce) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    comm.abort("another rank has failed");
    comm.abort("again");
    EXPECT_THAT(failure([&] { comm.all_gather(&byte_, &byte_, 4, {}); }), HasSubstr("aborted"));
  });
  EXPECT_EQ(fake().aborts, 1);
  EXPECT_TRUE(fake().calls.empty()) << "nothing is given to an aborted communicator";
}

// The error is told all the same, and soon: who hears it ends the process.
TEST_F(Nccl, AnAbortThatWaitsForAGraphIsNotWaitedFor) {
  with_rank([&](Communicator& host) {
    NcclCommunicator::Options options;
    options.abort_grace = milliseconds(60);
    options.stuck = [] { ADD_FAILURE() << "the error should be told first"; };
    NcclCommunicator comm(testing::fake_nccl_api(), host, options);
    fake().async_error = kNcclRemoteError;
    fake().abort_hangs = true;
    EXPECT_THAT(failure([&] { comm.check(); }), HasSubstr("remote error"));
  });
  EXPECT_EQ(fake().aborts, 1);
  fake().release = true;  // the abort's thread goes
  std::this_thread::sleep_for(milliseconds(20));
}

TEST_F(Nccl, AnAbortThatDoesNotHelpEndsTheProcess) {
  std::atomic<int> stuck{0};
  with_rank([&](Communicator& host) {
    NcclCommunicator::Options options;
    options.abort_grace = milliseconds(60);
    options.stuck = [&] {
      ++stuck;
      fake().release = true;  // in place of the process's end
    };
    NcclCommunicator comm(testing::fake_nccl_api(), host, options);
    fake().call_hangs = true;
    fake().abort_does_nothing = true;
    EXPECT_THROW(comm.all_gather(&byte_, &byte_, 4, {}), CommError);
  });
  EXPECT_EQ(stuck, 1);
  EXPECT_EQ(fake().aborts, 1);
}

TEST_F(Nccl, EndsTheProcessForReal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(with_rank([&](Communicator& host) {
                NcclCommunicator::Options options;
                options.abort_grace = milliseconds(20);
                NcclCommunicator comm(testing::fake_nccl_api(), host, options);
                fake().call_hangs = true;
                fake().abort_does_nothing = true;
                comm.all_gather(&byte_, &byte_, 4, {});
              }),
              ::testing::ExitedWithCode(70), "");
}

#if defined(MILLRACE_CUDA_EMULATED)
TEST_F(Nccl, WaitSeesAnAsynchronousErrorBeforeTheDeadline) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    const cuda::Stream stream;
    cuda_emulator::set_stalled(true);
    fake().async_error = kNcclRemoteError;
    EXPECT_THAT(failure([&] { comm.wait(stream, milliseconds(600'000)); }),
                HasSubstr("remote error"));
    cuda_emulator::reset();
  });
  EXPECT_EQ(fake().aborts, 1);
}

TEST_F(Nccl, WaitAbortsAtTheDeadline) {
  with_rank([&](Communicator& host) {
    NcclCommunicator comm(testing::fake_nccl_api(), host);
    const cuda::Stream stream;
    cuda_emulator::set_stalled(true);
    EXPECT_THAT(failure([&] { comm.wait(stream, milliseconds(30)); }), HasSubstr("in time"));
    cuda_emulator::reset();
  });
  EXPECT_EQ(fake().aborts, 1);
}
#endif

}  // namespace
}  // namespace millrace::parallel
