#include "net/cell_link.h"

#include <openssl/crypto.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <map>
#include <set>
#include <utility>

#include "config/check.h"
#include "net/codec.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// A peer that has not shown the secret may not make us hold more than this.
constexpr std::uint32_t kHelloBytes = 64U << 10;
constexpr std::size_t kMaxIdBytes = 256;
// Epochs remembered of cells that are not connected, so that an old one cannot return. Bounded
// because names may change from start to start.
constexpr std::size_t kMaxKnownCells = 1024;

bool same_secret(const std::string& a, const std::string& b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

milliseconds between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration_cast<milliseconds>(to - from);
}
milliseconds since(Clock::time_point t) { return between(t, Clock::now()); }

}  // namespace

std::string_view to_string(CellState state) {
  switch (state) {
    case CellState::kJoining:
      return "joining";
    case CellState::kHealthy:
      return "healthy";
    case CellState::kSuspect:
      return "suspect";
    case CellState::kDraining:
      return "draining";
    case CellState::kGone:
      return "gone";
  }
  return "unknown";
}

struct CellLinks::Impl : std::enable_shared_from_this<Impl> {
  struct Session {
    std::shared_ptr<FrameConnection> connection;
    CellInfo info;
    Assignment self;
    CellState state = CellState::kJoining;
    std::string reason = "no heartbeat yet";
    CellStatus status;
    std::uint64_t heartbeats = 0;
    Clock::time_point heard = Clock::now();
    Clock::time_point progressed = Clock::now();
    bool goodbye = false;
    // Reused from frame to frame.
    std::vector<TokenEvent> events;
    Bytes scratch;

    bool busy() const { return status.running + status.waiting > 0; }
  };
  using SessionPtr = std::shared_ptr<Session>;

  Impl(Strand strand_in, CellLinkConfig config_in, CellObserver& observer_in)
      : strand(std::move(strand_in)),
        config(std::move(config_in)),
        observer(&observer_in),
        acceptor(strand),
        tick_timer(strand) {}

  asio::awaitable<void> accept_loop();
  asio::awaitable<void> serve(tcp::socket socket);
  asio::awaitable<SessionPtr> admit(std::shared_ptr<FrameConnection> connection);
  Result<void> vet(const Hello& hello) const;
  void join(const SessionPtr& session);
  Result<void> handle(Session& session, const Frame& frame);
  void remember_epoch(const CellInfo& info);
  void on_heartbeat(Session& session, const CellStatus& status);
  asio::awaitable<void> tick_loop();
  void judge(Session& session, Clock::time_point now);
  void set_state(Session& session, CellState state, std::string reason);
  void end(const SessionPtr& session, const std::string& reason);
  CellView view(const Session& session) const;
  Session* find(const Assignment& at);

  Strand strand;
  CellLinkConfig config;
  CellObserver* observer;  // null after close()
  tcp::acceptor acceptor;
  asio::steady_timer tick_timer;
  std::uint16_t bound_port = 0;
  bool closed = false;
  std::string fingerprint;  // of the first cell, when none is configured
  std::map<std::string, SessionPtr> sessions;
  std::map<std::string, std::uint64_t> epochs;          // highest seen
  std::set<std::shared_ptr<FrameConnection>> greeting;  // before their Hello
  CellLinkStats stats;
};

asio::awaitable<void> CellLinks::Impl::accept_loop() {
  const auto self = shared_from_this();
  while (!closed) {
    boost::system::error_code ec;
    tcp::socket socket(strand);
    co_await acceptor.async_accept(socket, asio::redirect_error(asio::use_awaitable, ec));
    if (closed) co_return;
    if (ec) {
      // Out of descriptors, say: going on at once would spin.
      spdlog::warn("cells: accepting failed: {}", ec.message());
      asio::steady_timer pause(strand, milliseconds(100));
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
      continue;
    }
    if (greeting.size() >= config.max_cells) {
      spdlog::warn("cells: {} peers have not said Hello yet; a further one is turned away",
                   greeting.size());
      continue;
    }
    asio::co_spawn(strand, serve(std::move(socket)), asio::detached);
  }
}

