// A gateway and scripted cells over loopback, in one process: the gateway on io threads of its own,
// each cell on its endpoint's.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_future.hpp>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "monitoring/exporter.h"
#include "net/cell_endpoint.h"
#include "net/gateway.h"

namespace millrace::net::test {

namespace asio = boost::asio;
using namespace std::chrono_literals;

// Polls until `done` or ten seconds are over: the machine may be slow, the result may not be wrong.
inline bool eventually(const std::function<bool()>& done, std::chrono::milliseconds limit = 10s) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

// The token a scripted cell gives: depends on the prompt, the choice and the index, so that a
// mix-up of streams or positions shows.
inline std::int32_t scripted_token(const SequenceRequest& r, std::uint32_t index) {
  const std::int64_t sum =
      std::accumulate(r.tokens.begin(), r.tokens.begin() + r.prompt_tokens, std::int64_t{0});
  return static_cast<std::int32_t>((sum * 31 + r.sampling.choice * 7 + index * 13) % 65536);
}

// A cell that keeps what it is told. With `auto_steps` a thread of its own takes steps: one token
// for each of up to max_sequences sequences, oldest first, until max_new_tokens.
class ScriptedCell {
 public:
  ScriptedCell(std::uint16_t gateway_port, CellInfo info, bool auto_steps = true,
               std::function<void(CellEndpointConfig&)> adjust = {})
      : info_(std::move(info)) {
    CellEndpointConfig config;
    config.gateways = {"127.0.0.1:" + std::to_string(gateway_port)};
    config.heartbeat_interval = 20ms;
    config.backoff_min = 10ms;
    config.backoff_max = 50ms;
    config.connect_deadline = 2s;
    if (adjust) adjust(config);
    auto made = CellEndpoint::create(
        info_, config,
        {.submit = [this](SequenceRequest r) { return on_submit(std::move(r)); },
         .cancel = [this](RequestId id) { on_cancel(id); },
         .drain = [this] { drained = true; },
         .status = [this] { return status(); },
         .telemetry = [this] { return telemetry(); }});
    EXPECT_TRUE(made) << made.error().to_string();
    endpoint = std::move(*made);
    endpoint->start();
    if (auto_steps) stepper_ = std::thread([this] { run(); });
  }
  ~ScriptedCell() { stop(); }

  void stop() {
    stopping_ = true;
    if (stepper_.joinable()) stepper_.join();
    endpoint->stop("the test's cell ends");
  }

  std::vector<SequenceRequest> submitted() const {
    const std::lock_guard lock(mutex_);
    return order_;
  }
  std::size_t live() const {
    const std::lock_guard lock(mutex_);
    return live_.size();
  }
  std::size_t cancels() const {
    const std::lock_guard lock(mutex_);
    return cancelled_.size();
  }
  // Waits until `n` sequences have arrived in all.
  bool wait_submitted(std::size_t n) const {
    return eventually([&] { return submitted().size() >= n; });
  }
  TokenEvent event(const SequenceRequest& r, std::uint32_t index,
                   FinishReason finish = FinishReason::kNone) const {
    return {.id = r.id, .index = index, .token = {scripted_token(r, index), 0}, .finish = finish};
  }
  void set_telemetry(CellTelemetry t) {
    const std::lock_guard lock(mutex_);
    telemetry_ = std::move(t);
  }
  void set_status(CellStatus s) {
    const std::lock_guard lock(mutex_);
    fixed_status_ = s;
  }

  std::unique_ptr<CellEndpoint> endpoint;
  std::atomic<bool> drained{false};
  std::atomic<bool> refuse{false};  // for good
  std::atomic<int> full{0};         // so many times
  std::atomic<std::uint32_t> max_running{0};
  std::atomic<std::int64_t> step_time_us{200};

 private:
  struct Live {
    SequenceRequest request;
    std::uint32_t next = 0;
  };

  Result<void> on_submit(SequenceRequest r) {
    if (refuse) return invalid("prompt", "is not for this cell");
    if (full > 0) {
      --full;
      return Error{ErrorCode::kResourceExhausted, "", "the cell is full"};
    }
    const std::lock_guard lock(mutex_);
    order_.push_back(r);
    live_[r.id] = {r, static_cast<std::uint32_t>(r.tokens.size()) - r.prompt_tokens};
    return {};
  }
  void on_cancel(RequestId id) {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
    live_.erase(id);
  }
  CellTelemetry telemetry() {
    const std::lock_guard lock(mutex_);
    CellTelemetry out = telemetry_;
    out.step_seconds.counts.resize(describe(Metric::kStepTime).buckets.size() + 1);
    out.step_tokens.counts.resize(describe(Metric::kIterationTokens).buckets.size() + 1);
    return out;
  }
  CellStatus status() {
    const std::lock_guard lock(mutex_);
    if (fixed_status_) return *fixed_status_;
    const auto n = static_cast<std::uint32_t>(live_.size());
    const std::uint32_t running = std::min(n, info_.max_sequences);
    return {.steps = ++steps_, .running = running, .waiting = n - running};
  }
  void run() {
    while (!stopping_) {
      std::vector<TokenEvent> events;
      {
        const std::lock_guard lock(mutex_);
        max_running =
            std::max<std::uint32_t>(max_running, static_cast<std::uint32_t>(live_.size()));
        for (auto it = live_.begin(); it != live_.end() && events.size() < info_.max_sequences;) {
          Live& l = it->second;
          const bool last = l.next + 1 == l.request.max_new_tokens;
          events.push_back(
              event(l.request, l.next++, last ? FinishReason::kLength : FinishReason::kNone));
          it = last ? live_.erase(it) : std::next(it);
        }
        ++steps_;
      }
      if (!events.empty()) endpoint->publish(std::move(events));
      std::this_thread::sleep_for(std::chrono::microseconds(step_time_us.load()));
    }
  }

