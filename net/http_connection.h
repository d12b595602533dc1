// One client connection: reads requests one after the other, runs their handlers, writes answers.
// Everything runs on the connection's strand except the two marked methods. Internal to net/http_*.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <string>

#include "net/http_state.h"
#include "net/http_types.h"

namespace millrace::net {

class HttpConnection final : public Responder, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(boost::asio::ip::tcp::socket socket, std::shared_ptr<HttpServerState> state);
  ~HttpConnection() override;

  boost::asio::awaitable<void> run();
  boost::asio::awaitable<void> refuse();  // says that the server is full, and closes

  void drain();  // from any thread: close when idle, else after the current answer
  void close();  // from any thread: close now

  boost::asio::awaitable<bool> send(HttpResponse response) override;
  boost::asio::awaitable<bool> begin_stream(HttpResponse head, std::string idle_fill,
                                            std::chrono::milliseconds idle_interval) override;
  boost::asio::awaitable<bool> write(std::string bytes) override;
  bool gone() const override { return gone_; }
  void on_gone(std::function<void()> fn) override;
  bool started() const override { return started_; }

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  // http_connection.cc: from bytes to a handler. The bools say whether the connection goes on.
  boost::asio::awaitable<bool> wait_for_request();
  boost::asio::awaitable<bool> serve_one();
  boost::asio::awaitable<bool> read_header(Parser& parser);
  boost::asio::awaitable<bool> read_body(Parser& parser);
  boost::asio::awaitable<bool> answer_options(const HttpRouter::Match& match);
  boost::asio::awaitable<void> run_handler(const HttpHandler& handler);
  std::optional<HttpFailure> check_header(const Parser& parser, HttpRouter::Match& match);
  boost::asio::awaitable<bool> fail(HttpFailure failure, HttpHeaders headers = {});
  boost::asio::awaitable<bool> fail_parse(boost::system::error_code ec);
  boost::asio::awaitable<void> close_gracefully();
  void expire_reads(std::chrono::milliseconds duration);
  bool reserve_body(std::size_t bytes);

  // http_response.cc: from an answer to bytes.
  boost::asio::awaitable<bool> write_all(std::string_view bytes);
  boost::asio::awaitable<void> run_stream();
  boost::asio::awaitable<void> end_stream(bool complete);
  boost::asio::awaitable<void> watch_peer();
  boost::asio::awaitable<void> stop_watching();
  std::string format_head(const HttpResponse& response, bool chunked, std::size_t length);
  void add_cors(std::string& head) const;
  void set_gone();

  boost::asio::ip::tcp::socket socket_;
  std::shared_ptr<HttpServerState> state_;
  boost::beast::flat_buffer buffer_;
  Deadline read_deadline_;
  Deadline write_deadline_;

  // The connection.
  bool idle_ = false;
  bool timed_out_ = false;  // read_deadline_ expired
  bool linger_ = false;     // unread request bytes may still arrive: discard some before closing
  bool gone_ = false;

  // The current request.
  HttpRequest request_;
  bool http10_ = false;
  bool keep_alive_ = false;
  bool started_ = false;
  std::size_t reserved_body_ = 0;
  std::function<void()> on_gone_;

  // Watching the peer while a handler runs.
  bool watching_ = false;
  bool stop_watch_ = false;
  Signal watch_done_;

  // The stream being written.
  bool streaming_ = false;  // run_stream() is alive
  bool stream_closed_ = false;
  bool stream_complete_ = false;
  std::string unsent_;
  std::string idle_fill_;
  std::chrono::milliseconds idle_interval_{0};
  Signal stream_wake_;   // the writer waits: bytes, or the end
  Signal stream_space_;  // write() waits: room, or the end
};

}  // namespace millrace::net
