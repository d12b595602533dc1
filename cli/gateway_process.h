// The gateway's parts in one process: HTTP API, journal and queue, cell links, metrics.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>

#include "cli/text_model.h"
#include "config/cluster_config.h"
#include "config/model_config.h"
#include "config/result.h"
#include "monitoring/exporter.h"
#include "net/api_server.h"
#include "net/gateway.h"

namespace millrace {

class GatewayProcess {
 public:
  // Binds both ports. `fingerprint`: what cells must bring; empty lets the first cell decide. The
  // io_context runs everything and must outlive it; run it on one thread.
  static Result<std::unique_ptr<GatewayProcess>> start(boost::asio::io_context& io,
                                                       const ClusterConfig& config,
                                                       std::string fingerprint);

  std::uint16_t port() const { return api_->port(); }
  std::uint16_t cell_port() const { return gateway_->cell_port(); }
  net::Gateway& gateway() { return *gateway_; }

  // No new work, readiness false, streams finish, then everything is closed. True when all streams
  // ended by themselves within the limit.
  boost::asio::awaitable<bool> drain(std::chrono::milliseconds limit);
  void stop();

 private:
  GatewayProcess(TextModel text, const std::string& model_name);

  TextModel text_;
  Exporter exporter_;
  std::unique_ptr<net::Gateway> gateway_;
  std::unique_ptr<net::ApiObserver> observer_;
  std::unique_ptr<net::ApiServer> api_;
};

}  // namespace millrace
