// A blocking HTTP client on a raw socket, and a thread that runs an io_context: what the tests of
// the HTTP server and of the API need to act as a client, a rude one too.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <thread>

namespace millrace::net::testing {

class IoThread {
 public:
  explicit IoThread(int threads = 1) : work_(boost::asio::make_work_guard(io_)) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { io_.run(); });
  }
  ~IoThread() { join(); }
  void join() {
    work_.reset();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }
  boost::asio::io_context& io() { return io_; }

 private:
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;
};

inline bool wait_until(const std::function<bool()>& condition,
                       std::chrono::milliseconds limit = std::chrono::seconds(10)) {
  const auto due = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > due) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

using Answer = boost::beast::http::response<boost::beast::http::string_body>;

class Client {
 public:
  // `receive_buffer`: a small one makes a slow reader felt soon.
  explicit Client(std::uint16_t port, int receive_buffer = 0) : socket_(io_) {
    socket_.open(boost::asio::ip::tcp::v4());
    if (receive_buffer > 0) {
      socket_.set_option(boost::asio::socket_base::receive_buffer_size(receive_buffer));
    }
    socket_.connect({boost::asio::ip::make_address("127.0.0.1"), port});
    const timeval limit{20, 0};  // a test that hangs must end
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }

  void send(const std::string& bytes) { boost::asio::write(socket_, boost::asio::buffer(bytes)); }

  // Reads one answer; status 0 when the connection ended instead.
  Answer read(bool head = false) {
    boost::beast::http::response_parser<boost::beast::http::string_body> parser;
    parser.body_limit(1ull << 30);
    parser.skip(head);
    boost::system::error_code ec;
    boost::beast::http::read(socket_, buffer_, parser, ec);
    Answer answer = parser.release();
    if (ec) answer.result(0);
    last_error = ec;
    return answer;
  }

  Answer get(const std::string& path, const std::string& headers = {}) {
    send("GET " + path + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n");
    return read();
  }

  Answer post(const std::string& path, const std::string& body, const std::string& headers = {}) {
    send(post_text(path, body, headers));
    return read();
  }

  static std::string post_text(const std::string& path, const std::string& body,
                               const std::string& headers = {}) {
    return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }

  // Some bytes, or "" at the end.
  std::string read_some() {
    std::string bytes(65536, '\0');
    boost::system::error_code ec;
    bytes.resize(socket_.read_some(boost::asio::buffer(bytes), ec));
    last_error = ec;
    return bytes;
  }

  // Whether the server has closed the connection (waits for it).
  bool at_end() {
    while (!read_some().empty()) {
    }
    return last_error == boost::asio::error::eof ||
           last_error == boost::asio::error::connection_reset;
  }

  void close() { socket_.close(); }
  // Ends the connection with a reset instead of a FIN.
  void reset() {
    socket_.set_option(boost::asio::socket_base::linger(true, 0));
    socket_.close();
  }

  boost::system::error_code last_error;

 private:
  boost::asio::io_context io_;
  boost::asio::ip::tcp::socket socket_;
  boost::beast::flat_buffer buffer_;
};

}  // namespace millrace::net::testing
