#include "cli/cell_probes.h"

#include <nlohmann/json.hpp>

#include "coordinator/cell_health.h"
#include "monitoring/exporter.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

net::HttpResponse answer(const SupervisorStatus& status, std::string_view good,
                         const std::string& why_not) {
  nlohmann::json body;
  body["status"] = why_not.empty() ? std::string(good) : "not_" + std::string(good);
  body["reason"] = why_not;
  body["phase"] = to_string(status.phase);
  body["epoch"] = status.epoch;
  body["restarts"] = status.restarts;
  body["loaded"] = status.ever_ready ? 1.0 : status.loaded;
  body["gateways"] = status.beat.gateways;
  body["sequences"] = status.beat.sequences;
  body["last_failure"] = status.last_failure;
  net::HttpResponse response;
  response.status = why_not.empty() ? 200 : 503;
  // Words of a peer or of mpirun may be in it, and need not be UTF-8.
  response.body = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return response;
}

using Judge = std::function<std::string(const SupervisorStatus&)>;

void add_probe(net::HttpRouter& router, const std::string& path, std::string good,
               const SupervisorFacts& facts, Judge why_not) {
  router.add("GET", path,
             [good = std::move(good), facts, why_not = std::move(why_not)](
                 net::HttpRequest&, net::Responder& responder) -> asio::awaitable<void> {
               const SupervisorStatus status = facts();
               net::HttpResponse response = answer(status, good, why_not(status));
               co_await responder.send(std::move(response));
             });
}

DrainProgress drain_progress(const SupervisorStatus& status) {
  return {status.beat.sequences, status.phase == CellPhase::kStopped, status.cut};
}

net::HttpServerConfig probe_server(const ClusterConfig& config) {
  net::HttpServerConfig http;
  http.address = config.cell.health_host;
  http.port = static_cast<std::uint16_t>(config.cell.health_port);
  http.limits.max_connections = 64;
  http.limits.max_body_bytes = 1024;
  http.limits.max_buffered_body_bytes = 64 * 1024;
  return http;
}

}  // namespace

Result<std::unique_ptr<net::HttpServer>> serve_cell_probes(asio::io_context& io,
                                                           const ClusterConfig& config,
                                                           DrainOrder& order, SupervisorFacts facts,
                                                           std::function<std::string()> metrics) {
  const milliseconds progress_limit(config.deadlines.progress_limit_ms);
  const Judge why_not_now = [progress_limit](const SupervisorStatus& status) {
    return why_not_ready(status, progress_limit);
  };
  net::HttpRouter router;
  add_probe(router, "/health", "ready", facts, why_not_now);
  add_probe(router, "/health/ready", "ready", facts, why_not_now);
  add_probe(router, "/health/started", "started", facts, why_not_started);
  add_probe(router, "/health/live", "live", facts, why_not_live);
  router.add("GET", "/metrics",
             [metrics = std::move(metrics)](net::HttpRequest&,
                                            net::Responder& responder) -> asio::awaitable<void> {
               net::HttpResponse response;
               response.content_type = Exporter::kContentType;
               response.body = metrics();
               co_await responder.send(std::move(response));
             });
  order.add_route(router, [facts] { return drain_progress(facts()); });
  auto server =
      std::make_unique<net::HttpServer>(io.get_executor(), probe_server(config), std::move(router));
  if (auto port = server->start(); !port) {
    Error error = port.error();
    error.field = error.field == "address" ? "cell.health_host" : "cell.health_port";
    return error;
  }
  order.open(server->port());
  return server;
}

}  // namespace millrace
