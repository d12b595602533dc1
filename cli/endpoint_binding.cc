#include "cli/endpoint_binding.h"

#include <stdexcept>

#include "net/psk_tls.h"

namespace millrace {

using std::chrono::milliseconds;

namespace {

// A gateway that is silent for this many heartbeat limits is gone. Longer than a gateway waits for
// a cell: a dead cell's requests hang until it is given up, whereas a gateway that was only kept
// from running loses all its requests when it is, and waiting for it costs steps that nobody reads.
constexpr int kGatewayPatience = 5;

}  // namespace

EndpointBinding::EndpointBinding(const CellSetup& setup, std::uint64_t epoch, std::string cell_id,
                                 std::vector<std::string> gateways)
    : setup_(setup), epoch_(epoch), cell_id_(std::move(cell_id)), gateways_(std::move(gateways)) {}

void EndpointBinding::bind(CoordinatorHooks& hooks) {
  hooks.cell.on_tokens = [this](std::vector<TokenEvent> events) {
    if (endpoint_) endpoint_->publish(std::move(events));
  };
  hooks.cell.on_prompt_logprobs = [this](PromptLogprobsEvent event) {
    if (endpoint_) endpoint_->publish(std::move(event));
  };
  hooks.on_transport = [this](const std::string& transport) { transport_ = transport; };
  hooks.on_ready = [this, before = hooks.on_ready](Cell& cell) {
    start(cell);
    if (before) before(cell);
  };
  hooks.on_ended = [this, before = hooks.on_ended] {
    if (before) before();
    stop();
  };
}

void EndpointBinding::start(Cell& cell) {
  net::CellEndpointConfig config;
  config.gateways = gateways_;
  config.lookup_interval = milliseconds(setup_.config.cell.gateway_lookup_ms);
  config.heartbeat_interval = milliseconds(setup_.config.deadlines.heartbeat_interval_ms);
  config.silence_limit =
      kGatewayPatience * milliseconds(setup_.config.deadlines.heartbeat_limit_ms);
  config.frame.write_deadline = config.silence_limit;
  Result<std::string> secret =
      net::read_optional_secret(setup_.config.cell.secret_file, "cell.secret_file");
  if (!secret) throw std::runtime_error(secret.error().to_string());
  config.secret = std::move(*secret);
  net::CellEndpointCallbacks callbacks;
  callbacks.submit = [&cell](SequenceRequest request) -> Result<void> {
    if (cell.submit(std::move(request))) return {};
    return Error{ErrorCode::kUnavailable, "", "the cell takes no more work"};
  };
  callbacks.cancel = [&cell](RequestId id) { cell.cancel(id); };
  callbacks.drain = [] {};  // of one gateway; others may go on
  callbacks.status = [&cell] { return cell.status(); };
  callbacks.telemetry = [&cell] { return cell.telemetry(); };
  CellInfo info = setup_.cell_info(epoch_);
  info.cell_id = cell_id_;
  info.transport = transport_;
  auto endpoint =
      net::CellEndpoint::create(std::move(info), std::move(config), std::move(callbacks));
  if (!endpoint) throw std::runtime_error(endpoint.error().to_string());
  endpoint_ = std::move(*endpoint);
  endpoint_->start();
}

void EndpointBinding::stop() {
  if (!endpoint_) return;
  endpoint_->stop("the cell ends");
  endpoint_.reset();
}

}  // namespace millrace
