// What `millrace cell` answers over HTTP: probes (coordinator/cell_health.h) and the order to
// drain.
//
// GET /health/started, /health/ready (also /health) and /health/live say 200 or 503, with a JSON
// object that names the reason; POST /drain is that of cli/drain_order.h. GET /metrics is
// Prometheus' text of cli/start_metrics.h.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>

#include "cli/drain_order.h"
#include "config/cluster_config.h"
#include "config/result.h"
#include "coordinator/supervisor.h"
#include "net/http_server.h"

namespace millrace {

using SupervisorFacts = std::function<SupervisorStatus()>;

// Listens at cell.health_host and cell.health_port. `facts` and `metrics` are asked on the io
// thread; they and `order` outlive the server.
Result<std::unique_ptr<net::HttpServer>> serve_cell_probes(boost::asio::io_context& io,
                                                           const ClusterConfig& config,
                                                           DrainOrder& order, SupervisorFacts facts,
                                                           std::function<std::string()> metrics);

}  // namespace millrace
