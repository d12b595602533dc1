// The cell's end of the road to its gateways. It lives in the coordinator's process on an io thread
// of its own; between that thread and the scheduler's only values pass.
//
// It dials every address behind the configured names (net/gateway_names.h), registers, and dials
// again with growing, jittered pauses when a link is lost. An address that its name no longer gives
// is dialled no more; a link that it has lasts until the gateway ends it. Request ids are unique
// within one gateway only, so the endpoint gives each submitted sequence an id of its own towards
// the cell and translates back. When a gateway goes away, everything it asked for is cancelled in
// the cell.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "config/result.h"
#include "coordinator/request.h"
#include "net/frame.h"

namespace millrace::net {

struct CellEndpointConfig {
  std::vector<std::string> gateways;  // "host:port", "[::1]:port"; a name may have many addresses
  std::chrono::milliseconds lookup_interval{5000};  // between two lookups of a name
  std::string secret;
  std::chrono::milliseconds heartbeat_interval{1000};
  std::chrono::milliseconds connect_deadline{3000};  // connection and Welcome, each
  std::chrono::milliseconds silence_limit{5000};     // gateways answer each heartbeat
  std::chrono::milliseconds backoff_min{100};
  std::chrono::milliseconds backoff_max{5000};
  std::size_t max_queued_events = 1U << 20;  // published, not yet taken by the io thread
  FrameLimits frame;
};

// All but `status` are called on the io thread, and none may block. Ids are the endpoint's own.
struct CellEndpointCallbacks {
  // An error ends the sequence with its message: kInvalidArgument for good, any other as kRefused.
  std::function<Result<void>(SequenceRequest)> submit;
  // The sequence's events are no longer wanted. May name an id whose end is already published.
  std::function<void(RequestId)> cancel;
  // A gateway will send no more work.
  std::function<void()> drain;
  // Must be thread-safe; called on the io thread at each heartbeat.
  std::function<CellStatus()> status;
  std::function<CellTelemetry()> telemetry;  // likewise; may be empty
};

struct CellEndpointStats {
  std::uint64_t connects = 0;  // links established
  std::uint64_t refused = 0;   // by a gateway, whose reason is in the log
  std::uint64_t links_lost = 0;
  std::uint64_t submitted = 0;
  std::uint64_t cancelled_by_loss = 0;  // sequences whose gateway went away
  std::uint64_t events_sent = 0;
  std::uint64_t events_dropped = 0;  // for sequences nobody waits for
  std::uint64_t overflows = 0;       // publish() found its queue full
  std::uint64_t stale_frames = 0;
  std::uint32_t connected = 0;  // links up now
};

class CellEndpoint {
 public:
  // Checks the form of the gateways' names; starts nothing.
  static Result<std::unique_ptr<CellEndpoint>> create(CellInfo info, CellEndpointConfig config,
                                                      CellEndpointCallbacks callbacks);
  ~CellEndpoint();  // stop("the cell ends")

  void start();
  // Says Goodbye to every gateway, sends what is published, joins the io thread. Idempotent.
  void stop(const std::string& reason);

  // Hands over the events of one step, from any thread, without blocking: one frame per gateway.
  // False when the queue is full; the links are then cut, so that every gateway learns that it lost
  // something, and all its sequences are cancelled.
  bool publish(std::vector<TokenEvent> events);
  // Before the sequence's first token. Keeps its order with publish() calls of the same thread.
  bool publish(PromptLogprobsEvent event);

  // The cell drains, as callbacks.status says from now on: tells every gateway at once, and dials
  // none any more. Any thread.
  void announce_drain();
  // After announce_drain(): whether every linked gateway has answered a heartbeat that said so.
  // None sends work after that answer. Any thread.
  bool drain_confirmed() const;

  CellEndpointStats stats() const;  // any thread

 private:
  struct Impl;
  explicit CellEndpoint(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace millrace::net
