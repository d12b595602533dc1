#include "cli/cell_ranks.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "cli/device_setup.h"
#include "parallel/keep_for_good.h"
#include "parallel/process_grid.h"
#include "worker/cpu_binding.h"
#include "worker/plan_transport.h"
#include "worker/worker.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

parallel::ProcessGrid grid_of(const CellSetup& setup, const parallel::Communicator& world) {
  Result<parallel::ProcessGrid> grid =
      parallel::ProcessGrid::make(setup.config.grid.stages, setup.config.grid.lanes, world.size());
  if (!grid) throw std::runtime_error(grid.error().to_string());
  return *grid;
}

using Progress = std::function<void(std::uint64_t done, std::uint64_t total)>;

// Reports at most every 200 ms: enough for a progress line, nothing for the network.
Progress progress_reports(PlanReceiver& link, int rank) {
  return
      [&link, rank, last = Clock::time_point()](std::uint64_t done, std::uint64_t total) mutable {
        if (Clock::now() - last < milliseconds(200)) return;
        last = Clock::now();
        link.report({rank, StartReport::Kind::kLoading, done, total, ""});
      };
}

// Where a CPU worker's threads and memory are (grid.bind_threads). Made by the rank's thread before
// it loads anything: the threads it starts and the memory it touches follow. Devices have
// device.bind_numa instead.
class RankBinding {
 public:
  RankBinding(const CellSetup& setup, const parallel::CellComms& comms, int cell_index)
      : rank_(comms.world->rank()) {
    const GridSection& grid = setup.config.grid;
    if (on_devices(setup.config) || grid.bind_threads == BindThreads::kNone) return;
    // What nobody asked for must not keep a cell from starting.
    const auto refuse = [&](const std::string& why) {
      if (grid.bind_threads != BindThreads::kAuto) throw std::runtime_error(why);
      spdlog::warn("rank {}: {}", rank_, why);
      binding_ = {};
    };
    topology_ = load_topology(TopologyScope::kAllowed);
    if (!topology_) {
      refuse("grid.bind_threads: hwloc finds no cores; use none");
      return;
    }
    binding_ = plan_cpu_binding(topology_, grid.bind_threads,
                                {comms.local_workers * cell_index + comms.local_index,
                                 comms.local_workers * grid.cells, grid.threads_per_rank});
    if (binding_.cores.empty()) return;
    const Result<std::string> bound = bind_worker(topology_, binding_);
    if (!bound) {
      refuse(bound.error().to_string());
      return;
    }
    spdlog::info("rank {}: cores {}, memory of node {}{}{}", rank_, binding_.cores, binding_.nodes,
                 bound->empty() ? "" : "; ", *bound);
  }

  // On compute thread `thread` of the worker.
  void bind(int thread) const {
    if (auto bound = bind_thread(topology_, binding_, thread); !bound) {
      spdlog::warn("rank {}: thread {}: {}", rank_, thread, bound.error().to_string());
    }
  }

 private:
  int rank_;
  Topology topology_;
  CpuBinding binding_;
};

// On devices the weights are read while they are copied there, on the CPU here.
ModelWeights load_reporting(const CellSetup& setup, const RankShard& shard,
                            const Progress& progress) {
  LoadOptions options;
  options.prefault = setup.config.model.prefault && !on_devices(setup.config);
  options.random_values = !on_devices(setup.config);
  options.threads = setup.config.grid.threads_per_rank;
  options.cpu_weights =
      on_devices(setup.config) ? CpuWeights::kMapped : setup.config.model.cpu_weights;
  options.progress = progress;
  Result<ModelWeights> weights = load_weights(setup.source, setup.model, shard, options);
  if (!weights) throw std::runtime_error(weights.error().to_string());
  return std::move(*weights);
}

std::unique_ptr<StepExecutor> make_worker(const CellSetup& setup, const RankShard& shard,
                                          const ModelWeights& weights, parallel::CellComms& comms,
                                          const RankBinding& binding, const Progress& progress) {
  WorkerOptions options = setup.worker_options();
  if (!on_devices(setup.config)) {
    options.on_thread_start = [&binding](int thread) { binding.bind(thread); };
    return std::make_unique<Worker>(options, setup.model, weights, setup.placement, comms);
  }
  auto worker =
      device_backend()->make_worker({setup.config, setup.model, setup.source, shard, weights,
                                     options.limits, setup.placement, comms, progress});
  if (!worker) throw std::runtime_error(worker.error().to_string());
  return std::move(*worker);
}

// When a worker on a device fails, the device may hang, and freeing its memory would hang as well,
// for ever: the worker stays as it is until the process ends, which follows at once. It does
// nothing any more, so what it refers to may go.
void serve_plans(const CellSetup& setup, std::unique_ptr<StepExecutor> worker) {
  try {
    worker->run();
  } catch (...) {
    if (on_devices(setup.config)) parallel::keep_for_good(std::move(worker));
    throw;
  }
}

