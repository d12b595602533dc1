#include "cli/bench_client.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/http.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>

#include "cli/bench_stream.h"

namespace millrace::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kToken = asio::as_tuple(asio::use_awaitable);
constexpr std::uint64_t kMaxAnswerBytes = 16ULL << 20;

Error network_error(const char* kind, const error_code& error) {
  if (error == beast::error::timeout) {
    return {ErrorCode::kDeadlineExceeded, "timeout", "no answer within the request's time"};
  }
  return {ErrorCode::kUnavailable, kind, error.message()};
}

// The message of an OpenAI error body, or the beginning of whatever else it is.
std::string body_message(const std::string& body) {
  const auto json = nlohmann::json::parse(body, nullptr, false);
  if (json.is_object() && json.contains("error") && json["error"].is_object()) {
    const auto& message = json["error"]["message"];
    if (message.is_string()) return message.get<std::string>();
  }
  return body.substr(0, 200);
}

void fail(RequestRecord& record, std::string kind, std::string detail) {
  record.failure = std::move(kind);
  record.detail = std::move(detail);
}

// Takes one event of the stream into the record.
void take_event(std::string_view data, BenchClock::time_point now, StreamProgress& progress,
                RequestRecord& record) {
  if (!record.ok()) return;
  const auto chunk = progress.chunk(data);
  if (!chunk) {
    const bool from_server = chunk.error().code == ErrorCode::kUnavailable;
    fail(record, from_server ? "stream error" : "protocol", chunk.error().message);
    return;
  }
  if (chunk->has_choice) record.end = now;
  if (chunk->tokens == 0) return;
  if (record.token_chunks == 0) {
    record.first_token = now;
  } else {
    record.gaps_ms.push_back(
        std::chrono::duration<double, std::milli>(now - record.last_token).count());
  }
  record.last_token = now;
  ++record.token_chunks;
}

}  // namespace

Result<BenchTarget> parse_target(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) {
    return invalid("url",
                   fmt::format("'{}' must begin with http:// (put a proxy before https)", url));
  }
  std::string rest = url.substr(kScheme.size());
  BenchTarget target;
  if (const std::size_t slash = rest.find('/'); slash != std::string::npos) {
    target.base_path = rest.substr(slash);
    rest.resize(slash);
  }
  while (target.base_path.ends_with('/')) target.base_path.pop_back();
  if (target.base_path.ends_with("/v1")) target.base_path.resize(target.base_path.size() - 3);
  const std::size_t bracket = rest.rfind(']');
  const std::size_t colon = rest.find(':', bracket == std::string::npos ? 0 : bracket);
  target.host = rest.substr(0, colon);
  target.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  if (target.host.starts_with('[') && target.host.ends_with(']')) {
    target.host = target.host.substr(1, target.host.size() - 2);
  }
  const bool digits = !target.port.empty() && target.port.size() <= 5 &&
                      target.port.find_first_not_of("0123456789") == std::string::npos;
  if (target.host.empty() || !digits) {
    return invalid("url", fmt::format("'{}' must be http://host:port", url));
  }
  return target;
}

Result<void> resolve(BenchTarget& target) {
  asio::io_context io(1);
  error_code error;
  target.addresses = asio::ip::tcp::resolver(io).resolve(target.host, target.port, error);
  if (!error) return {};
  return Error{ErrorCode::kUnavailable, "url",
               fmt::format("{}:{}: {}", target.host, target.port, error.message())};
}

BenchClient::BenchClient(asio::any_io_executor executor, const BenchTarget& target,
                         std::chrono::milliseconds timeout)
    : target_(target), timeout_(timeout), stream_(std::move(executor)) {}

BenchClient::Request BenchClient::make_request(std::string path, std::string body) const {
  const auto verb = body.empty() ? http::verb::get : http::verb::post;
  Request request(verb, target_.base_path + path, 11);
  request.set(http::field::host, target_.host);
  request.set(http::field::user_agent, "millrace-bench");
  if (!target_.api_key.empty()) {
    request.set(http::field::authorization, "Bearer " + target_.api_key);
  }
  if (!body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = std::move(body);
  request.prepare_payload();
  return request;
}

void BenchClient::close() {
  stream_.close();
  buffer_.clear();
  open_ = false;
}

asio::awaitable<Result<void>> BenchClient::connect() {
  close();
  error_code error;
  std::tie(error, std::ignore) = co_await stream_.async_connect(target_.addresses, kToken);
  if (error) co_return network_error("connect", error);
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), error);
  open_ = true;
  co_return Result<void>{};
}