asio::awaitable<void> CellLinks::Impl::serve(tcp::socket socket) {
  const auto self = shared_from_this();
  const auto connection = FrameConnection::create(std::move(socket), config.frame);
  connection->set_max_payload(kHelloBytes);
  connection->start();
  greeting.insert(connection);
  const SessionPtr session = co_await admit(connection);
  greeting.erase(connection);
  if (!session) co_return;
  connection->set_max_payload(config.frame.max_payload_bytes);
  join(session);
  while (connection->is_open()) {
    const Result<Frame> frame = co_await connection->read(config.heartbeat_limit);
    if (!frame) {
      // A closed socket is not the frame's fault; a malformed frame is.
      if (frame.error().code == ErrorCode::kInvalidArgument) ++stats.bad_frames;
      break;
    }
    if (closed) break;  // what is queued for the cell is still written
    session->heard = Clock::now();
    if (auto ok = handle(*session, *frame); !ok) {
      ++stats.bad_frames;
      connection->close(
          fmt::format("{} was malformed: {}", to_string(frame->kind), ok.error().to_string()));
    }
    if (session->goodbye) connection->close("the cell said goodbye");
  }
  end(session, connection->close_reason());
}

asio::awaitable<CellLinks::Impl::SessionPtr> CellLinks::Impl::admit(
    std::shared_ptr<FrameConnection> connection) {
  const Result<Frame> frame = co_await connection->read(config.hello_deadline);
  if (!frame || closed) {
    if (!frame && frame.error().code == ErrorCode::kInvalidArgument) ++stats.bad_frames;
    spdlog::warn("cells: {} did not become a cell: {}", connection->peer(),
                 connection->close_reason());
    connection->close("closed");
    co_return nullptr;
  }
  Hello hello;
  Result<void> ok = invalid("Hello", fmt::format("expected, got {}", to_string(frame->kind)));
  if (frame->kind == MessageKind::kHello) ok = decode(frame->payload, hello);
  if (ok && frame->epoch != hello.info.epoch) {
    ok = invalid("Hello.epoch", "differs from its frame's epoch");
  }
  if (!ok) {
    ++stats.bad_frames;
  } else {
    ok = vet(hello);
  }
  if (!ok) {
    ++stats.refused;
    const std::string reason = ok.error().to_string();
    spdlog::warn("cells: {} ({}) refused: {}", connection->peer(), hello.info.cell_id, reason);
    Bytes bytes;
    encode(Notice{reason}, bytes);
    connection->send(MessageKind::kRefused, frame->epoch, bytes);
    connection->close_after_flush("refused: " + reason);
    co_return nullptr;
  }
  auto session = std::make_shared<Session>();
  session->connection = std::move(connection);
  session->info = std::move(hello.info);
  session->self = {session->info.cell_id, session->info.epoch};
  co_return session;
}

Result<void> CellLinks::Impl::vet(const Hello& hello) const {
  const CellInfo& info = hello.info;
  if (!same_secret(hello.secret, config.secret)) {
    return invalid("secret", "does not match the gateway's; give both the same one");
  }
  if (info.cell_id.empty() || info.cell_id.size() > kMaxIdBytes) {
    return invalid("cell_id", fmt::format("must have 1 to {} bytes", kMaxIdBytes));
  }
  if (info.epoch == 0) return invalid("epoch", "must be at least 1");
  if (info.max_sequences == 0) return invalid("max_sequences", "must be at least 1");
  if (info.max_context == 0) return invalid("max_context", "must be at least 1");
  const std::string& expected =
      config.model_fingerprint.empty() ? fingerprint : config.model_fingerprint;
  if (!expected.empty() && info.model_fingerprint != expected) {
    return invalid("model_fingerprint",
                   fmt::format("\"{}\" is not this gateway's \"{}\"; give both the same model",
                               info.model_fingerprint, expected));
  }
  const auto known = epochs.find(info.cell_id);
  const auto live = sessions.find(info.cell_id);
  if (known != epochs.end() && info.epoch < known->second) {
    return invalid("epoch", fmt::format("{} is older than {}, which was here already", info.epoch,
                                        known->second));
  }
  if (live != sessions.end() && info.epoch == live->second->info.epoch) {
    return invalid("epoch", fmt::format("{} of this cell is connected already; if that link is "
                                        "dead, it is given up soon",
                                        info.epoch));
  }
  if (live == sessions.end() && sessions.size() >= config.max_cells) {
    return Error{ErrorCode::kResourceExhausted, "max_cells",
                 fmt::format("{} cells are connected already", sessions.size())};
  }
  return {};
}

void CellLinks::Impl::join(const SessionPtr& session) {
  const std::string id = session->info.cell_id;
  if (const auto old = sessions.find(id); old != sessions.end()) {
    ++stats.replaced;
    const SessionPtr replaced = old->second;
    const std::string reason = fmt::format("replaced by epoch {}", session->info.epoch);
    replaced->goodbye = true;  // its end is known, not a loss
    replaced->connection->close(reason);
    end(replaced, reason);
  }
  ++stats.joined;
  remember_epoch(session->info);
  if (fingerprint.empty()) fingerprint = session->info.model_fingerprint;
  session->heard = session->progressed = Clock::now();
  sessions[id] = session;
  Bytes bytes;
  encode(Welcome{static_cast<std::uint32_t>(config.heartbeat_limit.count())}, bytes);
  session->connection->send(MessageKind::kWelcome, session->info.epoch, bytes);
  spdlog::info("cells: {} joined from {}: epoch {}, {} sequences, {} KV tokens, {} x {} ranks", id,
               session->connection->peer(), session->info.epoch, session->info.max_sequences,
               session->info.kv_tokens, session->info.stages, session->info.lanes);
  observer->on_cell_joined(session->info);
  observer->on_cell_changed(view(*session));
}

