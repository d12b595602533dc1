#include "cli/worker_command.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <span>
#include <thread>

#include "cli/cell_ranks.h"
#include "cli/endpoint_binding.h"
#include "cli/logging.h"
#include "coordinator/status_line.h"
#include "parallel/mpi_communicator.h"

namespace millrace {

namespace {

void say(const StatusLine& line) {
  std::fputs((format_status_line(line) + "\n").c_str(), stdout);
  std::fflush(stdout);
}

// Passes on to the cell what the supervisor sends through mpirun: SIGUSR1 is a polite stop, SIGUSR2
// says to drain before. Both are blocked in all threads; one waits for them.
class StopSignal {
 public:
  static void block() {
    sigset_t set = both();
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
  }
  bool pending() const {
    sigset_t set{};
    sigpending(&set);
    return sigismember(&set, SIGUSR1) == 1 || sigismember(&set, SIGUSR2) == 1;
  }
  // Waits for the polite stop; false when it did not come.
  static bool stop_within(std::chrono::milliseconds time) {
    sigset_t set = usr1();
    const timespec limit{time.count() / 1000, time.count() % 1000 * 1'000'000};
    return sigtimedwait(&set, nullptr, &limit) == SIGUSR1;
  }
  // At a signal, on another thread: `drain` if it says so, then `stop`.
  template <class Drain, class Stop>
  void watch(Drain drain, Stop stop) {
    thread_ = std::thread([drain, stop] {
      sigset_t set = both();
      int number = 0;
      sigwait(&set, &number);
      if (number == SIGUSR2) drain();
      stop();
    });
  }
  void end() {
    if (!thread_.joinable()) return;
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }

 private:
  static sigset_t usr1() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return set;
  }
  static sigset_t both() {
    sigset_t set = usr1();
    sigaddset(&set, SIGUSR2);
    return set;
  }
  std::thread thread_;
};

// "beat" lines for the supervisor while the coordinator's own loop lives. The first comes at once,
// and then the sooner the fewer gateways there are: probes wait for them.
class Beat {
 public:
  Beat(const Cell& cell, const EndpointBinding& endpoint, std::chrono::milliseconds interval,
       std::chrono::milliseconds limit)
      : thread_([this, &cell, &endpoint, interval, limit] {
          std::unique_lock lock(mutex_);
          std::uint32_t gateways = 0;
          do {
            const CellStatus status = cell.status();
            gateways = endpoint.gateways();
            if (status.ms_since_progress < static_cast<std::uint64_t>(limit.count())) {
              const CellBeat beat{gateways, std::uint64_t{status.running} + status.waiting,
                                  status.ms_since_progress};
              say({StatusLine::Kind::kBeat, 0, "", beat});
            }
          } while (!wake_.wait_for(lock, gateways == 0 ? std::min(interval, kSoon) : interval,
                                   [this] { return ended_; }));
        }) {}
  ~Beat() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

 private:
  static constexpr std::chrono::milliseconds kSoon{200};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ended_ = false;
  std::thread thread_;
};

// Until nothing runs and no gateway sends more, for deadlines.drain_ms at most.
void drain(Cell& cell, EndpointBinding& endpoint, std::chrono::milliseconds limit) {
  constexpr std::chrono::milliseconds kLook{20};
  const auto until = std::chrono::steady_clock::now() + limit;
  cell.drain();
  endpoint.announce_drain();
  while (!endpoint.drain_confirmed() || !cell.idle()) {
    if (StopSignal::stop_within(kLook)) return;
    if (std::chrono::steady_clock::now() < until) continue;
    const CellStatus status = cell.status();
    say({StatusLine::Kind::kFailed,
         0,
         fmt::format("{} sequences were cut at deadlines.drain_ms = {}",
                     status.running + status.waiting, limit.count()),
         {}});
    return;
  }
}

// Until the configuration is known, which holds the real one.
constexpr std::chrono::milliseconds kStartDeadline{60'000};

// Rank 0 reads the file and hands the text to all, so that other nodes need no copy of it.
ClusterConfig share_config(const std::string& path, parallel::Communicator& world) {
  std::string text;
  if (world.rank() == 0) {
    std::ifstream file(path);
    text.assign(std::istreambuf_iterator<char>(file), {});
    if (text.empty()) throw std::runtime_error(path + ": is missing or empty");
  }
  std::uint64_t size = text.size();
  world.broadcast(0, std::as_writable_bytes(std::span(&size, 1)));
  text.resize(size);
  world.broadcast(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  Result<ClusterConfig> config = parse_cluster_config(text, path);
  if (!config) throw std::runtime_error(config.error().to_string());
  return std::move(*config);
}

bool coordinate(const CellSetup& setup, parallel::Communicator& world, std::uint64_t epoch,
                std::chrono::duration<float> mpi_init) {
  StopSignal signal;
  std::unique_ptr<Beat> beat;
  EndpointBinding endpoint(setup, epoch, setup.config.cell.id, setup.config.cell.gateways);
  CoordinatorHooks hooks;
  hooks.give_up = [&] { return signal.pending(); };
  hooks.on_loading = [](double share) { say({StatusLine::Kind::kLoading, share, "", {}}); };
  const std::chrono::milliseconds drain_limit(setup.config.deadlines.drain_ms);
  hooks.on_ready = [&](Cell& cell) {
    say({StatusLine::Kind::kReady, 0, "", {}});
    beat = std::make_unique<Beat>(
        cell, endpoint, std::chrono::milliseconds(setup.config.deadlines.heartbeat_interval_ms),
        std::chrono::milliseconds(2 * setup.config.deadlines.step_ms));
    signal.watch([&cell, &endpoint, drain_limit] { drain(cell, endpoint, drain_limit); },
                 [&cell] { cell.stop(); });
  };
  hooks.on_ended = [&] {
    signal.end();
    beat.reset();
  };
  hooks.cell.on_failure = [](const std::string& reason) {
    say({StatusLine::Kind::kFailed, 0, reason, {}});
  };
  hooks.start_phases = {{"mpi_init", mpi_init.count()}, {"plan", setup.plan_seconds}};
  endpoint.bind(hooks);
  return run_coordinator_rank(setup, world, hooks);
}

}  // namespace

int run_worker_command(const WorkerCommand& command, int* argc, char*** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // mpirun gone for whatever reason: nobody else would end us
  StopSignal::block();
  parallel::CommOptions options;
  options.deadline = kStartDeadline;
  const auto begin = std::chrono::steady_clock::now();
  parallel::MpiRuntime mpi(argc, argv, options);
  const std::chrono::duration<float> mpi_init = std::chrono::steady_clock::now() - begin;
  const std::unique_ptr<parallel::Communicator> world = mpi.world();
  const bool first = world->rank() == 0;
  try {
    ClusterConfig config = share_config(command.config_file, *world);
    set_up_logging(config.logging);
    world->set_deadline(std::chrono::milliseconds(config.deadlines.collective_ms));
    Result<CellSetup> setup = make_cell_setup(std::move(config));
    if (!setup) throw std::runtime_error(setup.error().to_string());
    if (!first) {
      run_worker_rank(*setup, *world, setup->config.cell.index);
      return 0;
    }
    if (coordinate(*setup, *world, command.epoch, mpi_init)) return 0;
  } catch (const std::exception& e) {
    spdlog::error("rank {}: {}", world->rank(), e.what());
    if (first) say({StatusLine::Kind::kFailed, 0, e.what(), {}});
  }
  parallel::exit_after_failure();
}

}  // namespace millrace
