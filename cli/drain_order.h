// The order to end without cutting what runs, by SIGINT, SIGTERM or POST /drain.
//
// POST /drain?pause_ms=N announces the end at once and takes new work for N ms more, so that load
// balancers take notice. Its answer ends when nothing runs any more, with a line
// {"status":"drained"}, or {"status":"cut"} when the time was over first. It needs a token, which
// lies in a file that only this process's user can read: who may send it SIGTERM may give the
// order, and nobody else, whatever proxies are in between. `millrace drain` reads the file.
//
// Everything runs on one io_context with one thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "config/result.h"
#include "net/api_auth.h"
#include "net/http_router.h"

namespace millrace {

struct DrainProgress {
  std::uint64_t running = 0;  // requests that are waited for
  bool done = false;
  bool cut = false;  // done, but not all had ended by themselves
};

class DrainOrder {
 public:
  explicit DrainOrder(boost::asio::io_context& io);
  // Removes the token's file. After an order SIGINT and SIGTERM are ignored from here on.
  ~DrainOrder();

  // A second SIGINT or SIGTERM stops the io_context without waiting for what runs: forced() is
  // then true, and the caller ends what it started and removes its files. A third kills the
  // process.
  void watch_signals();
  bool forced() const { return forced_; }
  // The first order counts. `by` is for the log.
  void give(std::string_view by, std::chrono::milliseconds pause);
  bool given() const { return given_; }
  // Until the order is given: the pause that it asks for.
  boost::asio::awaitable<std::chrono::milliseconds> wait();

  // Adds POST /drain, which refuses everybody until open() has made the token. `progress` is asked
  // on the io thread.
  void add_route(net::HttpRouter& router, std::function<DrainProgress()> progress);
  // Writes the token for the server at `port`. Without one, /drain stays closed and the log says
  // why; signals work all the same.
  void open(std::uint16_t port);

 private:
  void await_signal();
  boost::asio::awaitable<void> answer(net::HttpRequest& request, net::Responder& responder);

  boost::asio::io_context& io_;
  boost::asio::signal_set signals_;
  boost::asio::steady_timer given_timer_;  // cancelled by the order
  std::chrono::milliseconds pause_{0};
  bool given_ = false;
  bool signalled_ = false;
  bool forced_ = false;
  std::string token_file_;
  net::ApiKeys token_;
  std::function<DrainProgress()> progress_;
};

// The file with the token of the server at `port` of this machine.
std::string drain_token_file(std::uint16_t port);
Result<std::string> read_drain_token(std::uint16_t port);

}  // namespace millrace
