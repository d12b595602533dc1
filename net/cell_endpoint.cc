#include "net/cell_endpoint.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>

#include "config/check.h"
#include "net/codec.h"
#include "net/gateway_names.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using std::chrono::milliseconds;

// Bounds a Tokens frame: 35 bytes an event without alternatives.
constexpr std::size_t kEventsPerFrame = 8192;
// Published batches taken in one go: between two goes the io thread writes, beats and listens.
constexpr std::size_t kBatchesPerFlush = 16;

}  // namespace

struct CellEndpoint::Impl : std::enable_shared_from_this<Impl> {
  // Heartbeats of one connection and their answers, which come in order.
  struct Pulse {
    std::uint64_t sent = 0;
    std::uint64_t answered = 0;
    std::uint64_t draining = 0;  // number of the first that said that the cell drains; 0: none
    bool confirmed() const { return draining != 0 && answered >= draining; }
  };
  // One gateway: until its address is behind no name any more and its connection has ended. io
  // thread only.
  struct Link {
    Link(asio::io_context& io, tcp::endpoint address_in, std::string name_in)
        : address(std::move(address_in)), name(std::move(name_in)), dialing(io), pause(io) {}

    const tcp::endpoint address;
    const std::string name;  // in logs
    bool wanted = true;      // the address is behind one of the names
    tcp::socket dialing;
    asio::steady_timer pause;
    std::shared_ptr<FrameConnection> greeting;          // until the gateway has answered Hello
    std::shared_ptr<FrameConnection> connection;        // set while welcomed
    std::shared_ptr<Pulse> pulse;                       // the connection's
    std::unordered_map<RequestId, RequestId> local_of;  // gateway's id -> ours
    std::vector<TokenEvent> out;                        // of the batch being sorted
    std::string last_complaint;                         // so that a repeated failure is logged once
  };
  struct Route {
    Link* link = nullptr;
    RequestId gateway_id = 0;
  };
  using Published = std::variant<std::vector<TokenEvent>, PromptLogprobsEvent>;
  struct Counters {
    std::atomic<std::uint64_t> connects{0}, refused{0}, links_lost{0}, submitted{0},
        cancelled_by_loss{0}, events_sent{0}, events_dropped{0}, overflows{0}, stale_frames{0};
    std::atomic<std::uint32_t> connected{0};
  };

  Impl(CellInfo info_in, CellEndpointConfig config_in, CellEndpointCallbacks callbacks_in)
      : info(std::move(info_in)),
        config(std::move(config_in)),
        callbacks(std::move(callbacks_in)),
        work(io.get_executor()) {}

  void set_gateways(const GatewayNames::Gateways& now);
  asio::awaitable<void> run_link(Link& link);
  asio::awaitable<bool> dial(Link& link);
  asio::awaitable<bool> serve(Link& link);
  asio::awaitable<Result<Welcome>> greet(FrameConnection& connection);
  asio::awaitable<void> beat(std::shared_ptr<FrameConnection> connection,
                             std::shared_ptr<Pulse> pulse, milliseconds interval);
  bool send_beat(FrameConnection& connection, Pulse& pulse);
  void announce_drain();
  void look_for_confirmation();
  asio::awaitable<void> sleep(Link& link, milliseconds time);
  milliseconds jittered(milliseconds time);
  Result<void> handle(Link& link, const Frame& frame);
  Result<void> on_submit(Link& link, const Frame& frame);
  Result<void> on_cancel(Link& link, const Frame& frame);
  void lose(Link& link);
  void complain(Link& link, const std::string& what);
  static std::size_t weight(const Published& item);
  bool enqueue(Published item);
  void flush();
  void send_tokens(std::vector<TokenEvent>& events);
  void send_out(Link& link);
  void send_prompt_logprobs(PromptLogprobsEvent& event);
  void end_all(const std::string& reason);

  const CellInfo info;
  const CellEndpointConfig config;
  const CellEndpointCallbacks callbacks;
  Counters counters;

  // Between threads.
  std::mutex mutex;
  std::deque<Published> inbox;
  std::size_t inbox_events = 0;
  bool flush_posted = false;
  bool overflowed = false;

  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::thread thread;

  std::atomic<bool> drain_confirmed{false};

