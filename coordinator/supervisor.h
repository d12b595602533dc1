// Keeps one cell running: starts its mpirun, watches it, ends it for certain, starts it again with
// a higher epoch.
//
// The command's standard output is the status channel (coordinator/status_line.h): rank 0 writes
// there that it loads, is ready, and lives. Standard error is inherited, for logs. A cell that is
// not ready in time, falls silent or exits is ended and started again after a pause that doubles
// from backoff_min to backoff_max and returns to the minimum once a cell has been ready for a
// while.
//
// Draining: SIGUSR2 asks rank 0 to finish what runs and to end then; the cell is not started again.
//
// Ending for certain: every process of a cell carries a tag in its environment. After the polite
// ways (SIGUSR1, which mpirun passes on to the ranks, then SIGTERM) whatever still carries the tag
// is killed, stopped processes included, and the cell's scratch folder (Open MPI's session files
// and shared-memory segments) is removed.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/status_line.h"

namespace millrace {

struct SupervisorOptions {
  std::string name;  // of the cell, for logs
  // The command of one start. `scratch` is an empty folder that exists until the cell has ended.
  std::function<std::vector<std::string>(std::uint64_t epoch, const std::string& scratch)> command;
  std::chrono::milliseconds ready_deadline{900'000};  // from start to "ready"
  std::chrono::milliseconds silence_limit{5'000};     // between two lines, once ready
  std::chrono::milliseconds stop_grace{5'000};        // for a polite end, then SIGTERM
  std::chrono::milliseconds kill_grace{3'000};        // after SIGTERM, then SIGKILL
  std::chrono::milliseconds backoff_min{500};
  std::chrono::milliseconds backoff_max{30'000};
};

enum class CellPhase : std::uint8_t { kStarting, kLoading, kReady, kBackoff, kStopped };

struct SupervisorStatus {
  CellPhase phase = CellPhase::kStarting;
  std::uint64_t epoch = 0;
  std::uint32_t restarts = 0;
  double loaded = 0;         // share of the weights, while loading
  std::string last_failure;  // why the cell before this one ended; empty when none did
  bool ever_ready = false;   // some cell of this supervisor has been ready
  CellBeat beat;             // the cell's last; all zero unless it is ready
  bool draining = false;
  bool cut = false;  // after drain(): the cell ended before all that ran had finished
  // Since the supervisor's own loop last turned: more than a few seconds means that it hangs.
  std::chrono::milliseconds turn_age{0};
};

class Supervisor {
 public:
  // `on_change` is called on the supervisor's thread after each change of phase or load progress.
  explicit Supervisor(SupervisorOptions options,
                      std::function<void(const SupervisorStatus&)> on_change = {});
  ~Supervisor();  // stop()

  void start();
  // Lets what runs finish, for at most `limit`, and ends the cell for good, at once when it is not
  // ready. Returns at once; over when the phase is kStopped. Thread-safe, the first call counts.
  void drain(std::chrono::milliseconds limit);
  // Ends the cell and joins. Returns when no process of it is left. Idempotent.
  void stop();

  SupervisorStatus status() const;

 private:
  struct Child;

  void run();
  std::string run_once(std::uint64_t epoch, std::chrono::milliseconds& backoff);
  bool over() const;  // no cell is to be started any more
  std::optional<std::chrono::steady_clock::time_point> drain_until() const;
  std::string watch(Child& child);  // until it ends or must be ended; says why
  void read_lines(Child& child);
  void end(Child& child, bool polite);
  bool pause(std::chrono::milliseconds time);  // false when stopping
  void set_phase(CellPhase phase);
  void take_line(Child& child, const std::string& line);

  SupervisorOptions options_;
  std::function<void(const SupervisorStatus&)> on_change_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  SupervisorStatus status_;
  std::optional<std::chrono::steady_clock::time_point> drain_until_;  // by mutex_
  std::atomic<std::chrono::steady_clock::time_point> last_turn_{std::chrono::steady_clock::now()};
  std::atomic<bool> stopping_ = false;
  int stop_pipe_[2] = {-1, -1};  // wakes the poll on the child's output
  std::thread thread_;
};

}  // namespace millrace
