#include "coordinator/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "config/check.h"
#include "coordinator/process_group.h"
#include "coordinator/scratch_folder.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// A cell that has been ready for so long did not fail because of its start.
constexpr milliseconds kSettled{60'000};
constexpr milliseconds kTick{100};
constexpr std::string_view kScratchPrefix = "millrace-cell-";

// Epochs grow across restarts of the supervisor too: they start from the clock.
std::uint64_t next_epoch(std::uint64_t last) {
  const auto now =
      std::chrono::duration_cast<milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  return std::max<std::uint64_t>(last + 1, static_cast<std::uint64_t>(now.count()));
}

}  // namespace

struct Supervisor::Child {
  ProcessGroup group;
  Clock::time_point started = Clock::now();
  Clock::time_point last_line = Clock::now();
  Clock::time_point ready_since{};
  bool ready = false;
  bool draining = false;  // has been told
  bool output_ended = false;
  std::string partial = {};
  std::string failure = {};  // rank 0's own words
};

Supervisor::Supervisor(SupervisorOptions options,
                       std::function<void(const SupervisorStatus&)> on_change)
    : options_(std::move(options)), on_change_(std::move(on_change)) {
  CHECK(pipe2(stop_pipe_, O_CLOEXEC) == 0, "errno={}", errno);
}

Supervisor::~Supervisor() {
  stop();
  close(stop_pipe_[0]);
  close(stop_pipe_[1]);
}

void Supervisor::start() {
  thread_ = std::thread([this] { run(); });
}