asio::awaitable<Result<void>> BenchClient::send(const Request& request) {
  stream_.expires_after(timeout_);
  if (open_) {
    // A server may close an idle connection: then there are bytes or an end to read already.
    error_code error;
    char byte = 0;
    stream_.socket().non_blocking(true, error);
    stream_.socket().receive(asio::buffer(&byte, 1), asio::ip::tcp::socket::message_peek, error);
    if (error != asio::error::would_block) close();
  }
  if (!open_) {
    if (auto connected = co_await connect(); !connected) co_return connected.error();
  }
  error_code error;
  std::tie(error, std::ignore) = co_await http::async_write(stream_, request, kToken);
  if (error) {
    close();
    co_return network_error("connect", error);
  }
  co_return Result<void>{};
}

asio::awaitable<Result<HttpAnswer>> BenchClient::fetch(std::string path, std::string body) {
  const Request request = make_request(std::move(path), std::move(body));
  if (auto sent = co_await send(request); !sent) co_return sent.error();
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxAnswerBytes);
  error_code error;
  std::tie(error, std::ignore) = co_await http::async_read(stream_, buffer_, parser, kToken);
  if (error) {
    close();
    co_return network_error("protocol", error);
  }
  if (!parser.get().keep_alive()) close();
  co_return HttpAnswer{parser.get().result_int(), std::move(parser.get().body())};
}

asio::awaitable<RequestRecord> BenchClient::stream(std::string path, std::string body) {
  const Request request = make_request(std::move(path), std::move(body));
  RequestRecord record;
  record.sent = BenchClock::now();
  record.end = record.sent;
  if (auto sent = co_await send(request); !sent) {
    fail(record, sent.error().field, sent.error().message);
    record.end = BenchClock::now();
    co_return record;
  }

  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);  // bounded by the timeout and the size of one event
  error_code error;
  std::tie(error, std::ignore) = co_await http::async_read_header(stream_, buffer_, parser, kToken);
  SseParser events;
  StreamProgress progress;
  std::string error_body;
  char chunk[16384];
  const bool ok_status = !error && parser.get().result() == http::status::ok;
  while (!error && record.ok() && !parser.is_done()) {
    parser.get().body().data = chunk;
    parser.get().body().size = sizeof(chunk);
    std::tie(error, std::ignore) = co_await http::async_read_some(stream_, buffer_, parser, kToken);
    if (error == http::error::need_buffer) error = {};
    const std::string_view bytes(chunk, sizeof(chunk) - parser.get().body().size);
    const BenchClock::time_point now = BenchClock::now();
    if (!ok_status) {
      error_body.append(bytes.substr(0, 4096 - std::min<std::size_t>(4096, error_body.size())));
      continue;
    }
    const auto fed =
        events.feed(bytes, [&](std::string_view data) { take_event(data, now, progress, record); });
    if (!fed && record.ok()) fail(record, "protocol", fed.error().message);
  }

  if (record.token_chunks == 0 || !record.ok()) record.end = BenchClock::now();
  record.prompt_tokens = progress.prompt_tokens();
  record.output_tokens = progress.output_tokens();
  if (!record.ok()) {
    close();
  } else if (error) {
    const bool cut = error == http::error::partial_message || error == http::error::end_of_stream;
    const Error failure = network_error(cut ? "truncated" : "protocol", error);
    fail(record, failure.field, failure.message);
    close();
  } else if (!ok_status) {
    fail(record, fmt::format("http {}", parser.get().result_int()), body_message(error_body));
  } else if (!progress.finished()) {
    fail(record, "truncated", "the stream ended without finish_reason or [DONE]");
  } else if (record.token_chunks == 0) {
    fail(record, "empty", "the answer carried no token");
  }
  if (open_ && !parser.get().keep_alive()) close();
  co_return record;
}

}  // namespace millrace::cli
