#include "cli/top_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <csignal>
#include <optional>
#include <string_view>

#include "cli/bench_client.h"
#include "cli/terminal.h"
#include "cli/top_view.h"
#include "net/status_service.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using nlohmann::json;
using namespace std::chrono_literals;

constexpr auto kToken = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::seconds kPatience{5};    // for one answer
constexpr std::chrono::seconds kStandstill{5};  // of the gateway's clock, before it is said
constexpr int kUnauthorized = 401;
constexpr int kPrintedColumns = 100;  // where there is no terminal
constexpr std::string_view kUp = "\x1b[A", kDown = "\x1b[B", kPageUp = "\x1b[5~",
                           kPageDown = "\x1b[6~";

// Into `status`, as a Result cannot hold what converts from everything.
Result<void> parse_status(const cli::HttpAnswer& answer, json& status) {
  if (answer.status == kUnauthorized) {
    return invalid("api-key", "the gateway asks for a key that opens it: --api-key");
  }
  if (answer.status != 200) {
    return Error{ErrorCode::kUnavailable, "url",
                 fmt::format("/status.json answers with status {}", answer.status)};
  }
  status = json::parse(answer.body, nullptr, false);
  const auto format = status.is_object() ? status.find("format") : status.end();
  if (!status.is_object() || format == status.end() || *format != net::kStatusFormat) {
    return Error{ErrorCode::kUnavailable, "url",
                 fmt::format("/status.json is not {}: no gateway of Millrace, or one of another "
                             "version",
                             net::kStatusFormat)};
  }
  return {};
}

class Top {
 public:
  Top(const TopCommand& command, const cli::BenchTarget& target)
      : command_(command), client_(io_.get_executor(), target, kPatience) {
    style_.color = command.color;
    style_.unicode = cli::terminal_is_utf8();
  }

  int print_once() {
    spawn(look());
    if (!problem_.empty()) {
      fmt::print(stderr, "millrace: {}\n", problem_);
      return 1;
    }
    const bool terminal = isatty(STDOUT_FILENO) == 1;
    style_.color = style_.color && terminal;
    style_.width = terminal ? cli::terminal_size().columns : kPrintedColumns;
    const cli::TopFrame frame = cli::draw_status(*status_, command_.url, "", style_);
    for (const std::string& line : frame.head) fmt::print("{}\n", line);
    for (const std::string& line : frame.body) fmt::print("{}\n", line);
    return 0;
  }

  int run() {
    {
      cli::Terminal terminal;
      using namespace asio::experimental::awaitable_operators;
      spawn(watch() || keys(terminal.keys()) || signals());
    }
    if (!refused_) return 0;
    fmt::print(stderr, "millrace: {}\n", problem_);
    return 1;
  }

 private:
  template <class T>
  void spawn(asio::awaitable<T> work) {
    std::exception_ptr failure;
    asio::co_spawn(io_, std::move(work), [&](std::exception_ptr e, auto&&...) { failure = e; });
    io_.run();
    io_.restart();
    if (failure) std::rethrow_exception(failure);
  }

  // Asks once; afterwards either problem_ is empty and status_ new, or it says what is wrong.
  asio::awaitable<void> look() {
    const Result<cli::HttpAnswer> answer = co_await client_.fetch("/status.json", "");
    json status;
    const Result<void> parsed = answer ? parse_status(*answer, status) : answer.error();
    refused_ = answer && answer->status == kUnauthorized;
    if (!parsed) {
      problem_ = parsed.error().to_string();
      co_return;
    }
    const Clock::time_point now = Clock::now();
    const bool moved = !status_ || (*status_)["time_unix_s"] != status["time_unix_s"];
    if (moved) moved_at_ = now;
    seen_at_ = now;
    status_ = std::move(status);
    problem_.clear();
  }

  asio::awaitable<void> watch() {
    asio::steady_timer timer(io_);
    for (;;) {
      const Clock::time_point asked = Clock::now();
      co_await look();
      if (refused_) co_return;
      draw();
      timer.expires_at(asked + std::chrono::duration_cast<Clock::duration>(
                                   std::chrono::duration<double>(command_.interval_s)));
      co_await timer.async_wait(asio::use_awaitable);
    }
  }

