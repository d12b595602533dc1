// What the acceptor and the connections of one HttpServer share. Internal to net/http_*.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "net/http_config.h"
#include "net/http_router.h"

namespace millrace::net {

class HttpConnection;

struct HttpServerState {
  HttpServerState(boost::asio::any_io_executor ex, HttpServerConfig c, HttpRouter r)
      : executor(ex),
        accept_strand(boost::asio::make_strand(ex)),
        acceptor(accept_strand),
        config(std::move(c)),
        router(std::move(r)) {}

  boost::asio::any_io_executor executor;
  boost::asio::strand<boost::asio::any_io_executor> accept_strand;
  boost::asio::ip::tcp::acceptor acceptor;  // used only on accept_strand after start()
  const HttpServerConfig config;
  const HttpRouter router;
  std::uint16_t port = 0;

  std::atomic<bool> draining{false};
  std::atomic<bool> stopped{false};
  std::atomic<std::uint32_t> refusing{0};  // connections being told that the server is full
  std::atomic<std::size_t> body_bytes{0};  // of all requests now in memory

  std::mutex mutex;  // guards `connections`
  std::unordered_map<HttpConnection*, std::weak_ptr<HttpConnection>> connections;
};

// Wakes coroutines of one strand. A waiter checks its condition in a loop.
class Signal {
 public:
  explicit Signal(const boost::asio::any_io_executor& executor)
      : timer_(executor, boost::asio::steady_timer::time_point::max()) {}

  void notify() { timer_.cancel(); }
  boost::asio::awaitable<void> wait();
  // For a signal with a single waiter: moving the expiry would wake the others.
  boost::asio::awaitable<void> wait_for(std::chrono::milliseconds duration);

 private:
  boost::asio::steady_timer timer_;
};

// Calls a function on the strand unless disarmed in time, also when both happen at once.
class Deadline {
 public:
  explicit Deadline(const boost::asio::any_io_executor& executor)
      : state_(std::make_shared<State>(executor)) {}
  ~Deadline() { disarm(); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

  void arm(std::chrono::milliseconds duration, std::function<void()> expire);
  void disarm();

 private:
  struct State {
    explicit State(const boost::asio::any_io_executor& executor) : timer(executor) {}
    boost::asio::steady_timer timer;
    std::uint64_t generation = 0;  // a handler of an older arming does nothing
  };
  std::shared_ptr<State> state_;
};

}  // namespace millrace::net