  // io thread only.
  bool stopping = false;
  bool draining = false;
  std::shared_ptr<GatewayNames> names;
  std::map<tcp::endpoint, std::unique_ptr<Link>> links;
  std::unordered_map<RequestId, Route> routes;  // our id -> gateway
  RequestId next_id = 1;
  std::minstd_rand random{std::random_device{}()};
  std::vector<Published> taken;
  Bytes scratch;
};

milliseconds CellEndpoint::Impl::jittered(milliseconds time) {
  // Half to whole: cells that lost the same gateway do not come back at the same moment.
  return milliseconds(
      std::uniform_int_distribution<std::int64_t>(time.count() / 2, time.count())(random));
}

asio::awaitable<void> CellEndpoint::Impl::sleep(Link& link, milliseconds time) {
  boost::system::error_code ec;
  link.pause.expires_after(time);
  if (!stopping) co_await link.pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
}

void CellEndpoint::Impl::complain(Link& link, const std::string& what) {
  if (what == link.last_complaint || stopping) return;
  link.last_complaint = what;
  spdlog::warn("gateway {}: {}; trying again", link.name, what);
}

// A gateway whose address has vanished may still send: its link ends when the gateway does.
void CellEndpoint::Impl::set_gateways(const GatewayNames::Gateways& now) {
  if (stopping) return;
  for (const auto& [address, link] : links) {
    const bool was = std::exchange(link->wanted, now.contains(address));
    if (was && !link->wanted) {
      spdlog::info("gateway {}: is no longer among cell.gateways", link->name);
      link->pause.cancel();
    }
  }
  for (const auto& [address, name] : now) {
    auto& link = links[address];
    if (link) continue;
    link = std::make_unique<Link>(io, address, name);
    asio::co_spawn(io, run_link(*link), asio::detached);
  }
}

asio::awaitable<void> CellEndpoint::Impl::run_link(Link& link) {
  const auto self = shared_from_this();
  milliseconds backoff = config.backoff_min;
  while (!stopping && !draining && link.wanted) {
    bool welcomed = false;
    if (co_await dial(link)) welcomed = co_await serve(link);
    lose(link);
    if (welcomed) backoff = config.backoff_min;
    if (stopping || draining || !link.wanted) break;
    co_await sleep(link, jittered(backoff));
    backoff = std::min(backoff * 2, config.backoff_max);
  }
  if (stopping || draining) co_return;
  const tcp::endpoint address = link.address;  // not from inside what is erased
  links.erase(address);
}

asio::awaitable<bool> CellEndpoint::Impl::dial(Link& link) {
  boost::system::error_code ec;
  asio::steady_timer deadline(io, config.connect_deadline);
  const auto over = std::make_shared<bool>(false);  // a late deadline may find the link gone
  deadline.async_wait([&link, over](boost::system::error_code cancelled) {
    boost::system::error_code ignored;
    if (!cancelled && !*over) link.dialing.close(ignored);
  });
  link.dialing = tcp::socket(io);
  co_await link.dialing.async_connect(link.address, asio::redirect_error(asio::use_awaitable, ec));
  *over = true;
  deadline.cancel();
  if (!ec && link.dialing.is_open()) co_return true;
  complain(link, "cannot connect: " + (ec ? ec.message() : std::string("deadline passed")));
  co_return false;
}

// True when the gateway had welcomed us.
asio::awaitable<bool> CellEndpoint::Impl::serve(Link& link) {
  const auto connection = FrameConnection::create(std::move(link.dialing), config.frame);
  connection->start();
  link.greeting = connection;
  const Result<Welcome> welcome = co_await greet(*connection);
  link.greeting.reset();
  if (!welcome || stopping || draining) {
    if (!welcome) complain(link, welcome.error().to_string());
    connection->close("not welcomed");
    co_return false;
  }
  const milliseconds limit(welcome->heartbeat_limit_ms);
  const milliseconds interval =
      std::clamp(config.heartbeat_interval, milliseconds(1), std::max(limit / 3, milliseconds(1)));
  link.connection = connection;
  link.pulse = std::make_shared<Pulse>();
  link.last_complaint.clear();
  ++counters.connects;
  ++counters.connected;
  spdlog::info("gateway {}: registered as {} epoch {}", link.name, info.cell_id, info.epoch);
  asio::co_spawn(io, beat(connection, link.pulse, interval), asio::detached);
  while (connection->is_open()) {
    const Result<Frame> frame = co_await connection->read(config.silence_limit);
    if (!frame) break;
    if (auto ok = handle(link, *frame); !ok) {
      connection->close(
          fmt::format("{} was malformed: {}", to_string(frame->kind), ok.error().to_string()));
    }
  }
  --counters.connected;
  ++counters.links_lost;
  if (!stopping) spdlog::warn("gateway {}: link lost: {}", link.name, connection->close_reason());
  co_return true;
}

