#include "net/node_agent_client.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>
#include <memory>

#include "net/node_agent_stream.h"
#include "net/psk_tls.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

// The part of a call that the limit on connecting covers as a whole.
asio::awaitable<Result<tcp::socket>> connect(const NodeAgentCall& call) {
  const auto executor = co_await asio::this_coro::executor;
  auto resolver = std::make_shared<tcp::resolver>(executor);
  auto socket = std::make_shared<tcp::socket>(executor);
  const auto expired = std::make_shared<bool>(false);
  asio::steady_timer limit(executor, call.timeout);
  limit.async_wait([resolver, socket, expired](const boost::system::error_code& error) {
    if (error) return;
    *expired = true;
    resolver->cancel();
    boost::system::error_code ignored;
    socket->close(ignored);
  });
  const auto failure = [&](const boost::system::error_code& error) {
    return Error{ErrorCode::kUnavailable, "",
                 fmt::format("{}:{}: {}: is millrace node-agent running there?", call.host,
                             call.port, *expired ? "no answer in time" : error.message())};
  };
  const auto [resolve_error, endpoints] =
      co_await resolver->async_resolve(call.host, std::to_string(call.port), kAwaitTuple);
  if (resolve_error || *expired) co_return failure(resolve_error);
  const auto [error, endpoint] = co_await asio::async_connect(*socket, endpoints, kAwaitTuple);
  if (error || *expired) co_return failure(error);
  limit.cancel();
  co_return std::move(*socket);
}

// Until its stream is closed.
asio::awaitable<void> keep_pinging(std::shared_ptr<AgentStream> stream,
                                   std::shared_ptr<asio::steady_timer> timer,
                                   std::chrono::milliseconds interval) {
  while (true) {
    timer->expires_after(interval);
    const auto [error] = co_await timer->async_wait(kAwaitTuple);
    if (error) co_return;
    const Result<void> sent = co_await stream->write(AgentMessageKind::kPing, "");
    if (!sent) co_return;
  }
}

Result<int> parse_status(const std::string& payload) {
  int status = 0;
  const auto [end, error] =
      std::from_chars(payload.data(), payload.data() + payload.size(), status);
  if (error != std::errc{} || end != payload.data() + payload.size()) {
    return Error{ErrorCode::kUnavailable, "", "the agent sent a status that is no number"};
  }
  return status;
}

asio::awaitable<Result<int>> follow(AgentStream& stream, const NodeAgentCall& call,
                                    const std::function<void(std::string_view)>& on_output) {
  while (true) {
    stream.expires_in(call.timeout);
    const Result<AgentMessage> message = co_await stream.read();
    if (!message) co_return message.error();
    switch (message->kind) {
      case AgentMessageKind::kOutput:
        on_output(message->payload);
        break;
      case AgentMessageKind::kExit:
        co_return parse_status(message->payload);
      case AgentMessageKind::kRefused:
        co_return Error{ErrorCode::kInvalidArgument, "",
                        fmt::format("{} refused: {}", stream.peer(), message->payload)};
      case AgentMessageKind::kPing:
        break;
      case AgentMessageKind::kCommand:
        co_return Error{ErrorCode::kUnavailable, "", "the agent sent a command"};
    }
  }
}

asio::awaitable<Result<int>> perform(const NodeAgentCall& call, PskTls& tls,
                                     const std::function<void(std::string_view)>& on_output) {
  const std::string words = encode_words(call.command);
  if (words.size() > kMaxAgentMessageBytes) co_return invalid("", "the command is too long");
  auto socket = co_await connect(call);
  if (!socket) co_return socket.error();
  const auto stream = std::make_shared<AgentStream>(std::move(*socket), tls);
  stream->expires_in(call.timeout);
  if (const auto proven = co_await stream->handshake(TlsRole::kClient); !proven) {
    co_return proven.error();
  }
  if (const auto sent = co_await stream->write(AgentMessageKind::kCommand, words); !sent) {
    co_return sent.error();
  }
  const auto timer = std::make_shared<asio::steady_timer>(stream->executor());
  asio::co_spawn(stream->executor(), keep_pinging(stream, timer, call.timeout / 4), asio::detached);
  Result<int> result = co_await follow(*stream, call, on_output);
  timer->cancel();
  stream->close();
  co_return result;
}

}  // namespace

Result<int> call_node_agent(const NodeAgentCall& call,
                            const std::function<void(std::string_view)>& on_output) {
  PskTls tls(TlsRole::kClient, call.secret);
  Result<int> result = Error{ErrorCode::kInternal, "", "the call did not finish"};
  asio::io_context io(1);
  asio::co_spawn(io, perform(call, tls, on_output),
                 [&result, &io](const std::exception_ptr& failure, Result<int> value) {
                   io.stop();
                   if (failure) std::rethrow_exception(failure);
                   result = std::move(value);
                 });
  io.run();
  return result;
}

}  // namespace millrace::net