  asio::awaitable<void> keys(int descriptor) {
    if (descriptor < 0) {
      asio::steady_timer never(io_, Clock::time_point::max());
      co_await never.async_wait(asio::use_awaitable);
      co_return;
    }
    asio::posix::stream_descriptor input(io_, dup(descriptor));  // closes its own
    char bytes[64];
    for (bool open = true; open;) {
      const auto [error, n] = co_await input.async_read_some(asio::buffer(bytes), kToken);
      open = !error && take_keys({bytes, n});
    }
  }

  asio::awaitable<void> signals() {
    asio::signal_set set(io_, SIGINT, SIGTERM, SIGHUP);
    set.add(SIGWINCH);
    for (;;) {
      const auto [error, number] = co_await set.async_wait(kToken);
      if (error || number != SIGWINCH) co_return;
      draw();
    }
  }

  // Whether to go on.
  bool take_keys(std::string_view keys) {
    const int page = std::max(1, room_ - 1);
    while (!keys.empty()) {
      const auto take = [&](std::string_view key) {
        if (!keys.starts_with(key)) return false;
        keys.remove_prefix(key.size());
        return true;
      };
      if (take("q") || take("Q")) return false;
      if (take(kUp) || take("k")) {
        scroll_ -= 1;
      } else if (take(kDown) || take("j")) {
        scroll_ += 1;
      } else if (take(kPageUp)) {
        scroll_ -= page;
      } else if (take(kPageDown) || take(" ")) {
        scroll_ += page;
      } else {
        keys.remove_prefix(1);
      }
    }
    draw();
    return true;
  }

  std::string notice() const {
    if (!problem_.empty()) {
      std::string text = problem_ + "; trying again";
      if (status_) {
        const auto age = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - seen_at_);
        text = fmt::format("Figures from {} s ago: {}", age.count(), text);
      }
      return text;
    }
    const auto still = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - moved_at_);
    if (still <= kStandstill) return "";
    return fmt::format("The gateway answers, but its figures have stood still for {} s",
                       still.count());
  }

  void draw() {
    const cli::TerminalSize size = cli::terminal_size();
    style_.width = size.columns;
    const cli::TopFrame frame = status_ ? cli::draw_status(*status_, command_.url, notice(), style_)
                                        : cli::draw_waiting(command_.url, notice(), style_);
    std::vector<std::string> lines(
        frame.head.begin(),
        frame.head.begin() + std::min<std::ptrdiff_t>(std::ssize(frame.head), size.rows));
    const int below = static_cast<int>(frame.body.size());
    room_ = size.rows - static_cast<int>(lines.size());
    scroll_ = std::clamp(scroll_, 0, std::max(0, below - room_));
    const int last = std::min(below, scroll_ + room_);
    for (int i = scroll_; i < last; ++i) lines.push_back(frame.body[static_cast<std::size_t>(i)]);
    if (room_ > 0 && last < below) {
      lines.back() = fmt::format("... {} more lines: arrows, space, q to leave", below - last + 1);
    }
    // A line is cleared before it is written: behind a full one the cursor stands on its last
    // character. No line feed follows the last line, or the screen would move.
    std::string out = "\x1b[H";
    for (std::size_t i = 0; i < lines.size(); ++i) {
      if (i > 0) out += "\r\n";
      out += "\x1b[2K" + lines[i];
    }
    // What a longer frame before this one left.
    for (int i = static_cast<int>(lines.size()); i < size.rows; ++i) out += "\r\n\x1b[2K";
    cli::Terminal::write(out);
  }

  const TopCommand& command_;
  asio::io_context io_{1};
  cli::BenchClient client_;
  cli::TopStyle style_;
  std::optional<json> status_;  // the newest good answer
  std::string problem_;         // of the newest look
  bool refused_ = false;
  Clock::time_point seen_at_{}, moved_at_{};
  int scroll_ = 0;  // lines of the body above the window
  int room_ = 1;    // lines of the body in it
};

}  // namespace

int run_top(const TopCommand& command) {
  Result<cli::BenchTarget> target = cli::parse_target(command.url);
  if (!target) {
    fmt::print(stderr, "millrace: {}\n", target.error().to_string());
    return 2;
  }
  target->api_key = command.api_key;
  if (auto resolved = cli::resolve(*target); !resolved) {
    fmt::print(stderr, "millrace: {}\n", resolved.error().to_string());
    return 1;
  }
  Top top(command, *target);
  return command.once || isatty(STDOUT_FILENO) == 0 ? top.print_once() : top.run();
}

}  // namespace millrace
