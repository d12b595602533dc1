#include "cli/drain_command.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>

#include "cli/bench_client.h"
#include "cli/drain_order.h"

namespace millrace {

namespace {

namespace asio = boost::asio;

Result<std::string> ask(const DrainCommand& command) {
  Result<cli::BenchTarget> target = cli::parse_target(command.url);
  if (!target) return target.error();
  const unsigned long port = std::stoul(target->port);  // parse_target: up to five digits
  if (port > 65'535) return invalid("url", fmt::format("{} is no port", port));
  Result<std::string> token = read_drain_token(static_cast<std::uint16_t>(port));
  if (!token) return token.error();
  target->api_key = std::move(*token);
  if (auto resolved = cli::resolve(*target); !resolved) return resolved.error();
  asio::io_context io(1);
  cli::BenchClient client(io.get_executor(), *target, std::chrono::seconds(command.timeout_s));
  Result<cli::HttpAnswer> answer = invalid("", "");
  asio::co_spawn(
      io,
      [&]() -> asio::awaitable<void> {
        std::string path = fmt::format("/drain?pause_ms={}", command.pause_ms);
        answer = co_await client.fetch(std::move(path), "{}");
      },
      asio::detached);
  io.run();
  if (!answer) return answer.error();
  if (answer->status != 200) {
    return Error{ErrorCode::kUnavailable, "url",
                 fmt::format("status {}: {}", answer->status, answer->body.substr(0, 200))};
  }
  return std::move(answer->body);
}

}  // namespace

int run_drain(const DrainCommand& command) {
  const Result<std::string> answer = ask(command);
  if (!answer) {
    fmt::print(stderr, "millrace: {}\n", answer.error().to_string());
    return 1;
  }
  if (answer->find("\"drained\"") != std::string::npos) return 0;
  fmt::print(stderr, "millrace: not all had finished when deadlines.drain_ms was over\n");
  return 1;
}

}  // namespace millrace
