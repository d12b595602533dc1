// The gateway's parts in one process: HTTP API, journal and queue, cell links, metrics.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>

#include "cli/drain_order.h"
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
  // io_context runs everything; run it on one thread. It and `order`, which gets its route here,
  // outlive the object.
  static Result<std::unique_ptr<GatewayProcess>> start(boost::asio::io_context& io,
                                                       const ClusterConfig& config,
                                                       std::string fingerprint, DrainOrder& order);

  std::uint16_t port() const { return api_->port(); }
  std::uint16_t cell_port() const { return gateway_->cell_port(); }
  net::Gateway& gateway() { return *gateway_; }
  Exporter& exporter() { return exporter_; }
  bool has_chat_template() const { return text_.chat_template.has_value(); }
  bool asks_for_key() const { return asks_for_key_; }

  // Readiness false; no new work after `pause`; streams finish, then everything is closed. True
  // when all streams ended by themselves within the limit, which counts from the end of the pause.
  boost::asio::awaitable<bool> drain(std::chrono::milliseconds limit,
                                     std::chrono::milliseconds pause);
  void stop();

 private:
  GatewayProcess(TextModel text, const std::string& model_name);
  DrainProgress drain_progress() const;

  TextModel text_;
  Exporter exporter_;
  std::unique_ptr<net::Gateway> gateway_;
  std::unique_ptr<net::ApiObserver> observer_;
  std::unique_ptr<net::ApiServer> api_;
  bool asks_for_key_ = false;
  bool drained_ = false;
  bool cut_ = false;  // by the end of the limit
};

}  // namespace millrace
