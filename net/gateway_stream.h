// One request's stream inside the gateway: a bounded buffer between the gateway's strand, which
// fills it, and the consumer, which may run on any executor of the same io_context.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "net/cell_link.h"
#include "net/engine.h"

namespace millrace::net {

// What the consumer takes at once.
struct StreamBatch {
  std::vector<ChoiceEvent> events;
  std::optional<Error> error;  // the request has failed as a whole; comes after `events`
  bool ended = false;          // all choices have finished; nothing follows `events`
};

// The producer's half; on the gateway's strand only.
struct StreamState {
  std::vector<RequestId> ids;  // one per choice; 0 once that choice has finished
  std::uint32_t open_choices = 0;
  std::vector<ChoiceEvent> buffer;
  std::optional<Error> error;
  std::function<void(StreamBatch)> waiter;  // the consumer waits for something
  std::uint64_t wait_number = 0;

  // Lets the waiting consumer go on when there is something for it.
  void wake();
  void wait(std::uint64_t number, std::function<void(StreamBatch)> consumer);
  // The consumer gives up the wait `number`; it gets an empty batch.
  void abort_wait(std::uint64_t number);
};

// Ends the waits of an execution context when it shuts down, as Asio asks of whoever keeps
// handlers: the waiting consumer owns its stream, and the stream the wait, so nothing else would.
class StreamWaits final : public boost::asio::execution_context::service {
 public:
  inline static boost::asio::execution_context::id id;

  explicit StreamWaits(boost::asio::execution_context& context) : service(context) {}

  static void watch(const Strand& strand, const std::shared_ptr<StreamState>& stream);

 private:
  void shutdown() override;

  std::mutex mutex_;  // guards the rest
  std::vector<std::weak_ptr<StreamState>> streams_;
  std::size_t next_sweep_ = 64;  // streams that are gone are forgotten at this size
};

// How a stream reaches its gateway: both are called from the consumer's executor and post to the
// strand.
struct StreamControl {
  std::function<void(std::shared_ptr<StreamState>, std::uint32_t choice)> cancel;
  std::function<void(std::shared_ptr<StreamState>)> abandon;
};

// The consumer's half. A wait may be cancelled through Asio's cancellation (`stream.next() ||
// timer`): no event is lost by that, the next call gives it.
class GatewayStream final : public GenerationStream {
 public:
  GatewayStream(Strand strand, std::shared_ptr<StreamState> state, StreamControl control);
  ~GatewayStream() override;

  boost::asio::awaitable<Result<std::optional<ChoiceEvent>>> next() override;
  void cancel(std::uint32_t choice) override;
  std::uint32_t cached_prompt_tokens() const override { return cached_; }

 private:
  boost::asio::awaitable<StreamBatch> take();

  Strand strand_;
  std::shared_ptr<StreamState> state_;
  StreamControl control_;
  StreamBatch taken_;         // what next() hands out
  std::size_t position_ = 0;  // in taken_.events
  std::uint64_t waits_ = 0;
  std::uint32_t cached_ = 0;
};

}  // namespace millrace::net
