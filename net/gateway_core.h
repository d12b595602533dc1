// What runs on the gateway's strand: queue, journal, cells, streams. net/gateway.h is the face of
// it.
#pragma once

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/cell_link.h"
#include "net/gateway.h"
#include "net/gateway_metrics.h"
#include "net/gateway_stream.h"
#include "net/journal.h"
#include "net/prefix_affinity.h"
#include "net/status_cell.h"
#include "net/status_service.h"

namespace millrace::net {

enum class FailureCause : std::uint8_t {
  kCellLost,
  kCellError,
  kProtocol,
  kQueueTimeout,
  kSlowConsumer,
  kShutdown,
};

// Members in the first block are read by any thread; everything else belongs to the strand.
class GatewayCore final : public CellObserver, public std::enable_shared_from_this<GatewayCore> {
 public:
  using Clock = std::chrono::steady_clock;

  GatewayCore(Strand strand, GatewayConfig config, Exporter* exporter);

  // Any thread.
  Result<std::unique_ptr<GenerationStream>> submit(GenerateRequest request);
  EngineStatus status() const;
  std::chrono::seconds retry_after() const { return std::chrono::seconds(retry_after_s_.load()); }
  std::shared_ptr<const std::string> status_text() const;  // never null after start()
  void begin_drain();
  const Strand& strand() const { return strand_; }

  // Strand.
  Result<void> start();
  boost::asio::awaitable<bool> finish_drain(std::chrono::milliseconds limit);
  void stop();
  boost::asio::awaitable<GatewayStats> stats_on_strand() const;
  boost::asio::awaitable<std::vector<CellView>> cells_on_strand() const;
  const CellLinks& links() const { return links_; }

  void on_cell_joined(const CellInfo& info) override;
  void on_tokens(const Assignment& from, std::span<TokenEvent> events) override;
  void on_prompt_logprobs(const Assignment& from, PromptLogprobsEvent event) override;
  void on_telemetry(const Assignment& from, const CellTelemetry& telemetry) override;
  void on_cell_changed(const CellView& view) override;
  void on_cell_gone(const Assignment& cell, const std::string& reason, bool expected) override;

 private:
  struct Sequence {
    std::shared_ptr<StreamState> stream;
    std::uint32_t choice = 0;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t cached_tokens = 0;  // of the prompt; known from the first event on
    std::uint32_t generated = 0;
    bool in_cell = false;
    std::uint32_t fruitless = 0;  // cells lost since its last token
    bool suspect = false;         // counted in its cell's suspects
    PrefixAffinity::Trail trail;  // of its prompt
    Clock::time_point admitted;
    Clock::time_point queued;       // when it last began to wait in the queue
    Clock::time_point scheduled;    // in its cell's first step for it; known from the first event
    Clock::time_point first_token;  // or the end, where no token was asked for
    Clock::time_point last_token;
  };
  // Kept after the cell has gone, so that counters of the same epoch go on from where they were.
  struct Cell {
    Assignment at;
    CellView view;
    bool connected = false;
    std::uint32_t assigned = 0;  // sequences handed over and not finished
    std::uint32_t suspects = 0;  // of these, see gateway_replay.cc
    bool paused = false;  // it gave up or refused something: nothing more before its next heartbeat
    CellTelemetry telemetry;  // as last exported
    bool said_goodbye = false;
    Clock::time_point heard;  // when something last came from it
    Gauge info, heartbeat_age, workers, slots, slots_used, waiting, kv_tokens, kv_tokens_used,
        kv_tokens_cached;
    // With heartbeats once a second the limit on samples is never reached.
    StatusWindow<CellSample> samples{kStatusRateSpan + std::chrono::milliseconds(500), 16};
    Clock::time_point left;  // when it was last connected, if it is not
    Counter steps, restarts, losses;
  };

  // Admission (any thread).
  Result<void> check(const GenerateRequest& request, std::uint32_t context) const;
  Error refuse_draining();
  Result<void> reserve(std::uint64_t sequences, std::uint64_t tokens);
  void release(std::uint64_t sequences, std::uint64_t tokens);