asio::awaitable<Result<Welcome>> CellEndpoint::Impl::greet(FrameConnection& connection) {
  scratch.clear();
  encode(Hello{info, config.secret}, scratch);
  connection.send(MessageKind::kHello, info.epoch, scratch);
  const Result<Frame> frame = co_await connection.read(config.connect_deadline);
  if (!frame) co_return frame.error();
  if (frame->kind == MessageKind::kRefused) {
    ++counters.refused;
    Notice notice;
    if (auto ok = decode(frame->payload, notice); !ok) co_return ok.error();
    co_return Error{ErrorCode::kUnavailable, "", "refuses this cell: " + notice.reason};
  }
  if (frame->kind != MessageKind::kWelcome) {
    co_return invalid("frame.kind",
                      fmt::format("Welcome expected, got {}", to_string(frame->kind)));
  }
  Welcome welcome;
  if (auto ok = decode(frame->payload, welcome); !ok) co_return ok.error();
  co_return welcome;
}

bool CellEndpoint::Impl::send_beat(FrameConnection& connection, Pulse& pulse) {
  const CellStatus status = callbacks.status();
  Bytes bytes;
  encode(status, bytes);
  if (!connection.send(MessageKind::kHeartbeat, info.epoch, bytes)) return false;
  ++pulse.sent;
  if (status.draining && pulse.draining == 0) pulse.draining = pulse.sent;
  if (!callbacks.telemetry) return true;
  bytes.clear();
  encode(callbacks.telemetry(), bytes);
  return connection.send(MessageKind::kTelemetry, info.epoch, bytes);
}

