// The gateway: admits requests, holds them in a bounded queue, hands them to cells in batches, and
// brings every token back to its stream exactly once.
//
// One strand owns the queue, the journal, the cell links and the streams; it takes no lock.
// submit(), status(), retry_after() and the streams may be used from any thread of the io_context:
// admission is decided on atomic counters before any work, the rest is posted to the strand.
//
// How a request ends when something fails:
//   never admitted                     submit() gives the Error
//   waited too long, nothing started   next() gives kResourceExhausted, "gateway.queue_timeout"
//   its consumer is too slow           next() gives kResourceExhausted,
//                                      "gateway.stream_buffer_tokens"
//   gateway stopped                    next() gives kUnavailable
//   its cell died or gave it up        nothing: it waits in front of what has not begun, and the
//                                      next cell goes on after its last token (contract C2)
//   no cell does so in time, or the    the choice gets a TokenEvent without token, kError and a
//   next ones die over it as well      sentence; likewise when its cell refuses it for good
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/result.h"
#include "net/cell_link.h"
#include "net/engine.h"
#include "net/journal.h"

namespace millrace {
class Exporter;
}

namespace millrace::net {

struct GatewayConfig {
  CellLinkConfig cells;
  std::string model_name;  // these two only for the status page
  std::string version;
  std::uint32_t max_queued_sequences = 2048;   // waiting in the gateway
  std::uint64_t max_queued_tokens = 4U << 20;  // their prompts together, 4 bytes each
  std::uint32_t cell_queue_depth = 8;  // sequences waiting in a cell beyond its max_sequences,
                                       // so that a freed slot is filled in the next step
  std::chrono::milliseconds queue_timeout{60000};
  std::uint32_t max_replays = 3;  // of a sequence in a row, without a token between them
  std::chrono::milliseconds replay_timeout{300000};  // from a loss to the next cell
  std::uint32_t stream_buffer_tokens = 4096;         // events a stream may hold for its consumer
};

struct GatewayStats {
  std::uint64_t admitted = 0;             // sequences
  std::uint64_t rejected_queue_full = 0;  // requests, by reason
  std::uint64_t rejected_token_budget = 0;
  std::uint64_t rejected_no_cell = 0;
  std::uint64_t rejected_draining = 0;
  std::uint64_t finished_ok = 0;  // sequences: stop or length
  std::uint64_t cancelled = 0;
  std::uint64_t failed = 0;          // ended with an error event
  std::uint64_t replayed = 0;        // times that a sequence went back to the queue
  std::uint64_t queue_timeouts = 0;  // of what no cell had begun
  std::uint64_t slow_consumers = 0;
  JournalStats journal;
  CellLinkStats links;
};

class Gateway final : public Engine {
 public:
  // Binds the cells' port and runs on `executor`. `metrics` may be null; otherwise it outlives the
  // gateway.
  static Result<std::unique_ptr<Gateway>> start(boost::asio::any_io_executor executor,
                                                GatewayConfig config, Exporter* metrics);
  // stop() must have been called and its posted work run, or the io_context must be stopped.
  ~Gateway() override;

  Result<std::unique_ptr<GenerationStream>> submit(GenerateRequest request) override;
  EngineStatus status() const override;
  // From the measured drain rate: queued sequences over sequences finished per second; 1 to 60 s.
  std::chrono::seconds retry_after() const override;

  // Refuses new work at once, waits until every stream has ended or `limit` is over, then tells the
  // cells. True when all ended by themselves.
  boost::asio::awaitable<bool> drain(std::chrono::milliseconds limit);
  // Ends every stream with kUnavailable and every link with a Goodbye. Any thread; idempotent.
  void stop();

  std::uint16_t cell_port() const;
  boost::asio::awaitable<GatewayStats> stats() const;
  // What the status page shows: JSON, made once a second, never null. Its figures
  // come from `metrics`: without it they are 0. Fields and units: docs/status.md. Any thread.
  std::shared_ptr<const std::string> status_text() const;
  boost::asio::awaitable<std::vector<CellView>> cells() const;

 private:
  struct Impl;
  explicit Gateway(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace millrace::net
