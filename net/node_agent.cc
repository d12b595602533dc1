#include "net/node_agent.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <set>

#include "net/node_agent_stream.h"
#include "net/psk_tls.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Connections that have not shown the secret yet. They must not take the places of those that have.
constexpr std::uint32_t kMaxStrangers = 32;
constexpr milliseconds kTick{20};  // how soon a daemon's output and end are seen

std::string what(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown";
  }
}

// One connection. `gone`: the leader is; `wake` tells the session's loop.
struct Session {
  Session(tcp::socket socket, PskTls& tls)
      : stream(std::make_shared<AgentStream>(std::move(socket), tls)), wake(stream->executor()) {}
  void leave(std::string reason) {
    if (gone) return;
    gone = true;
    why = std::move(reason);
    wake.cancel();
  }

  std::shared_ptr<AgentStream> stream;
  asio::steady_timer wake;
  bool gone = false;
  std::string why;
};
using SessionPtr = std::shared_ptr<Session>;

}  // namespace

struct NodeAgent::Impl : std::enable_shared_from_this<NodeAgent::Impl> {
  Impl(asio::io_context& context, NodeAgentOptions o, DaemonLauncher l)
      : io(context),
        options(std::move(o)),
        launcher(std::move(l)),
        tls(TlsRole::kServer, options.secret),
        acceptor(io) {}

  asio::awaitable<void> accept_loop();
  asio::awaitable<void> serve(SessionPtr session);
  asio::awaitable<std::optional<OrtedCommand>> admit(Session& session);
  asio::awaitable<void> refuse(Session& session, std::string reason);
  asio::awaitable<void> listen_to_leader(SessionPtr session);
  asio::awaitable<std::optional<int>> relay(Session& session, DaemonProcess& daemon);
  asio::awaitable<void> run(SessionPtr session, const OrtedCommand& command);

  asio::io_context& io;
  NodeAgentOptions options;
  DaemonLauncher launcher;
  PskTls tls;
  tcp::acceptor acceptor;
  std::set<SessionPtr> sessions;
  std::uint32_t strangers = 0;
  std::uint32_t running = 0;
  bool listening = true;
  bool closing = false;
  asio::thread_pool enders{2};  // where daemons are ended, which blocks
};

asio::awaitable<void> NodeAgent::Impl::accept_loop() {
  const auto self = shared_from_this();
  while (listening) {
    auto [error, socket] = co_await acceptor.async_accept(kAwaitTuple);
    if (!listening) break;
    if (error) {  // out of descriptors, or the peer left already
      spdlog::warn("node agent: accept: {}", error.message());
      asio::steady_timer pause(io, milliseconds(100));
      co_await pause.async_wait(kAwaitTuple);
      continue;
    }
    if (strangers >= kMaxStrangers) {
      spdlog::warn("node agent: {} connections without proof; one more is closed", strangers);
      continue;  // the socket closes itself
    }
    auto session = std::make_shared<Session>(std::move(socket), tls);
    sessions.insert(session);
    asio::co_spawn(io, serve(session), [self, session](const std::exception_ptr& failure) {
      self->sessions.erase(session);
      session->stream->close();
      if (failure) spdlog::error("node agent: a connection failed: {}", what(failure));
    });
  }
}

asio::awaitable<void> NodeAgent::Impl::refuse(Session& session, std::string reason) {
  spdlog::warn("node agent: {} is refused: {}", session.stream->peer(), reason);
  co_await session.stream->write(AgentMessageKind::kRefused, reason);
  // Wait for the peer to hang up first, or what it has not read yet may be lost.
  for (bool open = true; open;) {  // GCC 12 miscompiles "while (co_await ...)"
    const Result<AgentMessage> ignored = co_await session.stream->read();
    open = ignored.has_value();
  }
}

// Handshake and first message, both within the timeout. Nullopt: the connection is done for.
asio::awaitable<std::optional<OrtedCommand>> NodeAgent::Impl::admit(Session& session) {
  session.stream->expires_in(options.timeout);
  ++strangers;
  if (!co_await session.stream->speaks()) {
    --strangers;
    spdlog::debug("node agent: {} came and went", session.stream->peer());
    co_return std::nullopt;
  }
  const Result<void> proven = co_await session.stream->handshake(TlsRole::kServer);
  --strangers;
  if (!proven) {
    spdlog::warn("node agent: refused: {}", proven.error().to_string());
    co_return std::nullopt;
  }
  const Result<AgentMessage> first = co_await session.stream->read();
  if (!first) {
    spdlog::warn("node agent: {}", first.error().to_string());
    co_return std::nullopt;
  }
  if (first->kind != AgentMessageKind::kCommand) {
    co_await refuse(session, "the first message must be a command");
    co_return std::nullopt;
  }
  const auto words = decode_words(first->payload);
  auto command = words ? parse_orted_command(*words) : Result<OrtedCommand>(words.error());
  if (!command) {
    co_await refuse(session, command.error().to_string());
    co_return std::nullopt;
  }
  if (running >= options.max_connections) {
    co_await refuse(
        session, fmt::format("{} daemons run here already (node_agent.max_connections)", running));
    co_return std::nullopt;
  }
  co_return std::move(*command);
}