  const CellInfo info_;
  mutable std::mutex mutex_;
  std::vector<SequenceRequest> order_;
  std::map<RequestId, Live> live_;
  std::vector<RequestId> cancelled_;
  std::optional<CellStatus> fixed_status_;
  CellTelemetry telemetry_;
  std::uint64_t steps_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread stepper_;
};

inline CellInfo cell_info(std::string id = "a", std::uint64_t epoch = 1,
                          std::uint32_t max_sequences = 8) {
  CellInfo info{std::move(id), epoch, "model-1", 4096, max_sequences, 100'000, 1, 1};
  info.backend = "cpu";
  info.transport = "mpi";
  return info;
}

// What one choice gave until its end.
struct Answer {
  std::vector<std::int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
  std::string error;
};

struct StreamResult {
  std::vector<Answer> choices;
  std::optional<Error> error;
};

class GatewayHarness {
 public:
  explicit GatewayHarness(GatewayConfig config = {}, int threads = 2)
      : work_(io.get_executor()), exporter({.model_name = "test-model"}) {
    if (config.cells.model_fingerprint.empty()) config.cells.model_fingerprint = "model-1";
    auto started = Gateway::start(io.get_executor(), config, &exporter);
    EXPECT_TRUE(started) << started.error().to_string();
    gateway = std::move(*started);
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { io.run(); });
  }
  ~GatewayHarness() { shut_down(); }

  void shut_down() {
    if (threads_.empty()) return;
    gateway->stop();
    work_.reset();
    for (auto& t : threads_) t.join();
    threads_.clear();
  }

  std::uint16_t port() const { return gateway->cell_port(); }
  bool wait_ready() const {
    return eventually([this] { return gateway->status().ready; });
  }

  template <class T>
  T get(asio::awaitable<T> what) {
    return asio::co_spawn(asio::make_strand(io), std::move(what), asio::use_future).get();
  }
  GatewayStats stats() { return get(gateway->stats()); }

  static GenerateRequest request(std::vector<std::int32_t> prompt, std::uint32_t max_new = 16,
                                 std::uint32_t n = 1) {
    GenerateRequest r;
    r.prompt = std::move(prompt);
    r.n = n;
    r.max_new_tokens = max_new;
    return r;
  }

  std::unique_ptr<GenerationStream> submit(GenerateRequest r) {
    auto stream = gateway->submit(std::move(r));
    EXPECT_TRUE(stream) << stream.error().to_string();
    return stream ? std::move(*stream) : nullptr;
  }

  // Reads a stream to its end; checks that indices are in order and nothing follows an end.
  static asio::awaitable<StreamResult> read_all(GenerationStream& stream, std::uint32_t n) {
    StreamResult result;
    result.choices.resize(n);
    while (true) {
      auto next = co_await stream.next();
      if (!next) {
        result.error = next.error();
        co_return result;
      }
      if (!next->has_value()) co_return result;
      const ChoiceEvent& event = **next;
      Answer& answer = result.choices.at(event.choice);
      if (!std::holds_alternative<TokenEvent>(event.event)) continue;
      const auto& token = std::get<TokenEvent>(event.event);
      EXPECT_EQ(answer.finish, FinishReason::kNone) << "an event after the end";
      if (token.has_token) {
        EXPECT_EQ(token.index, answer.tokens.size());
        answer.tokens.push_back(token.token.token);
      }
      answer.finish = token.finish;
      answer.error = token.error;
    }
  }
  StreamResult read(GenerationStream& stream, std::uint32_t n = 1) {
    return get(read_all(stream, n));
  }
  std::optional<TokenEvent> read_one(GenerationStream& stream) {
    auto next = get(stream.next());
    EXPECT_TRUE(next) << next.error().to_string();
    if (!next || !next->has_value()) return std::nullopt;
    return std::get<TokenEvent>((*next)->event);
  }

  asio::io_context io;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  Exporter exporter;
  std::unique_ptr<Gateway> gateway;

 private:
  std::vector<std::thread> threads_;
};

inline std::vector<std::int32_t> expected_tokens(const std::vector<std::int32_t>& prompt,
                                                 std::uint32_t n, std::uint32_t choice = 0) {
  SequenceRequest r{.tokens = prompt, .prompt_tokens = static_cast<std::uint32_t>(prompt.size())};
  r.sampling.choice = choice;
  std::vector<std::int32_t> out;
  for (std::uint32_t i = 0; i < n; ++i) out.push_back(scripted_token(r, i));
  return out;
}

}  // namespace millrace::net::test