void Supervisor::stop() {
  if (!stopping_.exchange(true)) {
    [[maybe_unused]] const auto n = write(stop_pipe_[1], "x", 1);
    const std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void Supervisor::drain(milliseconds limit) {
  {
    const std::lock_guard lock(mutex_);
    if (drain_until_) return;
    drain_until_ = Clock::now() + limit;
    status_.draining = true;
  }
  wake_.notify_all();
}

std::optional<Clock::time_point> Supervisor::drain_until() const {
  const std::lock_guard lock(mutex_);
  return drain_until_;
}

bool Supervisor::over() const { return stopping_ || drain_until().has_value(); }

SupervisorStatus Supervisor::status() const {
  const std::lock_guard lock(mutex_);
  SupervisorStatus copy = status_;
  copy.turn_age = std::chrono::duration_cast<milliseconds>(Clock::now() - last_turn_.load());
  return copy;
}

void Supervisor::set_phase(CellPhase phase) {
  SupervisorStatus copy;
  {
    const std::lock_guard lock(mutex_);
    status_.phase = phase;
    if (phase != CellPhase::kReady) status_.beat = {};
    copy = status_;
  }
  if (on_change_) on_change_(copy);
}

bool Supervisor::pause(milliseconds time) {
  const auto until = Clock::now() + time;
  std::unique_lock lock(mutex_);
  const auto woken = [this] { return stopping_ || drain_until_; };
  while (!woken() && Clock::now() < until) {
    last_turn_ = Clock::now();
    wake_.wait_until(lock, std::min(until, Clock::now() + kTick), woken);
  }
  return !woken();
}

void Supervisor::run() {
  milliseconds backoff = options_.backoff_min;
  ScratchFolder::remove_orphans(kScratchPrefix);
  while (!over()) {
    const std::uint64_t epoch = next_epoch(status().epoch);
    {
      const std::lock_guard lock(mutex_);
      status_.epoch = epoch;
      status_.loaded = 0;
    }
    set_phase(CellPhase::kStarting);
    const std::string why = run_once(epoch, backoff);
    if (over()) break;
    spdlog::error("cell {}: {}; starting again in {} ms", options_.name, why, backoff.count());
    {
      const std::lock_guard lock(mutex_);
      status_.last_failure = why;
      ++status_.restarts;
    }
    set_phase(CellPhase::kBackoff);
    if (!pause(backoff)) break;
    backoff = std::min(backoff * 2, options_.backoff_max);
  }
  set_phase(CellPhase::kStopped);
}

// One cell from its start to its end, and why it ended.
std::string Supervisor::run_once(std::uint64_t epoch, milliseconds& backoff) {
  Result<ScratchFolder> scratch = ScratchFolder::make(kScratchPrefix);
  if (!scratch) return scratch.error().to_string();
  ProcessOptions process;
  process.home = scratch->path();
  auto group = ProcessGroup::start(options_.command(epoch, scratch->path()), process);
  if (!group) {
    scratch->remove();
    return group.error().to_string();
  }
  Child child{std::move(*group)};
  std::string why = watch(child);
  end(child, over());
  if (child.ready && Clock::now() - child.ready_since > kSettled) backoff = options_.backoff_min;
  if (!child.failure.empty()) why += fmt::format(" ({})", child.failure);
  if (child.draining) {
    const std::lock_guard lock(mutex_);
    status_.cut = !child.group.exited_cleanly() || !child.failure.empty();
  }
  scratch->remove();
  return why;
}

std::string Supervisor::watch(Child& child) {
  while (!stopping_) {
    last_turn_ = Clock::now();
    if (const auto until = drain_until()) {
      if (!child.ready) return "asked to end while starting";
      if (!std::exchange(child.draining, true)) child.group.signal(SIGUSR2);
      // Rank 0 keeps the same limit; this is for one that does not.
      if (Clock::now() > *until + options_.stop_grace) return "not drained in time";
    }
    pollfd fds[2] = {{stop_pipe_[0], POLLIN, 0},
                     {child.output_ended ? -1 : child.group.output(), POLLIN, 0}};
    ::poll(fds, 2, static_cast<int>(kTick.count()));
    read_lines(child);
    if (const auto how = child.group.poll_exit()) return fmt::format("mpirun {}", *how);
    const auto now = Clock::now();
    if (!child.ready && now - child.started > options_.ready_deadline) {
      return fmt::format("not ready within {} ms", options_.ready_deadline.count());
    }
    if (child.ready && now - child.last_line > options_.silence_limit) {
      return fmt::format("no sign of life for {} ms", options_.silence_limit.count());
    }
  }
  return "asked to stop";
}

void Supervisor::read_lines(Child& child) {
  char buffer[4096];
  while (true) {
    const ssize_t n = read(child.group.output(), buffer, sizeof buffer);
    if (n == 0) child.output_ended = true;
    if (n <= 0) break;
    child.partial.append(buffer, static_cast<std::size_t>(n));
  }
  std::size_t begin = 0;
  for (std::size_t end; (end = child.partial.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    take_line(child, child.partial.substr(begin, end - begin));
  }
  child.partial.erase(0, begin);
  constexpr std::size_t kLongestLine = 65'536;
  if (child.partial.size() > kLongestLine) child.partial.clear();
}

void Supervisor::take_line(Child& child, const std::string& line) {
  const std::optional<StatusLine> status = parse_status_line(line);
  if (!status) {
    if (!line.empty()) spdlog::info("cell {}: {}", options_.name, line);
    return;
  }
  child.last_line = Clock::now();
  switch (status->kind) {
    case StatusLine::Kind::kLoading: {
      const std::lock_guard lock(mutex_);
      status_.loaded = status->loaded;
    }
      set_phase(CellPhase::kLoading);
      break;
    case StatusLine::Kind::kReady:
      child.ready = true;
      child.ready_since = Clock::now();
      {
        const std::lock_guard lock(mutex_);
        status_.ever_ready = true;
      }
      set_phase(CellPhase::kReady);
      break;
    case StatusLine::Kind::kFailed:
      child.failure = status->text;
      break;
    case StatusLine::Kind::kBeat: {
      const std::lock_guard lock(mutex_);
      if (status_.phase == CellPhase::kReady) status_.beat = status->beat;
    } break;
  }
}

void Supervisor::end(Child& child, bool polite) {
  const auto gone_within = [&](milliseconds limit) {
    const auto deadline = Clock::now() + limit;
    while (!child.group.poll_exit()) {
      if (Clock::now() > deadline) return false;
      last_turn_ = Clock::now();
      read_lines(child);  // a full pipe would keep it from ending
      std::this_thread::sleep_for(milliseconds(10));
    }
    return true;
  };
  if (polite) child.group.signal(SIGUSR1);
  if (!polite || !gone_within(options_.stop_grace)) {
    child.group.signal(SIGTERM);
    gone_within(options_.kill_grace);
  }
  child.group.kill_all();
}

}  // namespace millrace
