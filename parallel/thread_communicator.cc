#include "parallel/thread_communicator.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "config/check.h"

namespace millrace::parallel {

namespace {

using std::chrono::microseconds;

// Sub-groups are not told of an abort, their waits look for it this often.
constexpr microseconds kAbortCheck{20'000};

// Shared by a group and everything split from it.
struct AbortState {
  std::atomic<bool> aborted{false};
  std::mutex mutex;
  std::string reason;

  void set(std::string_view why) {
    const std::lock_guard lock(mutex);
    if (aborted.load(std::memory_order_relaxed)) return;
    reason = why;
    aborted.store(true, std::memory_order_release);
  }

  void check(const char* operation, const CommOptions& options) {
    if (!aborted.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex);
    throw CommError(operation, kNoPeer, options.deadline, "aborted: " + reason);
  }
};

struct Message {
  int source;
  int tag;
  std::uint32_t slot;  // of the source's sends
  std::span<const std::byte> data;
};

struct SendSlot {
  std::uint32_t generation = 0;
  bool pending = false;
};

// One per rank, guarded by its mutex; no thread ever holds two. `incoming` are messages for the
// rank that nobody has taken yet, `sends` the rank's own that may still be read by a receiver.
// `events` counts deliveries and completions, so that a waiter cannot miss one.
struct Mailbox {
  // How many there are at once depends on who lags: room for more than workers ever have keeps
  // their steps from the heap (contract C5).
  static constexpr std::size_t kUsual = 64;
  Mailbox() {
    incoming.reserve(kUsual);
    sends.reserve(kUsual);
    free_sends.reserve(kUsual);
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t events = 0;
  std::vector<Message> incoming;
  std::vector<SendSlot> sends;
  std::vector<std::uint32_t> free_sends;

  void notify_locked() {
    ++events;
    changed.notify_all();
  }
};

}  // namespace

struct ThreadGroupState {
  ThreadGroupState(int group_size, std::shared_ptr<AbortState> abort_state)
      : size(group_size), mailboxes(group_size), abort(std::move(abort_state)) {}

  void abort_all(std::string_view reason) {
    abort->set(reason);
    for (Mailbox& mailbox : mailboxes) {
      const std::lock_guard lock(mailbox.mutex);
      mailbox.notify_locked();
    }
  }

  // The first member of a color to arrive makes the sub-group, the last one forgets it here.
  std::shared_ptr<ThreadGroupState> join_split(std::uint64_t sequence, int color, int members) {
    const std::lock_guard lock(split_mutex);
    auto [entry, first] = splits.try_emplace({sequence, color});
    if (first) entry->second = {std::make_shared<ThreadGroupState>(members, abort), members};
    auto group = entry->second.first;
    if (--entry->second.second == 0) splits.erase(entry);
    return group;
  }

  const int size;
  std::deque<Mailbox> mailboxes;
  const std::shared_ptr<AbortState> abort;
  std::mutex split_mutex;
  std::map<std::pair<std::uint64_t, int>, std::pair<std::shared_ptr<ThreadGroupState>, int>> splits;
};

namespace {

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroupState> group, int rank, CommOptions options)
      : Communicator(rank, group->size, options),
        group_(std::move(group)),
        mine_(&group_->mailboxes[rank]) {
    recvs_.reserve(Mailbox::kUsual);
  }

  std::string_view transport() const override { return "threads"; }

  ~ThreadCommunicator() override { abandon(); }

  void abort(std::string_view reason) noexcept override { group_->abort_all(reason); }

 protected:
  SendHandle start_send(int peer, int tag, std::span<const std::byte> data) override {
    group_->abort->check("send", options());
    const SendHandle handle = new_send();
    Mailbox& theirs = group_->mailboxes[peer];
    const std::lock_guard lock(theirs.mutex);
    theirs.incoming.push_back({rank(), tag, handle.slot, data});
    theirs.notify_locked();
    return handle;
  }

  bool send_done(SendHandle handle) override {
    if (handle.slot == UINT32_MAX) return true;
    const std::lock_guard lock(mine_->mutex);
    SendSlot& slot = mine_->sends[handle.slot];
    if (slot.generation != handle.generation) return true;
    if (slot.pending) return false;
    ++slot.generation;
    mine_->free_sends.push_back(handle.slot);
    return true;
  }

  RecvHandle start_recv(int peer, int tag, std::span<std::byte> data) override {
    group_->abort->check("recv", options());
    std::uint32_t slot = 0;
    while (slot < recvs_.size() && recvs_[slot].active) ++slot;
    if (slot == recvs_.size()) recvs_.emplace_back();
    recvs_[slot] = {true, peer, tag, data};
    return {slot, 0};
  }

  std::optional<std::size_t> recv_done(RecvHandle handle) override {
    Recv& recv = recvs_[handle.slot];
    const auto message = take_incoming(recv.peer, recv.tag);
    if (!message) return std::nullopt;
    recv.active = false;
    const bool fits = message->data.size() <= recv.data.size();
    if (fits && !message->data.empty()) {
      std::memcpy(recv.data.data(), message->data.data(), message->data.size());
    }
    complete_send(*message);
    if (!fits) {
      throw CommError("recv", recv.peer, options().deadline,
                      fmt::format("message of {} bytes for a buffer of {}", message->data.size(),
                                  recv.data.size()));
    }
    return message->data.size();
  }

  std::optional<Envelope> probe(int peer, int tag) override {
    group_->abort->check("poll", options());
    const std::lock_guard lock(mine_->mutex);
    for (const Message& message : mine_->incoming) {
      if (message.tag == tag && (peer == kAnyPeer || peer == message.source)) {
        return Envelope{message.source, message.data.size()};
      }
    }
    return std::nullopt;
  }

  std::unique_ptr<Communicator> make_split(int color, std::span<const int> members) override {
    const std::uint64_t sequence = splits_++;
    if (members.empty()) return nullptr;
    auto group = group_->join_split(sequence, color, static_cast<int>(members.size()));
    const auto self = std::find(members.begin(), members.end(), rank()) - members.begin();
    return std::make_unique<ThreadCommunicator>(std::move(group), static_cast<int>(self),
                                                options());
  }

  void check_abort(const char* operation) override { group_->abort->check(operation, options()); }

  // Woken by every delivery and completion, so the policy's short sleeps are not needed.
  void wait_event(microseconds, microseconds limit) override {
    std::unique_lock lock(mine_->mutex);
    if (mine_->events == seen_events_) {
      mine_->changed.wait_for(lock, std::min(limit, kAbortCheck));
    }
    seen_events_ = mine_->events;
  }

  void abandon() noexcept override {
    recvs_.clear();
    for (Mailbox& theirs : group_->mailboxes) {
      std::unique_lock lock(theirs.mutex);
      std::vector<std::uint32_t> taken_back;
      std::erase_if(theirs.incoming, [&](const Message& message) {
        if (message.source == rank()) taken_back.push_back(message.slot);
        return message.source == rank();
      });
      lock.unlock();
      const std::lock_guard own(mine_->mutex);
      for (const std::uint32_t slot : taken_back) mine_->sends[slot].pending = false;
    }
    // What is still pending is being copied by a receiver at this moment.
    std::unique_lock lock(mine_->mutex);
    mine_->changed.wait(lock, [&] {
      return std::none_of(mine_->sends.begin(), mine_->sends.end(),
                          [](const SendSlot& slot) { return slot.pending; });
    });
  }

 private:
  struct Recv {
    bool active = false;
    int peer = kNoPeer;
    int tag = 0;
    std::span<std::byte> data;
  };

  SendHandle new_send() {
    const std::lock_guard lock(mine_->mutex);
    if (mine_->free_sends.empty()) {
      mine_->free_sends.push_back(static_cast<std::uint32_t>(mine_->sends.size()));
      mine_->sends.emplace_back();
    }
    const std::uint32_t slot = mine_->free_sends.back();
    mine_->free_sends.pop_back();
    mine_->sends[slot].pending = true;
    return {slot, mine_->sends[slot].generation};
  }

  std::optional<Message> take_incoming(int peer, int tag) {
    const std::lock_guard lock(mine_->mutex);
    const auto found = std::find_if(
        mine_->incoming.begin(), mine_->incoming.end(),
        [&](const Message& message) { return message.source == peer && message.tag == tag; });
    if (found == mine_->incoming.end()) return std::nullopt;
    const Message message = *found;
    mine_->incoming.erase(found);
    return message;
  }

  void complete_send(const Message& message) {
    Mailbox& theirs = group_->mailboxes[message.source];
    const std::lock_guard lock(theirs.mutex);
    theirs.sends[message.slot].pending = false;
    theirs.notify_locked();
  }

  std::shared_ptr<ThreadGroupState> group_;
  Mailbox* mine_;
  std::vector<Recv> recvs_;  // this thread's only
  std::uint64_t seen_events_ = 0;
  std::uint64_t splits_ = 0;
};

}  // namespace

ThreadGroup::ThreadGroup(int size, CommOptions options)
    : state_(std::make_shared<ThreadGroupState>(size, std::make_shared<AbortState>())),
      options_(options),
      taken_(size, false) {
  CHECK(size > 0, "size={}", size);
}

ThreadGroup::~ThreadGroup() = default;

int ThreadGroup::size() const { return state_->size; }

std::unique_ptr<Communicator> ThreadGroup::take(int rank) {
  CHECK(rank >= 0 && rank < size(), "rank={} size={}", rank, size());
  const std::lock_guard lock(state_->split_mutex);  // guards taken_ too: vector<bool> shares bytes
  CHECK(!taken_[rank], "rank {} was taken before", rank);
  taken_[rank] = true;
  return std::make_unique<ThreadCommunicator>(state_, rank, options_);
}

void ThreadGroup::abort(std::string_view reason) noexcept { state_->abort_all(reason); }

}  // namespace millrace::parallel
