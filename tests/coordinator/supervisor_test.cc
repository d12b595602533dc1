#include "coordinator/supervisor.h"

#include <gtest/gtest.h>

#include <signal.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "coordinator/status_line.h"

namespace millrace {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

// Shell scripts stand in for mpirun; they leave notes in a folder.
class SupervisorTest : public ::testing::Test {
 protected:
  SupervisorTest() {
    char name[] = "/tmp/millrace-supervisor-XXXXXX";
    folder = mkdtemp(name);
  }
  ~SupervisorTest() override { fs::remove_all(folder); }

  SupervisorOptions options(const std::string& script) {
    SupervisorOptions o;
    o.name = "test";
    o.command = [this, script](std::uint64_t epoch, const std::string& scratch) {
      const std::lock_guard lock(mutex);
      epochs.push_back(epoch);
      scratches.insert(scratch);
      return std::vector<std::string>{"sh", "-c", script, "sh", folder, scratch};
    };
    o.backoff_min = 10ms;
    o.backoff_max = 40ms;
    o.silence_limit = 400ms;
    o.stop_grace = 300ms;
    o.kill_grace = 300ms;
    return o;
  }

  template <class F>
  static bool within(std::chrono::milliseconds limit, F condition) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(5ms);
    }
    return true;
  }

  std::size_t starts() {
    const std::lock_guard lock(mutex);
    return epochs.size();
  }

  // Pids that scripts wrote into `name`, which must be gone.
  void expect_gone(const std::string& name) {
    std::ifstream file(folder + "/" + name);
    int pid = 0;
    int count = 0;
    while (file >> pid) {
      ++count;
      EXPECT_TRUE(within(2s,
                         [&] {
                           std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
                           std::string text((std::istreambuf_iterator<char>(stat)), {});
                           return text.empty() || text.find(") Z") != std::string::npos;
                         }))
          << "pid " << pid << " lives";
    }
    EXPECT_GT(count, 0);
  }

  std::string folder;
  std::mutex mutex;
  std::vector<std::uint64_t> epochs;
  std::set<std::string> scratches;
};

TEST_F(SupervisorTest, ADeadCellComesBackWithAHigherEpoch) {
  Supervisor supervisor(options("echo 'millrace-status ready'; exit 3"));
  supervisor.start();
  EXPECT_TRUE(within(10s, [&] { return starts() >= 4; }));
  supervisor.stop();
  EXPECT_EQ(supervisor.status().phase, CellPhase::kStopped);
  EXPECT_NE(supervisor.status().last_failure.find("status 3"), std::string::npos);
  for (std::size_t i = 1; i < epochs.size(); ++i) EXPECT_GT(epochs[i], epochs[i - 1]);
  for (const std::string& scratch : scratches) EXPECT_FALSE(fs::exists(scratch)) << scratch;
}

TEST_F(SupervisorTest, TheReasonThatRankZeroGaveIsKept) {
  Supervisor supervisor(options("echo 'millrace-status failed tensor x is missing'; exit 1"));
  supervisor.start();
  EXPECT_TRUE(within(10s, [&] { return supervisor.status().restarts >= 1; }));
  supervisor.stop();
  EXPECT_NE(supervisor.status().last_failure.find("tensor x is missing"), std::string::npos);
}

TEST_F(SupervisorTest, StopIsPoliteFirst) {
  Supervisor supervisor(
      options("trap 'echo bye > $1/bye; exit 0' USR1; echo 'millrace-status ready'; "
              "while :; do echo 'millrace-status beat 1 0 0'; sleep 0.05; done"));
  supervisor.start();
  ASSERT_TRUE(within(10s, [&] { return supervisor.status().phase == CellPhase::kReady; }));
  supervisor.stop();
  EXPECT_TRUE(fs::exists(folder + "/bye"));
  EXPECT_EQ(starts(), 1U);
}

// What a rank 0 does that is ready and beats, with `trap` for its signals.
std::string living(const std::string& trap) {
  return trap +
         "; echo 'millrace-status ready'; while :; do echo 'millrace-status beat 2 7 30'; sleep "
         "0.05; done";
}

TEST_F(SupervisorTest, DrainLetsTheCellFinishAndStartsNoOther) {
  Supervisor supervisor(
      options(living("trap 'echo x > $1/told; sleep 0.3; echo x > $1/done; exit 0' USR2")));
  supervisor.start();
  ASSERT_TRUE(within(10s, [&] { return supervisor.status().beat == CellBeat{2, 7, 30}; }));
  supervisor.drain(10s);
  EXPECT_TRUE(within(10s, [&] { return fs::exists(folder + "/told"); }));
  EXPECT_TRUE(supervisor.status().draining);
  EXPECT_TRUE(within(10s, [&] { return supervisor.status().phase == CellPhase::kStopped; }));
  EXPECT_TRUE(fs::exists(folder + "/done"));
  EXPECT_FALSE(supervisor.status().cut);
  EXPECT_EQ(supervisor.status().beat, CellBeat{});
  EXPECT_EQ(starts(), 1U);
}

TEST_F(SupervisorTest, ADrainThatCutsSomethingSaysSo) {
  {
    Supervisor deaf(options(living("trap '' USR2")));
    deaf.start();
    ASSERT_TRUE(within(10s, [&] { return deaf.status().phase == CellPhase::kReady; }));
    deaf.drain(100ms);
    EXPECT_TRUE(within(10s, [&] { return deaf.status().phase == CellPhase::kStopped; }));
    EXPECT_TRUE(deaf.status().cut);
  }
  Supervisor late(options(living("trap 'echo millrace-status failed 3 were cut; exit 0' USR2")));
  late.start();
  ASSERT_TRUE(within(10s, [&] { return late.status().phase == CellPhase::kReady; }));
  late.drain(10s);
  EXPECT_TRUE(within(10s, [&] { return late.status().phase == CellPhase::kStopped; }));
  EXPECT_TRUE(late.status().cut);
}