// Pings keep the connection; anything else, or its end, ends the daemon.
asio::awaitable<void> NodeAgent::Impl::listen_to_leader(SessionPtr session) {
  while (true) {
    session->stream->expires_in(options.timeout);
    const Result<AgentMessage> message = co_await session->stream->read();
    if (!message) {
      session->leave(message.error().to_string());
      co_return;
    }
    if (message->kind != AgentMessageKind::kPing) {
      session->leave("the leader sent something else than pings");
      co_return;
    }
  }
}

// Passes output and pings on until the daemon has ended (its status) or the leader is gone.
asio::awaitable<std::optional<int>> NodeAgent::Impl::relay(Session& session,
                                                           DaemonProcess& daemon) {
  std::array<char, 16'384> buffer;
  Clock::time_point last_sent = Clock::now();
  while (!session.gone) {
    const std::optional<int> status = daemon.poll_exit();  // before the read: nothing is missed
    const ssize_t n = read(daemon.output(), buffer.data(), buffer.size());
    if (n <= 0 && status) co_return status;
    const bool ping = n <= 0 && Clock::now() - last_sent > options.timeout / 4;
    if (n > 0 || ping) {
      const std::string_view bytes(buffer.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
      const auto sent = co_await session.stream->write(
          ping ? AgentMessageKind::kPing : AgentMessageKind::kOutput, bytes);
      if (!sent) session.leave(sent.error().to_string());
      last_sent = Clock::now();
    } else {
      session.wake.expires_after(kTick);
      co_await session.wake.async_wait(kAwaitTuple);
    }
  }
  co_return std::nullopt;
}

asio::awaitable<void> NodeAgent::Impl::run(SessionPtr session, const OrtedCommand& command) {
  auto launched = launcher(command);
  if (!launched) {
    co_await refuse(*session, launched.error().to_string());
    co_return;
  }
  const std::unique_ptr<DaemonProcess> daemon = std::move(*launched);
  ++running;
  spdlog::info("node agent: daemon {} for {} started", command.number(), session->stream->peer());
  asio::co_spawn(io, listen_to_leader(session), asio::detached);
  const std::optional<int> status = co_await relay(*session, *daemon);
  co_await asio::co_spawn(
      enders,
      [&daemon]() -> asio::awaitable<void> {
        daemon->end();
        co_return;
      },
      asio::use_awaitable);
  --running;
  if (status) {
    spdlog::info("node agent: daemon {} exited with status {}", command.number(), *status);
    co_await session->stream->write(AgentMessageKind::kExit, std::to_string(*status));
    session->stream->expires_in(options.timeout);
    while (!session->gone) {  // the leader hangs up first, or it might not read the status
      session->wake.expires_after(kTick);
      co_await session->wake.async_wait(kAwaitTuple);
    }
  } else {
    spdlog::info("node agent: daemon {} ended with all it started: {}", command.number(),
                 session->why);
  }
}

asio::awaitable<void> NodeAgent::Impl::serve(SessionPtr session) {
  const auto self = shared_from_this();
  const std::optional<OrtedCommand> command = co_await admit(*session);
  if (command && !closing) co_await run(session, *command);
}

NodeAgent::NodeAgent(asio::io_context& io, NodeAgentOptions options, DaemonLauncher launcher)
    : impl_(std::make_shared<Impl>(io, std::move(options), std::move(launcher))) {}

NodeAgent::~NodeAgent() = default;

Result<void> NodeAgent::listen() {
  const NodeAgentOptions& o = impl_->options;
  error_code error;
  const auto address = asio::ip::make_address(o.host, error);
  if (error) return invalid("node_agent.host", fmt::format("'{}' is not an IP address", o.host));
  const tcp::endpoint endpoint(address, o.port);
  impl_->acceptor.open(endpoint.protocol(), error);
  if (!error) impl_->acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) impl_->acceptor.bind(endpoint, error);
  if (!error) impl_->acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    return Error{ErrorCode::kUnavailable, "node_agent.port",
                 fmt::format("cannot listen on {}:{}: {}", o.host, o.port, error.message())};
  }
  asio::co_spawn(impl_->io, impl_->accept_loop(), asio::detached);
  return {};
}

std::uint16_t NodeAgent::port() const {
  error_code ignored;
  return impl_->acceptor.local_endpoint(ignored).port();
}

std::uint32_t NodeAgent::running() const { return impl_->running; }

void NodeAgent::stop_listening() {
  impl_->listening = false;
  error_code ignored;
  impl_->acceptor.close(ignored);
}

void NodeAgent::close() {
  if (impl_->closing) return;
  impl_->closing = true;
  stop_listening();
  for (const SessionPtr& session : impl_->sessions) {
    session->leave("the agent is stopping");
    session->stream->close();
  }
}

}  // namespace millrace::net
