#include "parallel/communicator.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "config/check.h"
#include "parallel/communicator_wait.h"
#include "parallel/keep_for_good.h"

namespace millrace::parallel {

using std::chrono::microseconds;
using std::chrono::milliseconds;

CommError::CommError(std::string operation, int peer, milliseconds deadline, std::string detail)
    : std::runtime_error(fmt::format("{}{}: {} (deadline {} ms)", operation,
                                     peer == kNoPeer ? "" : fmt::format(" with rank {}", peer),
                                     detail, deadline.count())),
      operation_(std::move(operation)),
      peer_(peer),
      deadline_(deadline),
      detail_(std::move(detail)) {}

void Communicator::wait_event(microseconds advised, microseconds limit) {
  std::this_thread::sleep_for(std::min(advised, limit));
}

void Communicator::check_peer(const char* operation, int peer, int tag, bool any_allowed) const {
  const bool peer_ok =
      (peer >= 0 && peer < size_ && peer != rank_) || (any_allowed && peer == kAnyPeer);
  CHECK(peer_ok && tag >= 0 && tag <= kMaxTag, "{}: peer={} tag={} rank={} size={}", operation,
        peer, tag, rank_, size_);
}

void Communicator::wait_send(const char* operation, int peer, SendHandle handle) {
  wait_or_fail(operation, peer, [&] { return send_done(handle); });
}

std::size_t Communicator::wait_recv(const char* operation, int peer, RecvHandle handle) {
  std::optional<std::size_t> bytes;
  wait_or_fail(operation, peer, [&] { return (bytes = recv_done(handle)).has_value(); });
  return *bytes;
}

void Communicator::send(int peer, int tag, std::span<const std::byte> data) {
  check_peer("send", peer, tag, false);
  guarded("send", [&] { wait_send("send", peer, start_send(peer, tag, data)); });
}

SendHandle Communicator::isend(int peer, int tag, std::span<const std::byte> data) {
  check_peer("isend", peer, tag, false);
  return guarded("isend", [&] { return start_send(peer, tag, data); });
}

bool Communicator::done(SendHandle handle) {
  return guarded("done", [&] {
    check_abort("done");
    return send_done(handle);
  });
}

void Communicator::wait(SendHandle handle) {
  guarded("wait", [&] { wait_send("wait", kNoPeer, handle); });
}

Communicator::Posted& Communicator::free_post_slot(int peer) {
  const auto find_free = [&]() -> Posted* {
    for (Posted& posted : posted_) {
      if (send_done(posted.handle)) return &posted;
    }
    return nullptr;
  };
  Posted* slot = find_free();
  if (slot == nullptr && posted_.size() < options_.max_posted) slot = &posted_.emplace_back();
  if (slot == nullptr) {
    wait_or_fail("post", peer, [&] { return (slot = find_free()) != nullptr; });
  }
  return *slot;
}

void Communicator::post(int peer, int tag, std::span<const std::byte> data) {
  check_peer("post", peer, tag, false);
  guarded("post", [&] {
    Posted& slot = free_post_slot(peer);
    slot.data.assign(data.begin(), data.end());
    slot.handle = start_send(peer, tag, slot.data);
  });
}

void Communicator::flush() {
  guarded("flush", [&] {
    wait_or_fail("flush", kNoPeer, [&] {
      return std::all_of(posted_.begin(), posted_.end(),
                         [&](const Posted& posted) { return send_done(posted.handle); });
    });
  });
}

void Communicator::leak_posted() noexcept { keep_for_good(std::move(posted_)); }

std::size_t Communicator::recv(int peer, int tag, std::span<std::byte> data) {
  check_peer("recv", peer, tag, false);
  return guarded("recv", [&] { return wait_recv("recv", peer, start_recv(peer, tag, data)); });
}

std::optional<std::size_t> Communicator::poll(int peer, int tag) {
  check_peer("poll", peer, tag, true);
  return guarded("poll", [&]() -> std::optional<std::size_t> {
    const auto envelope = probe(peer, tag);
    if (!envelope) return std::nullopt;
    return envelope->bytes;
  });
}

Envelope Communicator::take(const char* operation, Envelope envelope, int tag,
                            std::vector<std::byte>& out) {
  out.resize(envelope.bytes);
  envelope.bytes = wait_recv(operation, envelope.peer, start_recv(envelope.peer, tag, out));
  return envelope;
}

std::optional<Envelope> Communicator::try_recv(int peer, int tag, std::vector<std::byte>& out) {
  check_peer("try_recv", peer, tag, true);
  return guarded("try_recv", [&]() -> std::optional<Envelope> {
    const auto envelope = probe(peer, tag);
    if (!envelope) return std::nullopt;
    return take("try_recv", *envelope, tag, out);
  });
}

std::optional<Envelope> Communicator::recv_any(int tag, std::vector<std::byte>& out,
                                               milliseconds timeout) {
  check_peer("recv_any", kAnyPeer, tag, true);
  return guarded("recv_any", [&]() -> std::optional<Envelope> {
    std::optional<Envelope> envelope;
    const auto arrived = [&] { return (envelope = probe(kAnyPeer, tag)).has_value(); };
    if (!wait_until("recv_any", timeout, arrived)) return std::nullopt;
    return take("recv_any", *envelope, tag, out);
  });
}

void Communicator::progress() {
  guarded("progress", [&] {
    check_abort("progress");
    drive();
  });
}

}  // namespace millrace::parallel