TEST_F(SupervisorTest, DrainEndsAtOnceWhatIsNotReady) {
  SupervisorOptions slow = options("exit 1");
  slow.backoff_min = slow.backoff_max = 100s;
  for (const SupervisorOptions& o : {options("exec sleep 1000"), slow}) {
    Supervisor supervisor(o);
    supervisor.start();
    EXPECT_TRUE(within(10s, [&] { return starts() >= 1; }));
    supervisor.drain(100s);
    EXPECT_TRUE(within(10s, [&] { return supervisor.status().phase == CellPhase::kStopped; }));
    EXPECT_FALSE(supervisor.status().cut);
  }
}

TEST_F(SupervisorTest, StopHurriesADrain) {
  Supervisor supervisor(options(living("trap '' USR2; trap 'exit 0' USR1")));
  supervisor.start();
  ASSERT_TRUE(within(10s, [&] { return supervisor.status().phase == CellPhase::kReady; }));
  supervisor.drain(100s);
  std::this_thread::sleep_for(200ms);
  EXPECT_EQ(supervisor.status().phase, CellPhase::kReady);
  supervisor.stop();
  EXPECT_EQ(starts(), 1U);
}

TEST_F(SupervisorTest, ASilentCellIsEndedAlthoughItIgnoresSignals) {
  Supervisor supervisor(options(
      "trap '' USR1 TERM; echo $$ >> $1/pids; touch $2/segment; echo 'millrace-status ready'; "
      "sleep 1000 & echo $! >> $1/pids; while :; do sleep 1000; done"));
  supervisor.start();
  EXPECT_TRUE(within(20s, [&] { return starts() >= 2; }));
  EXPECT_NE(supervisor.status().last_failure.find("no sign of life"), std::string::npos);
  supervisor.stop();
  expect_gone("pids");
  for (const std::string& scratch : scratches) EXPECT_FALSE(fs::exists(scratch)) << scratch;
}

TEST_F(SupervisorTest, StoppedAndOrphanedProcessesDieWithTheirCell) {
  // A daemonised grandchild in another session, stopped: nothing but SIGKILL by name reaches it.
  Supervisor supervisor(
      options("setsid sh -c 'echo $$ >> '$1'/pids; kill -STOP $$' & sleep 0.2; "
              "echo 'millrace-status ready'; exit 1"));
  supervisor.start();
  EXPECT_TRUE(within(10s, [&] { return starts() >= 2; }));
  supervisor.stop();
  expect_gone("pids");
}

TEST_F(SupervisorTest, ACellThatIsNeverReadyIsStartedAgain) {
  SupervisorOptions o = options("sleep 1000");
  o.ready_deadline = 100ms;
  Supervisor supervisor(o);
  supervisor.start();
  EXPECT_TRUE(within(10s, [&] { return starts() >= 2; }));
  EXPECT_NE(supervisor.status().last_failure.find("not ready within 100 ms"), std::string::npos);
}

TEST_F(SupervisorTest, ACellHasAHomeWhateverTheEnvironment) {
  const char* const before = std::getenv("HOME");
  const std::string home = before == nullptr ? "" : before;
  const auto seen = [&] {
    fs::remove(folder + "/home");
    Supervisor supervisor(
        options("echo \"$HOME $2\" > $1/new; mv $1/new $1/home; exec sleep 1000"));
    supervisor.start();
    EXPECT_TRUE(within(10s, [&] { return fs::exists(folder + "/home"); }));
    supervisor.stop();
    std::ifstream file(folder + "/home");
    std::string own;
    std::string scratch;
    file >> own >> scratch;
    return own == scratch ? "the scratch folder" : own;
  };
  setenv("HOME", "/kept", 1);
  EXPECT_EQ(seen(), "/kept");
  unsetenv("HOME");
  EXPECT_EQ(seen(), "the scratch folder");
  setenv("HOME", "", 1);
  EXPECT_EQ(seen(), "the scratch folder");
  if (before != nullptr) setenv("HOME", home.c_str(), 1);
}

TEST_F(SupervisorTest, ACommandThatCannotRunSaysSo) {
  SupervisorOptions o = options("");
  o.command = [](std::uint64_t, const std::string&) {
    return std::vector<std::string>{"/no/such/mpirun"};
  };
  Supervisor supervisor(o);
  supervisor.start();
  EXPECT_TRUE(within(10s, [&] { return supervisor.status().restarts >= 1; }));
  EXPECT_NE(supervisor.status().last_failure.find("127"), std::string::npos);
}

TEST(StatusLine, RoundTrips) {
  using Kind = StatusLine::Kind;
  for (const StatusLine& line :
       {StatusLine{Kind::kLoading, 0.25, "", {}}, StatusLine{Kind::kReady, 0, "", {}},
        StatusLine{Kind::kBeat, 0, "", {3, 12, 86'400'000}},
        StatusLine{Kind::kFailed, 0, "a b", {}}}) {
    EXPECT_EQ(parse_status_line(format_status_line(line)), line);
  }
  for (const char* text :
       {"", "hello", "millrace-status", "millrace-status nonsense", "millrace-status loading x",
        "millrace-status loading", "millrace-status beat", "millrace-status beat 1 2",
        "millrace-status beat 1 2 3 4", "millrace-status beat 1 -2 3"}) {
    EXPECT_FALSE(parse_status_line(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace millrace
