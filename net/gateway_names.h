// Which addresses stand behind the names of gateways. Each address is a gateway of its own (a
// headless Service's name has that of every gateway pod), so names are looked up again and again.
//
// A lookup that fails changes nothing: a resolver that is away must not cost a link, and a name
// that nobody knows yet is asked for again soon. Of a name with addresses of both families those of
// IPv4 count: they are the same gateways twice. Addresses written as such need no lookup.
//
// Lookups run on the io_context's own resolver thread; everything else on its io thread. A lookup
// on its way cannot be broken off: io_context::run() returns after its end, which the resolver's
// settings bound (resolv.conf: timeout, attempts).
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "config/cluster_config.h"
#include "config/result.h"

namespace millrace::net {

struct GatewayNamesConfig {
  std::vector<std::string> names;            // "host:port", "[::1]:port"
  std::chrono::milliseconds interval{5000};  // between two lookups of a name
  // Before the second lookup of a name that is not known; grows up to `interval`.
  std::chrono::milliseconds retry_min{100};
  std::size_t max_gateways = 256;  // of all names together; further addresses are left out
};

class GatewayNames : public std::enable_shared_from_this<GatewayNames> {
 public:
  // Address -> what logs call it.
  using Gateways = std::map<boost::asio::ip::tcp::endpoint, std::string>;

  // Checks the form of the names. `changed` gets all gateways that are known, on the io thread,
  // whenever they are others than before.
  static Result<std::shared_ptr<GatewayNames>> create(boost::asio::io_context& io,
                                                      GatewayNamesConfig config,
                                                      std::function<void(const Gateways&)> changed);

  // Both on the io thread (start() also before it runs). After stop() nothing is told any more.
  void start();
  void stop();

 private:
  using Endpoints = std::vector<boost::asio::ip::tcp::endpoint>;
  struct Name {
    Name(boost::asio::io_context& io, std::string text_in, HostPort at_in)
        : text(std::move(text_in)), at(std::move(at_in)), pause(io) {}
    std::string text;  // as configured
    HostPort at;
    bool literal = false;   // an address: never looked up
    Endpoints known;        // of the last lookup that succeeded
    std::string complaint;  // so that a repeated failure is logged once
    boost::asio::steady_timer pause;
  };

  GatewayNames(boost::asio::io_context& io, GatewayNamesConfig config,
               std::function<void(const Gateways&)> changed);
  boost::asio::awaitable<void> watch(Name& name);
  boost::asio::awaitable<bool> look_up(Name& name);
  void tell();

  boost::asio::io_context& io_;
  const GatewayNamesConfig config_;
  const std::function<void(const Gateways&)> changed_;
  std::vector<std::unique_ptr<Name>> names_;
  Gateways told_;
  bool stopping_ = false;
  bool crowded_ = false;  // max_gateways has been complained about
  std::minstd_rand random_{std::random_device{}()};
};

}  // namespace millrace::net