void CellLinks::Impl::remember_epoch(const CellInfo& info) {
  if (epochs.size() >= kMaxKnownCells && !epochs.contains(info.cell_id)) {
    const auto gone = std::ranges::find_if(
        epochs, [this](const auto& known) { return !sessions.contains(known.first); });
    if (gone != epochs.end()) epochs.erase(gone);
  }
  epochs[info.cell_id] = info.epoch;
}

Result<void> CellLinks::Impl::handle(Session& session, const Frame& frame) {
  if (frame.epoch != session.info.epoch) {
    ++stats.stale_frames;
    return {};
  }
  switch (frame.kind) {
    case MessageKind::kTokens: {
      if (auto ok = decode(frame.payload, session.events); !ok) return ok;
      observer->on_tokens(session.self, session.events);
      return {};
    }
    case MessageKind::kPromptLogprobs: {
      PromptLogprobsEvent event;
      if (auto ok = decode(frame.payload, event); !ok) return ok;
      observer->on_prompt_logprobs(session.self, std::move(event));
      return {};
    }
    case MessageKind::kHeartbeat: {
      CellStatus status;
      if (auto ok = decode(frame.payload, status); !ok) return ok;
      on_heartbeat(session, status);
      return {};
    }
    case MessageKind::kTelemetry: {
      CellTelemetry telemetry;
      if (auto ok = decode(frame.payload, telemetry); !ok) return ok;
      observer->on_telemetry(session.self, telemetry);
      return {};
    }
    case MessageKind::kGoodbye: {
      Notice notice;
      if (auto ok = decode(frame.payload, notice); !ok) return ok;
      spdlog::info("cells: {} says goodbye: {}", session.info.cell_id, notice.reason);
      session.goodbye = true;
      return {};
    }
    default:
      return invalid("frame.kind", fmt::format("{} is not for a gateway", to_string(frame.kind)));
  }
}

void CellLinks::Impl::on_heartbeat(Session& session, const CellStatus& status) {
  const bool was_idle = !session.busy();
  const bool stepped = status.steps != session.status.steps;
  session.status = status;
  if (stepped || was_idle || !session.busy()) session.progressed = Clock::now();
  ++session.heartbeats;
  judge(session, Clock::now());
  observer->on_cell_changed(view(session));
  // Last: a cell that drains takes the answer as our word that no work follows it.
  session.connection->send(MessageKind::kHeartbeatAck, session.info.epoch, {});
}

// Health by what has arrived; see the header.
void CellLinks::Impl::judge(Session& session, Clock::time_point now) {
  if (session.heartbeats == 0) return;  // it is joining
  const milliseconds silence = between(session.heard, now);
  const milliseconds stall = session.busy() ? between(session.progressed, now) : milliseconds(0);
  if (stall > config.stall_limit) {
    session.connection->close(
        fmt::format("it has work and finished no step for {} ms", stall.count()));
  } else if (silence * 2 > config.heartbeat_limit) {
    set_state(session, CellState::kSuspect, fmt::format("silent for {} ms", silence.count()));
  } else if (stall > config.progress_limit) {
    set_state(session, CellState::kSuspect, fmt::format("no step for {} s", stall.count() / 1000));
  } else if (session.status.draining) {
    set_state(session, CellState::kDraining, "draining");
  } else {
    set_state(session, CellState::kHealthy, "");
  }
}

void CellLinks::Impl::set_state(Session& session, CellState state, std::string reason) {
  const bool changed = session.state != state;
  session.state = state;
  session.reason = std::move(reason);
  if (!changed) return;
  spdlog::info("cells: {} is {}{}{}", session.info.cell_id, to_string(state),
               session.reason.empty() ? "" : ": ", session.reason);
  observer->on_cell_changed(view(session));
}

asio::awaitable<void> CellLinks::Impl::tick_loop() {
  const auto self = shared_from_this();
  const milliseconds period =
      std::clamp(config.heartbeat_limit / 10, milliseconds(5), milliseconds(250));
  while (!closed) {
    boost::system::error_code ec;
    tick_timer.expires_after(period);
    co_await tick_timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    if (closed) co_return;
    // As of when the tick was due: had this thread been kept from running, what the cells sent
    // since would still wait to be read.
    for (const auto& [id, session] : sessions) judge(*session, tick_timer.expiry());
  }
}

