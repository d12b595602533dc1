#include "net/gateway.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "net/gateway_core.h"

namespace millrace::net {

namespace asio = boost::asio;

struct Gateway::Impl {
  std::shared_ptr<GatewayCore> core;
  std::uint16_t port = 0;
};

Result<std::unique_ptr<Gateway>> Gateway::start(asio::any_io_executor executor,
                                                GatewayConfig config, Exporter* metrics) {
  if (config.max_queued_sequences == 0) {
    return invalid("gateway.max_queued_requests", "must be at least 1");
  }
  if (config.stream_buffer_tokens == 0) {
    return invalid("gateway.stream_buffer_tokens", "must be at least 1");
  }
  auto impl = std::make_shared<Impl>();
  impl->core =
      std::make_shared<GatewayCore>(asio::make_strand(executor), std::move(config), metrics);
  if (auto ok = impl->core->start(); !ok) return ok.error();
  impl->port = impl->core->links().port();
  return std::unique_ptr<Gateway>(new Gateway(std::move(impl)));
}

Gateway::Gateway(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Gateway::~Gateway() { stop(); }

Result<std::unique_ptr<GenerationStream>> Gateway::submit(GenerateRequest request) {
  return impl_->core->submit(std::move(request));
}

EngineStatus Gateway::status() const { return impl_->core->status(); }

std::shared_ptr<const std::string> Gateway::status_text() const {
  return impl_->core->status_text();
}

std::chrono::seconds Gateway::retry_after() const { return impl_->core->retry_after(); }

asio::awaitable<bool> Gateway::drain(std::chrono::milliseconds limit) {
  const auto core = impl_->core;
  core->begin_drain();
  co_return co_await asio::co_spawn(core->strand(), core->finish_drain(limit), asio::use_awaitable);
}

void Gateway::stop() {
  asio::post(impl_->core->strand(), [core = impl_->core] { core->stop(); });
}

std::uint16_t Gateway::cell_port() const { return impl_->port; }

// The core's coroutines hold their own reference: this object may go while they are under way. They
// are member coroutines because GCC 12 destroys a lambda with captures that stands inside a
// co_await expression once too often.
asio::awaitable<GatewayStats> Gateway::stats() const {
  const auto core = impl_->core;
  co_return co_await asio::co_spawn(core->strand(), core->stats_on_strand(), asio::use_awaitable);
}

asio::awaitable<std::vector<CellView>> Gateway::cells() const {
  const auto core = impl_->core;
  co_return co_await asio::co_spawn(core->strand(), core->cells_on_strand(), asio::use_awaitable);
}

}  // namespace millrace::net
