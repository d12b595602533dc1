// The gateway's end of the road to its cells: listens, admits cells, watches their health.
//
// A cell dials in, says Hello and is admitted when its secret and model fingerprint match and its
// epoch is new: an epoch above the one known replaces the old session, a lower one is refused, and
// an equal one is refused while its session lives (a cell whose connection broke may come back; it
// has cancelled everything it ran for us).
//
// Health (contract C4) is judged by what arrives: silence makes a cell suspect after half the
// heartbeat limit and gone after the whole; work without a finished step makes it suspect after
// progress_limit and gone after stall_limit. Suspect and draining cells get no new work. Time in
// which this side was kept from running does not count against a cell.
//
// Everything runs on one strand, observer calls included. close() before destruction.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config/result.h"
#include "coordinator/request.h"
#include "net/frame.h"
#include "net/journal.h"

namespace millrace::net {

using Strand = boost::asio::strand<boost::asio::any_io_executor>;

enum class CellState : std::uint8_t { kJoining, kHealthy, kSuspect, kDraining, kGone };
std::string_view to_string(CellState state);

struct CellLinkConfig {
  std::string listen_address = "127.0.0.1";
  std::uint16_t port = 0;         // 0: any free one; CellLinks::port() tells
  std::string secret;             // empty: none is asked for
  std::string model_fingerprint;  // empty: the first cell decides
  std::uint32_t max_cells = 64;
  std::chrono::milliseconds hello_deadline{5000};   // from accept to a complete Hello
  std::chrono::milliseconds heartbeat_limit{3000};  // cells beat once a second
  std::chrono::milliseconds progress_limit{10000};  // work and no step for longer: suspect
  std::chrono::milliseconds stall_limit{60000};     // ... for longer: gone
  FrameLimits frame;
};

struct CellView {
  CellInfo info;
  CellState state = CellState::kJoining;
  CellStatus status;                           // of the last heartbeat
  std::uint64_t heartbeats = 0;                // of this session
  std::chrono::milliseconds heartbeat_age{0};  // since the last frame of any kind
  std::chrono::milliseconds progress_age{0};   // since a step finished; 0 without work
  std::string reason;                          // why not healthy
};

// Called on the strand, never from inside a CellLinks call made by the observer, except
// on_cell_gone from close().
class CellObserver {
 public:
  virtual ~CellObserver() = default;
  virtual void on_cell_joined(const CellInfo& info) = 0;
  virtual void on_tokens(const Assignment& from, std::span<TokenEvent> events) = 0;
  virtual void on_prompt_logprobs(const Assignment& from, PromptLogprobsEvent event) = 0;
  virtual void on_telemetry(const Assignment& from, const CellTelemetry& telemetry) = 0;
  // After a heartbeat or a change of state.
  virtual void on_cell_changed(const CellView& cell) = 0;
  // Its session is over; whatever ran there is lost. `expected` after a Goodbye, a replacement by a
  // higher epoch, or close().
  virtual void on_cell_gone(const Assignment& cell, const std::string& reason, bool expected) = 0;
};

struct CellLinkStats {
  std::uint64_t joined = 0;
  std::uint64_t replaced = 0;  // by a higher epoch
  std::uint64_t refused = 0;
  std::uint64_t lost = 0;          // gone without a Goodbye
  std::uint64_t stale_frames = 0;  // of another epoch than their session's: dropped
  std::uint64_t bad_frames = 0;    // closed their connection
};

class CellLinks {
 public:
  CellLinks(Strand strand, CellLinkConfig config, CellObserver& observer);
  ~CellLinks();

  // Binds and starts accepting. The error names the address.
  Result<void> listen();
  std::uint16_t port() const;

  // False when the cell is not connected at this epoch; nothing was sent then.
  bool submit(const Assignment& to, const SequenceRequest& request);
  void cancel(const Assignment& at, RequestId id);
  // Tells every cell that this gateway will send no more work.
  void drain_cells();
  // Ends every session with a Goodbye and stops listening. on_cell_gone follows for each.
  void close(const std::string& reason);

  std::vector<CellView> cells() const;  // connected ones
  CellLinkStats stats() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace millrace::net
