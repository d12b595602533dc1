#include "cli/serve_command.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "cli/cell_probes.h"
#include "cli/cell_setup.h"
#include "cli/complain.h"
#include "cli/device_setup.h"
#include "cli/drain_order.h"
#include "cli/embedded_cell.h"
#include "cli/endpoint_binding.h"
#include "cli/gateway_process.h"
#include "cli/launch.h"
#include "cli/start_metrics.h"
#include "coordinator/supervisor.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr int kForced = 130;  // as a shell counts what Ctrl-C ended

std::string host_name() {
  char name[256] = "localhost";
  gethostname(name, sizeof name - 1);
  return name;
}

// A file for the ranks: the configuration with no automatic value left. Removed with the object.
class RankConfigFile {
 public:
  static Result<std::unique_ptr<RankConfigFile>> write(const ClusterConfig& config) {
    std::string path = std::filesystem::temp_directory_path() / "millrace-config-XXXXXX";
    const int fd = mkstemp(path.data());
    if (fd < 0)
      return Error{ErrorCode::kInternal, "", "no temporary file for the ranks' configuration"};
    close(fd);
    std::ofstream file(path);
    file << to_yaml(config);  // without the API keys: ranks need none
    file.close();
    if (!file) return Error{ErrorCode::kInternal, "", path + ": cannot be written"};
    return std::unique_ptr<RankConfigFile>(new RankConfigFile(path));
  }
  ~RankConfigFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit RankConfigFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// One line that says how far loading is; on a terminal it is written over itself.
void show_progress(const std::string& cell, double share) {
  if (isatty(STDERR_FILENO) != 0) {
    fmt::print(stderr, "\r{}: loading {:3.0f} %", cell, share * 100);
    if (share >= 1) fmt::print(stderr, "\n");
  } else {
    spdlog::info("{}: loading {:.0f} %", cell, share * 100);
  }
}

// A cell of this machine, in either form.
class LocalCell {
 public:
  virtual ~LocalCell() = default;
  virtual void start() = 0;
  virtual void stop() = 0;  // blocks until nothing of it is left
};

class SupervisedCell final : public LocalCell {
 public:
  // `on_change` is called on a thread of the cell.
  SupervisedCell(const ClusterConfig& config, std::unique_ptr<RankConfigFile> file,
                 std::function<void(const SupervisorStatus&)> on_change)
      : file_(std::move(file)),
        supervisor_(
            options(config, file_->path()),
            [id = config.cell.id, on_change = std::move(on_change)](const SupervisorStatus& s) {
              if (s.phase == CellPhase::kLoading) show_progress(id, s.loaded);
              if (s.phase == CellPhase::kReady) spdlog::info("{}: ready, epoch {}", id, s.epoch);
              on_change(s);
            }) {}
  void start() override { supervisor_.start(); }
  void stop() override { supervisor_.stop(); }
  void drain(milliseconds limit) { supervisor_.drain(limit); }
  SupervisorStatus status() const { return supervisor_.status(); }

 private:
  static SupervisorOptions options(const ClusterConfig& config, const std::string& file) {
    SupervisorOptions o;
    o.name = config.cell.id;
    o.command = [config, file](std::uint64_t epoch, const std::string& scratch) {
      return mpirun_command(config, file, epoch, scratch);
    };
    o.ready_deadline = milliseconds(config.deadlines.load_ms);
    o.silence_limit = milliseconds(2 * config.deadlines.heartbeat_limit_ms);
    o.backoff_min = milliseconds(config.cell.restart_backoff_min_ms);
    o.backoff_max = milliseconds(config.cell.restart_backoff_max_ms);
    return o;
  }

  std::unique_ptr<RankConfigFile> file_;
  Supervisor supervisor_;
};

class ThreadedCell final : public LocalCell {
 public:
  ThreadedCell(const CellSetup& setup, const CellSection& cell, std::uint64_t epoch,
               std::unique_ptr<StartMetrics> metrics,
               std::function<void(const std::string&)> on_failure)
      : setup_(setup),
        id_(cell.id),
        index_(cell.index),
        binding_(setup, epoch, id_, cell.gateways),
        metrics_(std::move(metrics)),
        on_failure_(std::move(on_failure)) {
    status_.epoch = epoch;
  }
  void start() override {
    tell(CellPhase::kStarting);
    CoordinatorHooks hooks;
    hooks.on_loading = [this](double share) {
      show_progress(id_, share);
      tell(CellPhase::kLoading, share);
    };
    hooks.on_ready = [this](Cell&) {
      spdlog::info("{}: ready", id_);
      tell(CellPhase::kReady);
    };
    hooks.cell.on_failure = [this](const std::string& why) {
      tell(CellPhase::kStopped);
      on_failure_(why);
    };
    hooks.start_phases = {{"plan", setup_.plan_seconds}};
    binding_.bind(hooks);
    ranks_ = std::make_unique<EmbeddedCell>(setup_, std::move(hooks), index_);
  }
  void stop() override { ranks_.reset(); }