asio::awaitable<void> CellEndpoint::Impl::beat(std::shared_ptr<FrameConnection> connection,
                                               std::shared_ptr<Pulse> pulse,
                                               milliseconds interval) {
  const auto self = shared_from_this();
  asio::steady_timer timer(io);
  while (connection->is_open() && !stopping) {
    if (!send_beat(*connection, *pulse)) co_return;
    boost::system::error_code ec;
    timer.expires_after(interval);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
}

Result<void> CellEndpoint::Impl::handle(Link& link, const Frame& frame) {
  if (frame.epoch != info.epoch) {
    ++counters.stale_frames;
    return {};
  }
  switch (frame.kind) {
    case MessageKind::kSubmit:
      return on_submit(link, frame);
    case MessageKind::kCancel:
      return on_cancel(link, frame);
    case MessageKind::kHeartbeatAck:
      ++link.pulse->answered;
      look_for_confirmation();
      return {};
    case MessageKind::kDrain:
      callbacks.drain();
      return {};
    case MessageKind::kGoodbye:
      link.connection->close("the gateway said goodbye");
      return {};
    default:
      return invalid("frame.kind", fmt::format("{} is not for a cell", to_string(frame.kind)));
  }
}

Result<void> CellEndpoint::Impl::on_submit(Link& link, const Frame& frame) {
  SequenceRequest request;
  if (auto ok = decode(frame.payload, request); !ok) return ok;
  const RequestId gateway_id = request.id;
  const RequestId id = next_id++;
  if (!link.local_of.try_emplace(gateway_id, id).second) {
    return invalid("id", fmt::format("{} is in flight already", gateway_id));
  }
  routes[id] = {&link, gateway_id};
  request.id = id;
  const auto delivered = static_cast<std::uint32_t>(request.tokens.size()) - request.prompt_tokens;
  ++counters.submitted;
  if (auto ok = callbacks.submit(std::move(request)); !ok) {
    const bool for_good = ok.error().code == ErrorCode::kInvalidArgument;
    TokenEvent end{.id = id,
                   .index = delivered,
                   .has_token = false,
                   .finish = for_good ? FinishReason::kError : FinishReason::kRefused,
                   .error = ok.error().to_string()};
    std::vector<TokenEvent> events{std::move(end)};
    send_tokens(events);
  }
  return {};
}

Result<void> CellEndpoint::Impl::on_cancel(Link& link, const Frame& frame) {
  Cancel cancel;
  if (auto ok = decode(frame.payload, cancel); !ok) return ok;
  const auto it = link.local_of.find(cancel.id);
  if (it == link.local_of.end()) return {};  // it has just ended
  const RequestId id = it->second;
  link.local_of.erase(it);
  routes.erase(id);  // the gateway has forgotten it: its last events would only be dropped there
  callbacks.cancel(id);
  return {};
}

// The link is down: nobody waits for what it asked for.
void CellEndpoint::Impl::lose(Link& link) {
  link.connection.reset();
  look_for_confirmation();
  for (const auto& [gateway_id, id] : link.local_of) {
    routes.erase(id);
    ++counters.cancelled_by_loss;
    callbacks.cancel(id);
  }
  link.local_of.clear();
}

// In events. A long prompt's log-probabilities are as big as that many tokens.
std::size_t CellEndpoint::Impl::weight(const Published& item) {
  if (const auto* tokens = std::get_if<std::vector<TokenEvent>>(&item)) return tokens->size();
  return std::get<PromptLogprobsEvent>(item).targets.size() + 1;
}

bool CellEndpoint::Impl::enqueue(Published item) {
  const std::size_t events = weight(item);
  bool post = false;
  bool accepted = false;
  {
    const std::lock_guard lock(mutex);
    accepted = inbox_events + events <= config.max_queued_events;
    if (accepted) {
      inbox.push_back(std::move(item));
      inbox_events += events;
    } else {
      overflowed = true;
    }
    post = !std::exchange(flush_posted, true);
  }
  if (!accepted) ++counters.overflows;
  if (post) asio::post(io, [self = shared_from_this()] { self->flush(); });
  return accepted;
}

void CellEndpoint::Impl::flush() {
  bool overflow = false;
  bool more = false;
  {
    const std::lock_guard lock(mutex);
    const std::size_t n = stopping ? inbox.size() : std::min(inbox.size(), kBatchesPerFlush);
    for (std::size_t i = 0; i < n; ++i) {
      inbox_events -= weight(inbox.front());
      taken.push_back(std::move(inbox.front()));
      inbox.pop_front();
    }
    more = !inbox.empty();
    flush_posted = more;
    overflow = std::exchange(overflowed, false);
  }
  for (Published& item : taken) {
    if (auto* tokens = std::get_if<std::vector<TokenEvent>>(&item)) {
      send_tokens(*tokens);
    } else {
      send_prompt_logprobs(std::get<PromptLogprobsEvent>(item));
    }
  }
  taken.clear();
  if (more) asio::post(io, [self = shared_from_this()] { self->flush(); });
  if (!overflow) return;
  for (const auto& [address, link] : links) {
    if (link->connection)
      link->connection->close("token events were lost: the io thread is behind");
  }
}

void CellEndpoint::Impl::send_tokens(std::vector<TokenEvent>& events) {
  for (TokenEvent& event : events) {
    const auto it = routes.find(event.id);
    if (it == routes.end()) {
      ++counters.events_dropped;
      continue;
    }
    const Route route = it->second;
    if (event.finish != FinishReason::kNone) {
      route.link->local_of.erase(route.gateway_id);
      routes.erase(it);
    }
    event.id = route.gateway_id;
    route.link->out.push_back(std::move(event));
  }
  for (const auto& [address, link] : links) {
    if (!link->out.empty()) send_out(*link);
  }
}

void CellEndpoint::Impl::send_out(Link& link) {
  std::span<const TokenEvent> rest(link.out);
  while (!rest.empty() && link.connection) {
    const auto part = rest.first(std::min(rest.size(), kEventsPerFrame));
    scratch.clear();
    encode(part, scratch);
    if (!link.connection->send(MessageKind::kTokens, info.epoch, scratch)) break;
    counters.events_sent += part.size();
    rest = rest.subspan(part.size());
  }
  counters.events_dropped += rest.size();
  link.out.clear();
}

void CellEndpoint::Impl::send_prompt_logprobs(PromptLogprobsEvent& event) {
  const auto it = routes.find(event.id);
  if (it == routes.end() || !it->second.link->connection) {
    ++counters.events_dropped;
    return;
  }
  event.id = it->second.gateway_id;
  scratch.clear();
  encode(event, scratch);
  it->second.link->connection->send(MessageKind::kPromptLogprobs, info.epoch, scratch);
}

void CellEndpoint::Impl::announce_drain() {
  if (stopping || std::exchange(draining, true)) return;
  for (const auto& [address, link] : links) {
    boost::system::error_code ignored;
    link->dialing.close(ignored);
    link->pause.cancel();
    if (link->greeting) link->greeting->close("the cell drains");
    if (link->connection) send_beat(*link->connection, *link->pulse);
  }
  look_for_confirmation();
}

void CellEndpoint::Impl::look_for_confirmation() {
  drain_confirmed = draining && std::ranges::all_of(links, [](const auto& entry) {
                      const Link& link = *entry.second;
                      return !link.connection || link.pulse->confirmed();
                    });
}

void CellEndpoint::Impl::end_all(const std::string& reason) {
  stopping = true;
  flush();
  names->stop();
  for (const auto& [address, link] : links) {
    boost::system::error_code ignored;
    link->dialing.close(ignored);
    link->pause.cancel();
    if (link->greeting) link->greeting->close(reason);
    if (!link->connection) continue;
    scratch.clear();
    encode(Notice{reason}, scratch);
    link->connection->send(MessageKind::kGoodbye, info.epoch, scratch);
    link->connection->close_after_flush(reason);
  }
  work.reset();
}

Result<std::unique_ptr<CellEndpoint>> CellEndpoint::create(CellInfo info, CellEndpointConfig config,
                                                           CellEndpointCallbacks callbacks) {
  CHECK(callbacks.submit && callbacks.cancel && callbacks.drain && callbacks.status,
        "all callbacks must be set");
  if (info.cell_id.empty()) return invalid("cell.id", "must not be empty");
  auto impl = std::make_shared<Impl>(std::move(info), std::move(config), std::move(callbacks));
  GatewayNamesConfig names;
  names.names = impl->config.gateways;
  names.interval = impl->config.lookup_interval;
  names.retry_min = impl->config.backoff_min;
  auto made = GatewayNames::create(
      impl->io, std::move(names),
      [&impl = *impl](const GatewayNames::Gateways& now) { impl.set_gateways(now); });
  if (!made) return made.error();
  impl->names = std::move(*made);
  return std::unique_ptr<CellEndpoint>(new CellEndpoint(std::move(impl)));
}

CellEndpoint::CellEndpoint(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

CellEndpoint::~CellEndpoint() { stop("the cell ends"); }

void CellEndpoint::start() {
  CHECK(!impl_->thread.joinable(), "started twice");
  impl_->names->start();
  impl_->thread = std::thread([impl = impl_] { impl->io.run(); });
}

void CellEndpoint::announce_drain() {
  asio::post(impl_->io, [impl = impl_] { impl->announce_drain(); });
}

bool CellEndpoint::drain_confirmed() const { return impl_->drain_confirmed; }

void CellEndpoint::stop(const std::string& reason) {
  if (!impl_->thread.joinable()) return;
  CHECK(std::this_thread::get_id() != impl_->thread.get_id(), "called from a callback");
  asio::post(impl_->io, [impl = impl_, reason] { impl->end_all(reason); });
  impl_->thread.join();
}

bool CellEndpoint::publish(std::vector<TokenEvent> events) {
  return events.empty() || impl_->enqueue(std::move(events));
}

bool CellEndpoint::publish(PromptLogprobsEvent event) { return impl_->enqueue(std::move(event)); }

CellEndpointStats CellEndpoint::stats() const {
  const auto& c = impl_->counters;
  return {c.connects,    c.refused,        c.links_lost, c.submitted,    c.cancelled_by_loss,
          c.events_sent, c.events_dropped, c.overflows,  c.stale_frames, c.connected};
}

}  // namespace millrace::net
