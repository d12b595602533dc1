#include "cli/drain_order.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/rand.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "config/check.h"
#include "config/cluster_config.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr milliseconds kLook{50};  // between two looks at what still runs

std::string random_token() {
  unsigned char bytes[32];
  CHECK(RAND_bytes(bytes, sizeof bytes) == 1, "no random numbers");
  std::string hex;
  for (const unsigned char byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

// Never into a file that somebody else has put there.
Result<void> write_token(const std::string& path, const std::string& token) {
  ::unlink(path.c_str());  // of a process that was killed
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  bool ok = fd >= 0;
  ok = ok && ::write(fd, token.data(), token.size()) == static_cast<ssize_t>(token.size());
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (ok) return {};
  return Error{ErrorCode::kUnavailable, "", fmt::format("{}: {}", path, std::strerror(error))};
}

net::HttpResponse refusal(unsigned status, const std::string& message) {
  net::HttpResponse response;
  response.status = status;
  response.content_type = "text/plain; charset=utf-8";
  response.body = message + "\n";
  return response;
}

// Negative when it is no time that may be asked for.
milliseconds pause_of(const net::HttpRequest& request) {
  std::int64_t pause = 0;
  for (const auto& [name, value] : request.query) {
    if (name != "pause_ms") continue;
    const char* const last = value.data() + value.size();
    const auto [end, error] = std::from_chars(value.data(), last, pause);
    if (error != std::errc() || end != last) return milliseconds(-1);
  }
  const bool sane = pause >= 0 && pause <= static_cast<std::int64_t>(kMaxWaitMs);
  return milliseconds(sane ? pause : -1);
}

}  // namespace

std::string drain_token_file(std::uint16_t port) {
  return std::filesystem::temp_directory_path() / fmt::format("millrace-drain-{}", port);
}

Result<std::string> read_drain_token(std::uint16_t port) {
  const std::string path = drain_token_file(port);
  std::ifstream file(path);
  std::string token;
  if (file >> token) return token;
  return Error{ErrorCode::kNotFound, "url",
               fmt::format("{} cannot be read: drain as the server's user, on its machine and with "
                           "its TMPDIR",
                           path)};
}

DrainOrder::DrainOrder(asio::io_context& io)
    : io_(io), signals_(io), given_timer_(io, asio::steady_timer::time_point::max()) {}

DrainOrder::~DrainOrder() {
  if (!token_file_.empty()) ::unlink(token_file_.c_str());
  if (!given_ || forced_) return;
  // What was ordered has been done, and the process is about to end by itself: a SIGTERM that comes
  // now, as a kubelet's does right after the hook that drained, must not end it otherwise. Blocked
  // meanwhile, since without the set the default action is back.
  sigset_t both;
  sigemptyset(&both);
  sigaddset(&both, SIGINT);
  sigaddset(&both, SIGTERM);
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &both, &before);
  boost::system::error_code ignored;
  signals_.clear(ignored);
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void DrainOrder::watch_signals() {
  signals_.add(SIGINT);
  signals_.add(SIGTERM);
  await_signal();
}

void DrainOrder::await_signal() {
  signals_.async_wait([this](const boost::system::error_code& error, int number) {
    if (error) return;
    if (signalled_) {
      spdlog::warn("stopping without waiting for what runs");
      forced_ = true;
      signals_.clear();  // from here on the system's own way
      io_.stop();
      return;
    }
    signalled_ = true;
    give(number == SIGINT ? "interrupted" : "terminated", milliseconds(0));
    await_signal();
  });
}

void DrainOrder::give(std::string_view by, milliseconds pause) {
  if (given_) return;
  given_ = true;
  pause_ = pause;
  spdlog::info("{}: draining{}", by, signalled_ ? "; again to stop at once" : "");
  given_timer_.cancel();
}

asio::awaitable<milliseconds> DrainOrder::wait() {
  while (!given_) {
    boost::system::error_code ec;
    co_await given_timer_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
  co_return pause_;
}

void DrainOrder::add_route(net::HttpRouter& router, std::function<DrainProgress()> progress) {
  progress_ = std::move(progress);
  router.add("POST", "/drain", [this](net::HttpRequest& request, net::Responder& responder) {
    return answer(request, responder);
  });
}

void DrainOrder::open(std::uint16_t port) {
  const std::string token = random_token();
  const std::string path = drain_token_file(port);
  if (const Result<void> written = write_token(path, token); !written) {
    spdlog::warn("POST /drain is closed: {}", written.error().to_string());
    return;
  }
  token_file_ = path;
  token_ = net::ApiKeys({token});
}

asio::awaitable<void> DrainOrder::answer(net::HttpRequest& request, net::Responder& responder) {
  const milliseconds pause = pause_of(request);
  if (!token_.allows(request) || pause.count() < 0) {
    net::HttpResponse response =
        pause.count() < 0 ? refusal(400, "pause_ms: must be milliseconds, a day at most")
                          : refusal(403,
                                    "drain by `millrace drain`, as the server's user and on "
                                    "its machine");
    co_await responder.send(std::move(response));
    co_return;
  }
  give("POST /drain", pause);
  net::HttpResponse head;
  head.content_type = "application/x-ndjson";
  // The empty lines keep the connection, and show when the other side has gone.
  bool open = co_await responder.begin_stream(std::move(head), "\n", std::chrono::seconds(5));
  DrainProgress now = progress_();
  if (open) {
    open = co_await responder.write(
        fmt::format("{{\"status\":\"draining\",\"running\":{}}}\n", now.running));
  }
  asio::steady_timer timer(co_await asio::this_coro::executor);
  while (open && !now.done) {
    boost::system::error_code ec;
    timer.expires_after(kLook);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    open = !responder.gone();
    now = progress_();
  }
  const std::string end = now.cut ? "{\"status\":\"cut\"}\n" : "{\"status\":\"drained\"}\n";
  if (open) co_await responder.write(end);
}

}  // namespace millrace