 private:
  // On the thread of rank 0, and before that thread is.
  void tell(CellPhase phase, double loaded = 0) {
    status_.phase = phase;
    status_.loaded = loaded;
    metrics_->update(status_);
  }

  const CellSetup& setup_;
  const std::string id_;
  const int index_;
  EndpointBinding binding_;
  std::unique_ptr<StartMetrics> metrics_;
  SupervisorStatus status_;
  std::function<void(const std::string&)> on_failure_;
  std::unique_ptr<EmbeddedCell> ranks_;
};

void stop_all(std::vector<std::unique_ptr<LocalCell>>& cells) {
  std::vector<std::thread> threads;
  for (auto& cell : cells) threads.emplace_back([&cell] { cell->stop(); });
  for (std::thread& thread : threads) thread.join();
}

// The part of a URL by which this machine reaches a server that listens at `host`.
std::string url_host(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  if (host == "::") return "[::1]";
  return host.find(':') == std::string::npos ? host : fmt::format("[{}]", host);
}

// A request to paste, which the server as it is configured answers.
std::string curl_line(const std::string& url, const std::string& model, bool chat, bool guarded) {
  const std::string question =
      chat ? R"("messages": [{"role": "user", "content": "Tell me about the sea."}])"
           : R"("prompt": "The sea")";
  return fmt::format(R"(curl {}/v1/{}completions -H 'Content-Type: application/json'{} )"
                     R"(-d '{{"model": "{}", {}, "max_tokens": 64}}')",
                     url, chat ? "chat/" : "",
                     guarded ? " -H 'Authorization: Bearer YOUR-KEY'" : "", model, question);
}

asio::awaitable<void> announce_when_ready(GatewayProcess& gateway, std::string url,
                                          std::string model) {
  asio::steady_timer timer(co_await asio::this_coro::executor);
  while (!gateway.gateway().status().ready) {
    timer.expires_after(milliseconds(50));
    co_await timer.async_wait(asio::use_awaitable);
  }
  fmt::print("\nMillrace serves {0} at {1}\nStatus page: {1}/status\n\n  {2}\n\n", model, url,
             curl_line(url, model, gateway.has_chat_template(), gateway.asks_for_key()));
  std::fflush(stdout);
}

// How long the streams of a process that has lost its only cell may wait for their error events,
// which the failed cell sends as its last.
constexpr milliseconds kLastEvents{5'000};

// Serves until the order to drain, which a `failure` gives as well. `cells` may be empty.
int serve_until_order(asio::io_context& io, DrainOrder& order, GatewayProcess& gateway,
                      const ClusterConfig& config, std::vector<std::unique_ptr<LocalCell>>& cells,
                      const std::string& failure) {
  int status = 0;
  order.watch_signals();
  asio::co_spawn(
      io,
      [&]() -> asio::awaitable<void> {
        const milliseconds pause = co_await order.wait();
        milliseconds limit(config.deadlines.drain_ms);
        // What waits for a cell waits in vain.
        if (!failure.empty() && cells.size() == 1) limit = std::min(limit, kLastEvents);
        const bool all = co_await gateway.drain(limit, pause);
        if (!all && failure.empty()) spdlog::warn("some streams were cut at deadlines.drain_ms");
        status = all ? 0 : 1;
        io.stop();
      },
      asio::detached);
  const std::string url =
      fmt::format("http://{}:{}", url_host(config.gateway.host), gateway.port());
  asio::co_spawn(io, announce_when_ready(gateway, url, config.model.served_name), asio::detached);
  for (auto& cell : cells) cell->start();
  io.run();
  stop_all(cells);
  if (order.forced()) return kForced;
  if (!failure.empty()) {
    fmt::print(stderr, "millrace: {}\n", failure);
    return 1;
  }
  return status;
}

// Drains the cell when it is ordered, until it has `ended`. Whoever asked over HTTP is answered.
asio::awaitable<void> end_on_order(DrainOrder& order, SupervisedCell& cell,
                                   asio::steady_timer& ended, net::HttpServer* probes,
                                   const ClusterConfig& config) {
  const milliseconds pause = co_await order.wait();
  boost::system::error_code ec;
  asio::steady_timer timer(co_await asio::this_coro::executor, pause);
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  cell.drain(milliseconds(config.deadlines.drain_ms));
  co_await ended.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  if (cell.status().cut) spdlog::warn("what still ran was cut at deadlines.drain_ms");
  if (probes == nullptr) co_return;
  constexpr milliseconds kLastBytes{2'000};
  probes->begin_drain();
  const bool written = co_await probes->drained(kLastBytes);
  if (written) co_return;
  probes->stop();
  co_await probes->drained(kLastBytes);
}

}  // namespace

int run_serve(const ClusterConfig& given) {
  Result<CellSetup> setup = make_cell_setup(given);
  if (!setup) return complain(setup.error());
  ClusterConfig config = setup->config;
  fmt::print("{}\n", describe(*setup));
  std::fflush(stdout);
  // A cell of threads is not started again: its requests would wait in vain.
  if (config.grid.embedded && config.grid.cells == 1) config.gateway.max_replays = 0;

  asio::io_context io(1);
  DrainOrder order(io);
  auto gateway = GatewayProcess::start(io, config, setup->fingerprint, order);
  if (!gateway) return complain(gateway.error());
  config.cell.gateways = {fmt::format("{}:{}", config.gateway.cell_host, (*gateway)->cell_port())};

  std::string failure;
  std::vector<std::unique_ptr<LocalCell>> cells;
  for (int i = 0; i < config.grid.cells; ++i) {
    ClusterConfig one = config;
    one.device = device_section_of_cell(config, i);
    one.cell.index = i;
    one.cell.id = fmt::format("{}-{}", given.cell.id.empty() ? host_name() : given.cell.id, i);
    auto metrics = std::make_unique<StartMetrics>((*gateway)->exporter(), one.cell.id);
    if (config.grid.embedded) {
      const auto epoch =
          static_cast<std::uint64_t>(std::chrono::duration_cast<milliseconds>(
                                         std::chrono::system_clock::now().time_since_epoch())
                                         .count());
      const auto on_failure = [&io, &order, &failure](const std::string& why) {
        asio::post(io, [&order, &failure, why] {
          if (failure.empty()) failure = why;
          order.give("a failed cell", milliseconds(0));
        });
      };
      cells.push_back(
          std::make_unique<ThreadedCell>(*setup, one.cell, epoch, std::move(metrics), on_failure));
    } else {
      auto file = RankConfigFile::write(one);
      if (!file) return complain(file.error());
      cells.push_back(std::make_unique<SupervisedCell>(
          one, std::move(*file),
          [shared = std::shared_ptr<StartMetrics>(std::move(metrics))](
              const SupervisorStatus& status) { shared->update(status); }));
    }
  }
  return serve_until_order(io, order, **gateway, config, cells, failure);
}

int run_gateway(const ClusterConfig& given) {
  ClusterConfig config = given;
  if (config.model.path.empty()) {
    return complain(invalid("model.path", "the gateway needs the model's tokenizer and template"));
  }
  if (config.model.served_name.empty()) {
    config.model.served_name =
        std::filesystem::path(config.model.path).lexically_normal().filename();
  }
  asio::io_context io(1);
  DrainOrder order(io);
  auto gateway = GatewayProcess::start(io, config, "", order);
  if (!gateway) return complain(gateway.error());
  spdlog::info("gateway: cells may dial {}:{}", config.gateway.cell_host, (*gateway)->cell_port());
  std::vector<std::unique_ptr<LocalCell>> none;
  return serve_until_order(io, order, **gateway, config, none, "");
}

int run_cell(const ClusterConfig& given) {
  if (given.cell.gateways.empty()) {
    return complain(invalid("cell.gateways", "name at least one gateway as host:port"));
  }
  Result<CellSetup> setup = make_cell_setup(given);
  if (!setup) return complain(setup.error());
  fmt::print("{}\n", describe(*setup));
  std::fflush(stdout);
  ClusterConfig config = setup->config;
  if (config.cell.id.empty()) config.cell.id = host_name() + "-0";
  auto file = RankConfigFile::write(config);
  if (!file) return complain(file.error());
  asio::io_context io(1);
  DrainOrder order(io);
  asio::steady_timer ended(io, asio::steady_timer::time_point::max());
  Exporter exporter({.model_name = config.model.served_name});
  StartMetrics metrics(exporter, config.cell.id);
  SupervisedCell cell(config, std::move(*file), [&](const SupervisorStatus& status) {
    metrics.update(status);
    if (status.phase == CellPhase::kStopped) asio::post(io, [&ended] { ended.cancel(); });
  });
  std::unique_ptr<net::HttpServer> probes;
  if (config.cell.health_port != 0) {
    auto started = serve_cell_probes(
        io, config, order, [&cell] { return cell.status(); },
        [&exporter] { return StartMetrics::render(exporter); });
    if (!started) return complain(started.error());
    probes = std::move(*started);
  }
  order.watch_signals();
  asio::co_spawn(io, end_on_order(order, cell, ended, probes.get(), config),
                 [&io](const std::exception_ptr&) { io.stop(); });
  cell.start();
  io.run();
  cell.stop();
  if (order.forced()) return kForced;
  return cell.status().cut ? 1 : 0;
}

}  // namespace millrace