  // Queue and dispatch.
  void admit(const GenerateRequest& request, const PrefixAffinity::Trail& trail, RequestId first_id,
             const std::shared_ptr<StreamState>& stream, Clock::time_point now);
  void pump();
  std::int64_t room(const Cell& cell, std::uint32_t queue_depth) const;
  Cell* cell_for(RequestId id, std::uint32_t queue_depth);
  bool dispatch(RequestId id, Cell& cell);
  void expire_queue(Clock::time_point now);
  void expire(RequestId id, std::chrono::milliseconds limit);
  void unqueue(RequestId id);

  // Sequences that their cell has not finished (gateway_replay.cc).
  enum class Unfinished : std::uint8_t { kLost, kRefused };
  void replay(std::vector<RequestId> ids, Unfinished how, const std::string& reason);
  void requeue(RequestId id);
  void leave_cell(RequestId id);
  static bool suspicious(const Sequence& sequence);
  void suspect(Sequence& sequence, Cell& cell);
  void absolve(RequestId id, Sequence& sequence);
  Cell* cell_of(RequestId id);

  // Ends of sequences and streams.
  void deliver(RequestId id, Sequence& sequence, TokenEvent&& event, Clock::time_point now);
  void observe_start(Sequence& sequence, const TokenEvent& event, Clock::time_point now);
  static void note_cached(Sequence& sequence, TokenEvent& event);
  void observe_token(Sequence& sequence, const TokenEvent& event, Clock::time_point now);
  void finish(RequestId id, FinishReason reason);
  void cancel_choice(StreamState& stream, std::uint32_t choice);
  void abandon(StreamState& stream);
  void fail_sequence(RequestId id, FailureCause cause, std::string sentence);
  void fail_stream(StreamState& stream, FailureCause cause, Error error);
  void end_without_token(RequestId id, FinishReason reason, std::string sentence);
  void recall(RequestId id);  // tells the cell, or takes the sequence out of the queue
  void count_failure(FailureCause cause, std::uint32_t sequences);
  bool push(StreamState& stream, ChoiceEvent event);  // false: the stream has failed by overflow

  // Health and figures.
  boost::asio::awaitable<void> tick_loop();
  void refresh();
  void refresh_metrics();
  void measure_drain_rate(Clock::duration elapsed);
  void take_cell_metrics(Cell& cell, const CellInfo& info);
  void refresh_cell_metrics(Clock::time_point now);
  void forget_old_cells();

  // The status page (gateway_status.cc).
  void refresh_status(Clock::time_point now);
  Json status_json(Clock::time_point now) const;
  Json cell_status(const CellView& view, Clock::time_point now) const;

  const Strand strand_;
  const GatewayConfig config_;
  const GatewayMetrics metrics_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> ready_{false};
  std::atomic<std::uint32_t> max_context_{0};
  std::atomic<std::uint64_t> queued_sequences_{0};
  std::atomic<std::uint64_t> queued_tokens_{0};
  std::atomic<std::uint32_t> running_{0};
  std::atomic<std::uint32_t> waiting_in_cells_{0};
  std::atomic<std::uint32_t> retry_after_s_{1};
  std::atomic<RequestId> next_id_{1};
  std::atomic<std::uint64_t> rejected_queue_full_{0}, rejected_token_budget_{0},
      rejected_no_cell_{0}, rejected_draining_{0};
  mutable std::mutex reason_mutex_;  // of reason_ alone: written on changes, read by status()
  std::string reason_ = "no cell is connected";
  mutable std::mutex status_mutex_;  // of status_text_ alone
  std::shared_ptr<const std::string> status_text_;

  CellLinks links_;
  Journal journal_;
  PrefixAffinity affinity_;
  std::unordered_map<RequestId, Sequence> sequences_;
  std::deque<RequestId> queue_;
  std::map<std::string, Cell> cells_;
  std::vector<std::shared_ptr<StreamState>> touched_;  // streams to wake after a batch
  boost::asio::steady_timer tick_timer_;
  boost::asio::steady_timer drained_timer_;
  GatewayStats stats_;
  JournalStats reported_journal_;
  std::uint64_t reported_stale_frames_ = 0;
  std::uint64_t finished_since_tick_ = 0;
  double drain_rate_ = 0;  // sequences finished per second, averaged over about 10 s
  const Clock::time_point started_ = Clock::now();
  Clock::time_point next_status_ = started_;
  StatusWindow<ServiceSample> status_samples_{kStatusLatencySpan + std::chrono::milliseconds(500),
                                              61};
  bool stopped_ = false;
};

}  // namespace millrace::net
