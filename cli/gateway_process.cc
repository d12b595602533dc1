#include "cli/gateway_process.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "cli/http_metrics.h"
#include "config/version.h"
#include "net/psk_tls.h"

namespace millrace {

namespace {

using std::chrono::milliseconds;

net::GatewayConfig gateway_config(const ClusterConfig& c, const std::string& fingerprint) {
  net::GatewayConfig g;
  g.model_name = c.model.served_name;
  g.version = kVersion;
  g.cells.listen_address = c.gateway.cell_host;
  g.cells.port = static_cast<std::uint16_t>(c.gateway.cell_port);
  g.cells.model_fingerprint = fingerprint;
  g.cells.heartbeat_limit = milliseconds(c.deadlines.heartbeat_limit_ms);
  g.cells.progress_limit = milliseconds(c.deadlines.progress_limit_ms);
  g.cells.stall_limit = milliseconds(2 * c.deadlines.step_ms);
  g.max_queued_sequences = static_cast<std::uint32_t>(c.gateway.max_queued_requests);
  g.max_queued_tokens = static_cast<std::uint64_t>(c.gateway.max_queued_tokens);
  g.cell_queue_depth =
      std::min(g.cell_queue_depth, static_cast<std::uint32_t>(c.scheduler.max_waiting));
  g.queue_timeout = milliseconds(c.gateway.queue_timeout_ms);
  g.max_replays = static_cast<std::uint32_t>(c.gateway.max_replays);
  g.replay_timeout = milliseconds(c.gateway.replay_timeout_ms);
  g.stream_buffer_tokens = static_cast<std::uint32_t>(c.gateway.stream_buffer_tokens);
  return g;
}

// Where the cells of this configuration compute. `serve` has settled it; a gateway apart knows what
// is written there, and with auto each of its cells decides.
std::string_view backend_name(const ClusterConfig& c) {
  for (const auto& [name, choice] : enum_names(c.device.backend)) {
    if (choice == c.device.backend) return name;
  }
  return "";
}

net::HttpServerConfig http_config(const ClusterConfig& c) {
  net::HttpServerConfig h;
  h.address = c.gateway.host;
  h.port = static_cast<std::uint16_t>(c.gateway.port);
  h.limits.max_connections = static_cast<std::uint32_t>(c.gateway.max_connections);
  h.limits.max_body_bytes = static_cast<std::size_t>(c.gateway.max_body_bytes);
  h.limits.header_timeout = milliseconds(c.gateway.header_timeout_ms);
  h.limits.body_timeout = milliseconds(c.gateway.body_timeout_ms);
  h.limits.idle_timeout = milliseconds(c.gateway.idle_timeout_ms);
  h.limits.write_timeout = milliseconds(c.gateway.write_timeout_ms);
  h.cors.allowed_origins = c.gateway.cors_origins;
  return h;
}

net::ApiConfig api_config(const ClusterConfig& c, const ModelConfig& model,
                          const net::SamplingDefaults& defaults, const std::string& fingerprint,
                          std::vector<std::string> keys) {
  net::ApiConfig a;
  a.defaults = defaults;
  a.system_fingerprint = fingerprint.empty() ? "" : "mr_" + fingerprint.substr(0, 12);
  a.http = http_config(c);
  a.model_names = {c.model.served_name};
  a.limits.max_n = static_cast<std::uint32_t>(c.gateway.max_n);
  a.limits.vocab_size = model.vocab_size;
  a.limits.max_context = static_cast<std::uint32_t>(c.cache.max_context_tokens);
  a.eos_token_ids = model.eos_token_ids;
  a.api_keys = std::move(keys);
  a.guard_metrics = c.gateway.guard_metrics;
  a.overload_as_429 = c.gateway.overload_status == OverloadStatus::k429;
  a.keep_alive = milliseconds(c.gateway.sse_keepalive_ms);
  return a;
}

}  // namespace

GatewayProcess::GatewayProcess(TextModel text, const std::string& model_name)
    : text_(std::move(text)), exporter_(ExporterConfig{.model_name = model_name}) {}

Result<std::unique_ptr<GatewayProcess>> GatewayProcess::start(boost::asio::io_context& io,
                                                              const ClusterConfig& config,
                                                              std::string fingerprint,
                                                              DrainOrder& order) {
  Result<ModelConfig> model = load_model_config(config.model.path);
  if (!model) return model.error();
  Result<TextModel> text = load_text_model(config.model.path);
  if (!text) return text.error();
  if (text->tokenizer.vocab_size() > model->vocab_size) {
    return invalid("model.path",
                   fmt::format("the tokenizer has {} tokens, the model only {} embeddings",
                               text->tokenizer.vocab_size(), model->vocab_size));
  }
  Result<net::SamplingDefaults> defaults = load_sampling_defaults(config.model.path);
  if (!defaults) return defaults.error();
  Result<std::vector<std::string>> keys = load_api_keys(config.gateway);
  if (!keys) return keys.error();
  Result<std::string> secret =
      net::read_optional_secret(config.cell.secret_file, "cell.secret_file");
  if (!secret) return secret.error();

  std::unique_ptr<GatewayProcess> p(new GatewayProcess(std::move(*text), config.model.served_name));
  p->exporter_.gauge<Metric::kBuildInfo>(kVersion, backend_name(config)).set(1);
  p->observer_ = std::make_unique<HttpMetrics>(p->exporter_);
  net::GatewayConfig settings = gateway_config(config, fingerprint);
  settings.cells.secret = std::move(*secret);
  auto gateway = net::Gateway::start(io.get_executor(), std::move(settings), &p->exporter_);
  if (!gateway) return gateway.error();
  p->gateway_ = std::move(*gateway);
  p->asks_for_key_ = !keys->empty();
  const text::ChatTemplate* chat = p->text_.chat_template ? &*p->text_.chat_template : nullptr;
  Exporter* exporter = &p->exporter_;
  net::ApiConfig api = api_config(config, *model, *defaults, fingerprint, std::move(*keys));
  api.more_routes = [&order, process = p.get()](net::HttpRouter& router) {
    order.add_route(router, [process] { return process->drain_progress(); });
  };
  net::Gateway* source = p->gateway_.get();
  p->api_ = std::make_unique<net::ApiServer>(
      io.get_executor(), std::move(api), p->text_.tokenizer, chat, *p->gateway_, p->observer_.get(),
      [exporter] { return exporter->render(); }, [source] { return source->status_text(); });
  if (auto port = p->api_->start(); !port) {
    p->gateway_->stop();
    Error error = port.error();
    error.field = error.field == "address" ? "gateway.host" : "gateway.port";
    return error;
  }
  order.open(p->port());
  return p;
}

DrainProgress GatewayProcess::drain_progress() const {
  const net::EngineStatus status = gateway_->status();
  return {std::uint64_t{status.running} + status.queued, drained_, cut_};
}

boost::asio::awaitable<bool> GatewayProcess::drain(milliseconds limit, milliseconds pause) {
  api_->announce_drain();
  if (pause.count() > 0) {
    boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, pause);
    co_await timer.async_wait(boost::asio::use_awaitable);
  }
  api_->begin_drain();
  const bool streams = co_await gateway_->drain(limit);
  drained_ = true;
  cut_ = !streams;
  if (!streams) gateway_->stop();  // what is cut gets its error event while it has a connection
  constexpr milliseconds kLastBytes{2'000};  // answers that are made but not yet written
  const bool written = co_await api_->drained(kLastBytes);
  stop();
  if (!written) co_await api_->drained(kLastBytes);
  co_return streams;
}

void GatewayProcess::stop() {
  api_->stop();
  gateway_->stop();
}

}  // namespace millrace
