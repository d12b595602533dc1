#include "net/gateway_stream.h"

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace millrace::net {

namespace asio = boost::asio;

void StreamState::wake() {
  if (!waiter || (buffer.empty() && !error && open_choices > 0)) return;
  StreamBatch batch{std::exchange(buffer, {}), error, open_choices == 0};
  std::exchange(waiter, nullptr)(std::move(batch));
}

void StreamState::wait(std::uint64_t number, std::function<void(StreamBatch)> consumer) {
  waiter = std::move(consumer);
  wait_number = number;
  wake();
}

void StreamState::abort_wait(std::uint64_t number) {
  if (waiter && wait_number == number) std::exchange(waiter, nullptr)(StreamBatch{});
}

void StreamWaits::watch(const Strand& strand, const std::shared_ptr<StreamState>& stream) {
  auto& waits = asio::use_service<StreamWaits>(
      asio::query(strand.get_inner_executor(), asio::execution::context));
  const std::lock_guard lock(waits.mutex_);
  if (waits.streams_.size() >= waits.next_sweep_) {
    std::erase_if(waits.streams_, [](const auto& weak) { return weak.expired(); });
    waits.next_sweep_ = 2 * waits.streams_.size() + 64;
  }
  waits.streams_.push_back(stream);
}

void StreamWaits::shutdown() {
  for (const auto& weak : std::exchange(streams_, {})) {
    if (const auto stream = weak.lock()) std::exchange(stream->waiter, nullptr);
  }
}

GatewayStream::GatewayStream(Strand strand, std::shared_ptr<StreamState> state,
                             StreamControl control)
    : strand_(std::move(strand)), state_(std::move(state)), control_(std::move(control)) {}

GatewayStream::~GatewayStream() {
  if (!taken_.ended) control_.abandon(state_);
}

void GatewayStream::cancel(std::uint32_t choice) { control_.cancel(state_, choice); }

asio::awaitable<StreamBatch> GatewayStream::take() {
  // Captured by value: the handler may outlive this object when the io_context is torn down.
  auto initiate = [strand = strand_, state = state_, number = ++waits_](auto handler) {
    auto slot = asio::get_associated_cancellation_slot(handler);
    if (slot.is_connected()) {
      slot.assign([strand, weak = std::weak_ptr(state), number](asio::cancellation_type) {
        asio::post(strand, [weak, number] {
          if (const auto s = weak.lock()) s->abort_wait(number);
        });
      });
    }
    auto shared = std::make_shared<decltype(handler)>(std::move(handler));
    auto resume = [shared](StreamBatch batch) {
      const auto executor = asio::get_associated_executor(*shared);
      asio::post(executor,
                 [shared, b = std::move(batch)]() mutable { std::move (*shared)(std::move(b)); });
    };
    asio::dispatch(strand, [state, number, resume = std::move(resume)]() mutable {
      state->wait(number, std::move(resume));
    });
  };
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>&, void(StreamBatch)>(
      std::move(initiate), asio::use_awaitable);
}

asio::awaitable<Result<std::optional<ChoiceEvent>>> GatewayStream::next() {
  while (true) {
    if (position_ < taken_.events.size()) {
      ChoiceEvent& event = taken_.events[position_++];
      // Choices of one prompt share what the first of them computes: that is not from before.
      const auto* token = std::get_if<TokenEvent>(&event.event);
      if (token != nullptr && event.choice == 0) cached_ += token->cached_tokens;
      co_return std::optional<ChoiceEvent>(std::move(event));
    }
    if (taken_.error) co_return *taken_.error;
    if (taken_.ended) co_return std::optional<ChoiceEvent>();
    taken_ = co_await take();
    position_ = 0;
    // The caller no longer looks at this call's result: keep what came for the next one.
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (cancellation.cancelled() != asio::cancellation_type::none) {
      co_return Error{ErrorCode::kDeadlineExceeded, "",
                      "the wait for the next token was cancelled"};
    }
  }
}

}  // namespace millrace::net