// The session's connection is closed; tells the observer once.
void CellLinks::Impl::end(const SessionPtr& session, const std::string& reason) {
  const auto it = sessions.find(session->info.cell_id);
  if (it == sessions.end() || it->second != session) return;  // replaced, or ended by close()
  sessions.erase(it);
  session->state = CellState::kGone;
  session->reason = reason;
  if (!session->goodbye) {
    ++stats.lost;
    spdlog::warn("cells: {} (epoch {}) is lost: {}", session->info.cell_id, session->info.epoch,
                 reason);
  }
  if (observer == nullptr) return;
  observer->on_cell_changed(view(*session));
  observer->on_cell_gone(session->self, reason, session->goodbye);
}

CellView CellLinks::Impl::view(const Session& session) const {
  return {session.info,         session.state,
          session.status,       session.heartbeats,
          since(session.heard), session.busy() ? since(session.progressed) : milliseconds(0),
          session.reason};
}

CellLinks::Impl::Session* CellLinks::Impl::find(const Assignment& at) {
  const auto it = sessions.find(at.cell_id);
  if (it == sessions.end() || it->second->self != at || !it->second->connection->is_open()) {
    return nullptr;
  }
  return it->second.get();
}

CellLinks::CellLinks(Strand strand, CellLinkConfig config, CellObserver& observer)
    : impl_(std::make_shared<Impl>(std::move(strand), std::move(config), observer)) {}

CellLinks::~CellLinks() = default;

Result<void> CellLinks::listen() {
  const CellLinkConfig& c = impl_->config;
  const std::string where = fmt::format("{}:{}", c.listen_address, c.port);
  boost::system::error_code ec;
  const auto address = asio::ip::make_address(c.listen_address, ec);
  if (ec) {
    return invalid("gateway.cell_host",
                   fmt::format("\"{}\" is no IP address; give one of this machine's, or 0.0.0.0",
                               c.listen_address));
  }
  auto& acceptor = impl_->acceptor;
  const tcp::endpoint endpoint(address, c.port);
  acceptor.open(endpoint.protocol(), ec);
  if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor.bind(endpoint, ec);
  if (!ec) acceptor.listen(asio::socket_base::max_listen_connections, ec);
  if (ec) {
    return invalid("gateway.cell_port",
                   fmt::format("cannot listen for cells on {}: {}; choose another port or end what "
                               "uses it",
                               where, ec.message()));
  }
  impl_->bound_port = acceptor.local_endpoint(ec).port();
  asio::co_spawn(impl_->strand, impl_->accept_loop(), asio::detached);
  asio::co_spawn(impl_->strand, impl_->tick_loop(), asio::detached);
  return {};
}

std::uint16_t CellLinks::port() const { return impl_->bound_port; }

bool CellLinks::submit(const Assignment& to, const SequenceRequest& request) {
  Impl::Session* session = impl_->find(to);
  if (session == nullptr) return false;
  session->scratch.clear();
  encode(request, session->scratch);
  return session->connection->send(MessageKind::kSubmit, to.epoch, session->scratch);
}

void CellLinks::cancel(const Assignment& at, RequestId id) {
  Impl::Session* session = impl_->find(at);
  if (session == nullptr) return;
  session->scratch.clear();
  encode(Cancel{id}, session->scratch);
  session->connection->send(MessageKind::kCancel, at.epoch, session->scratch);
}

void CellLinks::drain_cells() {
  for (const auto& [id, session] : impl_->sessions) {
    session->connection->send(MessageKind::kDrain, session->info.epoch, {});
  }
}

void CellLinks::close(const std::string& reason) {
  if (impl_->closed) return;
  impl_->closed = true;
  boost::system::error_code ec;
  impl_->acceptor.close(ec);
  impl_->tick_timer.cancel();
  for (const auto& connection : impl_->greeting) connection->close(reason);
  Bytes bytes;
  encode(Notice{reason}, bytes);
  const auto sessions = impl_->sessions;
  for (const auto& [id, session] : sessions) {
    session->goodbye = true;
    session->connection->send(MessageKind::kGoodbye, session->info.epoch, bytes);
    session->connection->close_after_flush(reason);
    impl_->end(session, reason);
  }
  impl_->observer = nullptr;
}

std::vector<CellView> CellLinks::cells() const {
  std::vector<CellView> out;
  for (const auto& [id, session] : impl_->sessions) out.push_back(impl_->view(*session));
  return out;
}

CellLinkStats CellLinks::stats() const { return impl_->stats; }

}  // namespace millrace::net
