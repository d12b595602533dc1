#include "net/gateway_names.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace millrace::net {

namespace asio = boost::asio;
using asio::ip::tcp;
using std::chrono::milliseconds;

GatewayNames::GatewayNames(asio::io_context& io, GatewayNamesConfig config,
                           std::function<void(const Gateways&)> changed)
    : io_(io), config_(std::move(config)), changed_(std::move(changed)) {}

Result<std::shared_ptr<GatewayNames>> GatewayNames::create(
    asio::io_context& io, GatewayNamesConfig config, std::function<void(const Gateways&)> changed) {
  if (config.names.empty()) {
    return invalid("cell.gateways", "name at least one gateway as host:port");
  }
  std::shared_ptr<GatewayNames> made(new GatewayNames(io, std::move(config), std::move(changed)));
  for (const std::string& text : made->config_.names) {
    Result<HostPort> at = parse_host_port(text, "cell.gateways");
    if (!at) return at.error();
    auto name = std::make_unique<Name>(io, text, std::move(*at));
    boost::system::error_code ec;
    const auto address = asio::ip::make_address(name->at.host, ec);
    name->literal = !ec;
    if (name->literal) name->known = {{address, name->at.port}};
    made->names_.push_back(std::move(name));
  }
  return made;
}

void GatewayNames::start() {
  for (const auto& name : names_) {
    if (!name->literal) asio::co_spawn(io_, watch(*name), asio::detached);
  }
  asio::post(io_, [self = shared_from_this()] { self->tell(); });  // the literal ones
}

void GatewayNames::stop() {
  stopping_ = true;
  for (const auto& name : names_) name->pause.cancel();
}

asio::awaitable<void> GatewayNames::watch(Name& name) {
  const auto self = shared_from_this();
  milliseconds retry = std::min(config_.retry_min, config_.interval);
  while (!stopping_) {
    const bool found = co_await look_up(name);
    if (stopping_) co_return;
    if (found) tell();
    if (stopping_) co_return;
    // Once known, a name has the whole interval: its links live on whatever the resolver says.
    const milliseconds longest = name.known.empty() ? retry : config_.interval;
    retry = std::min(retry * 2, config_.interval);
    // Three quarters to whole, so that many cells do not ask at the same moment.
    name.pause.expires_after(milliseconds(std::uniform_int_distribution<std::int64_t>(
        longest.count() * 3 / 4, longest.count())(random_)));
    boost::system::error_code ec;
    co_await name.pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
}

asio::awaitable<bool> GatewayNames::look_up(Name& name) {
  boost::system::error_code ec;
  tcp::resolver resolver(io_);
  const auto found = co_await resolver.async_resolve(
      name.at.host, std::to_string(name.at.port),
      tcp::resolver::address_configured | tcp::resolver::numeric_service,
      asio::redirect_error(asio::use_awaitable, ec));
  if (stopping_) co_return false;
  if (ec) {
    if (ec.message() != name.complaint) {
      spdlog::warn("gateways {}: the name cannot be resolved: {}; trying again", name.text,
                   ec.message());
    }
    name.complaint = ec.message();
    co_return false;
  }
  Endpoints v4;
  Endpoints v6;
  for (const auto& entry : found) {
    (entry.endpoint().address().is_v4() ? v4 : v6).push_back(entry.endpoint());
  }
  name.known = v4.empty() ? std::move(v6) : std::move(v4);
  std::ranges::sort(name.known);  // resolvers turn the order; max_gateways must not
  name.complaint.clear();
  co_return true;
}

void GatewayNames::tell() {
  Gateways all;
  std::size_t left_out = 0;
  for (const auto& name : names_) {
    for (const tcp::endpoint& at : name->known) {
      if (all.contains(at)) continue;
      if (all.size() >= config_.max_gateways) {
        ++left_out;
        continue;
      }
      all[at] =
          name->literal ? name->text : fmt::format("{} ({})", name->text, at.address().to_string());
    }
  }
  if (left_out > 0 && !crowded_) {
    spdlog::warn("cell.gateways: {} addresses beyond {} are left out", left_out,
                 config_.max_gateways);
  }
  crowded_ = left_out > 0;
  if (all == told_ || stopping_) return;
  told_ = std::move(all);
  changed_(told_);
}

}  // namespace millrace::net