class PlanLink final : public WorkerLink {
 public:
  explicit PlanLink(PlanSender& sender) : sender_(sender) {}
  void send(const StepPlan& plan) override { sender_.send(plan); }
  std::optional<StepResult> receive(std::chrono::microseconds timeout) override {
    return sender_.receive(timeout);
  }
  std::optional<WorkerReport> worker_report() override { return sender_.worker_report(); }

 private:
  PlanSender& sender_;
};

// The transports that workers named, each once; one unless ranks have different libraries.
std::string transports(const std::map<int, StartReport>& reports) {
  std::set<std::string> names;
  for (const auto& [rank, report] : reports) names.insert(report.detail);
  return fmt::format("{}", fmt::join(names, ", "));
}

void wait_until_ready(const CellSetup& setup, PlanSender& link, int workers,
                      const CoordinatorHooks& hooks) {
  const auto deadline = Clock::now() + milliseconds(setup.config.deadlines.load_ms);
  std::map<int, StartReport> reports;
  int ready = 0;
  while (ready < workers) {
    if (hooks.give_up && hooks.give_up()) throw std::runtime_error("stopped while loading");
    if (Clock::now() > deadline) {
      throw std::runtime_error(
          fmt::format("{} of {} workers are ready after deadlines.load_ms = {}", ready, workers,
                      setup.config.deadlines.load_ms));
    }
    const std::optional<StartReport> report = link.next_report(milliseconds(100));
    if (!report) continue;
    if (report->kind == StartReport::Kind::kFailed) {
      throw std::runtime_error(fmt::format("rank {}: {}", report->rank, report->detail));
    }
    reports[report->rank] = *report;
    ready += report->kind == StartReport::Kind::kReady ? 1 : 0;
    std::uint64_t done = 0;
    std::uint64_t total = 0;
    for (const auto& [rank, r] : reports) {
      done += r.bytes_done;
      total += r.bytes_total;
    }
    // Ranks that have not reported yet count as much as the others on average.
    const double share = total == 0 ? 0.0
                                    : static_cast<double>(done) / static_cast<double>(total) *
                                          static_cast<double>(reports.size()) / workers;
    if (hooks.on_loading) hooks.on_loading(share);
  }
  if (hooks.on_transport) hooks.on_transport(transports(reports));
}

}  // namespace

void run_worker_rank(const CellSetup& setup, parallel::Communicator& world, int cell_index) {
  PlanReceiver link(world);
  bool ready = false;
  try {
    parallel::CellComms comms = parallel::make_cell_comms(world, grid_of(setup, world));
    const RankShard shard = setup.shard(*comms.position);
    const Progress progress = progress_reports(link, world.rank());
    const RankBinding binding(setup, comms, cell_index);
    const ModelWeights weights = load_reporting(setup, shard, progress);
    auto worker = make_worker(setup, shard, weights, comms, binding, progress);
    const std::uint64_t loaded = weights.mapped_bytes + weights.packed_bytes();
    link.report({world.rank(), StartReport::Kind::kReady, loaded, loaded,
                 std::string(worker->transport())});
    ready = true;
    serve_plans(setup, std::move(worker));
  } catch (const parallel::CommError&) {
    throw;  // there is nobody left to tell
  } catch (const std::exception& e) {
    if (!ready) {  // later nobody takes reports: the process's end says it
      link.report({world.rank(), StartReport::Kind::kFailed, 0, 0, e.what()});
      world.flush();
    }
    throw;
  }
}

bool run_coordinator_rank(const CellSetup& setup, parallel::Communicator& world,
                          const CoordinatorHooks& hooks) {
  const parallel::ProcessGrid grid = grid_of(setup, world);
  const Clock::time_point begin = Clock::now();
  parallel::CellComms comms = parallel::make_cell_comms(world, grid);
  PlanSender sender(world);
  wait_until_ready(setup, sender, grid.workers(), hooks);
  const Clock::duration load = Clock::now() - begin;

  PlanLink link(sender);
  Cell::Options options;
  options.limits = setup.scheduler_limits();
  options.step_deadline = milliseconds(setup.config.deadlines.step_ms);
  options.max_gap = milliseconds(setup.config.scheduler.max_gap_ms);
  Cell cell(options, link, hooks.cell);
  for (const auto& [name, seconds] : hooks.start_phases) {
    cell.note_start_phase(name, std::chrono::duration<float>(seconds));
  }
  cell.note_start_phase("load", load);
  if (hooks.on_ready) hooks.on_ready(cell);
  const bool ok = cell.run();
  if (hooks.on_ended) hooks.on_ended();
  return ok;
}

}  // namespace millrace
