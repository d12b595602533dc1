// Communicator: the messages and collectives that the ranks of a cell use, over host memory.
//
// Backends: thread_communicator.h (ranks are threads of one process) and mpi_communicator.h. Both
// give the same results bit for bit: the collectives are written once, here, over point-to-point
// messages, and reduce_scatter_sum adds in ascending rank order.
//
// Time. No call waits longer than options().deadline without an answer from its peer; then it
// throws CommError and the communicator is broken for good (comm_error.h). The calls with a timeout
// of their own (recv_any) return nothing instead: for them silence is normal.
//
// Order. Messages of one (sender, receiver, tag) arrive in the order sent. Every rank of the
// communicator calls the collectives in the same order. Point-to-point messages and collectives do
// not see each other.
//
// Threads. A communicator belongs to one thread; only abort() may be called from any.
//
// Memory. Buffers belong to the caller and are free again when the call returns, except for isend.
// After warm-up no call allocates, when message sizes do not grow.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/backoff.h"
#include "parallel/comm_error.h"

namespace millrace::parallel {

struct CommOptions {
  std::chrono::milliseconds deadline{10'000};
  BackoffPolicy backoff;
  std::size_t max_posted = 256;  // messages of post() that no peer has taken yet
};

inline constexpr int kAnyPeer = -1;
inline constexpr int kMaxTag = 32'767;  // user tags are 0..kMaxTag; MPI promises no more

struct Envelope {
  int peer = kNoPeer;
  std::size_t bytes = 0;
};

// Bytes [offset, offset + bytes) of a buffer: what goes to, or comes from, one peer.
struct ByteRange {
  std::size_t offset = 0;
  std::size_t bytes = 0;
};

// Names a send in progress; plain value. A default handle, and one already seen done, are done.
struct SendHandle {
  std::uint32_t slot = UINT32_MAX;
  std::uint32_t generation = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual std::string_view transport() const = 0;  // "threads", "mpi"
  const CommOptions& options() const { return options_; }
  void set_deadline(std::chrono::milliseconds deadline) { options_.deadline = deadline; }

  // --- point to point; peer != rank() ---

  // Returns when `data` may be reused, possibly only when the peer receives: never rely on
  // buffering.
  void send(int peer, int tag, std::span<const std::byte> data);
  // `data` stays untouched and alive until done(handle) or wait(handle): no copy is made.
  SendHandle isend(int peer, int tag, std::span<const std::byte> data);
  bool done(SendHandle handle);
  void wait(SendHandle handle);
  // Copies `data` into a pooled buffer and returns: control messages to a peer that may be busy.
  // Waits, up to the deadline, only when max_posted messages are on their way. flush() waits for
  // all of them.
  void post(int peer, int tag, std::span<const std::byte> data);
  void flush();

  // Returns the size received; a longer message than `data` is a CommError.
  std::size_t recv(int peer, int tag, std::span<std::byte> data);
  // The size of the next message of (peer, tag), if it is here. kAnyPeer is allowed.
  std::optional<std::size_t> poll(int peer, int tag);
  // Take a whole message into `out` (resized, capacity kept). try_recv does not wait; recv_any
  // waits up to `timeout` for any peer; an idle wait costs under 2 % of a core.
  std::optional<Envelope> try_recv(int peer, int tag, std::vector<std::byte>& out);
  std::optional<Envelope> recv_any(int tag, std::vector<std::byte>& out,
                                   std::chrono::milliseconds timeout);
  // Moves sends in progress on. Every call above does; a rank that computes for long with an isend
  // or post on its way calls it now and then (once a layer is plenty).
  void progress();

  // --- collectives ---

  void barrier();
  void broadcast(int root, std::span<std::byte> data);  // same size on all ranks
  // all: size() blocks of mine.size() bytes by rank.
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all);
  // send, recv: size() blocks of bytes_per_peer by peer.
  void all_to_all(std::span<const std::byte> send, std::span<std::byte> recv,
                  std::size_t bytes_per_peer);
  // One range per peer; rank a's send_ranges[b].bytes must equal rank b's recv_ranges[a].bytes.
  // Empty ranges cost no message. exchange_counts tells the sizes beforehand where they are not
  // known.
  void all_to_all_v(std::span<const std::byte> send, std::span<const ByteRange> send_ranges,
                    std::span<std::byte> recv, std::span<const ByteRange> recv_ranges);
  void exchange_counts(std::span<const std::uint64_t> to_peers,
                       std::span<std::uint64_t> from_peers);
  // in: size() blocks of out.size() floats. out[i] = in_0[i] + in_1[i] + ... by ascending rank,
  // starting from rank 0's value, so adding -0.0 (the neutral element of f32 addition) changes no
  // bit.
  void reduce_scatter_sum(std::span<const float> in, std::span<float> out);

  // Collective over all ranks. Ranks of one color become a communicator, ordered by (key, rank);
  // a negative color takes part and gets nullptr.
  std::unique_ptr<Communicator> split(int color, int key);

  // Makes pending and later calls of this rank throw; in a thread group, those of all ranks and of
  // all communicators split from it. MPI peers notice when this process has exited non-zero.
  virtual void abort(std::string_view reason) noexcept = 0;

 protected:
  using RecvHandle = SendHandle;

  Communicator(int rank, int size, CommOptions options)
      : rank_(rank), size_(size), options_(options) {}

  // The transport. None of these waits; all may throw CommError. Tags may exceed kMaxTag here.
  virtual SendHandle start_send(int peer, int tag, std::span<const std::byte> data) = 0;
  virtual bool send_done(SendHandle handle) = 0;
  virtual RecvHandle start_recv(int peer, int tag, std::span<std::byte> data) = 0;
  virtual std::optional<std::size_t> recv_done(RecvHandle handle) = 0;  // once: frees the handle
  virtual std::optional<Envelope> probe(int peer, int tag) = 0;
  virtual std::unique_ptr<Communicator> make_split(int color, std::span<const int> members) = 0;
  // Throws if abort() was called.
  virtual void check_abort(const char* operation) = 0;
  // Moves requests on where nothing else does (the tests above do).
  virtual void drive() {}
  // Sleeps for `advised` (the policy's) or until something arrives, whichever the transport can do,
  // but never much longer than `limit`.
  virtual void wait_event(std::chrono::microseconds advised, std::chrono::microseconds limit);
  // Lets go of all pending requests after a failure, so that no buffer of the caller is touched
  // again where the transport can promise that (threads can; MPI cannot, its process leaves).
  virtual void abandon() noexcept = 0;

  // Collectives use kCollectiveTag + (sequence number modulo kCollectiveTags).
  static constexpr int kCollectiveTag = 1 << 20;
  static constexpr int kCollectiveTags = 1 << 15;

  // For a destructor with posts still on their way in a transport that cannot take them back.
  void leak_posted() noexcept;

 private:
  struct Posted {
    std::vector<std::byte> data;
    SendHandle handle;
  };
  struct PendingSend {
    int peer;
    SendHandle handle;
  };
  struct PendingRecv {
    int peer;
    RecvHandle handle;
    std::size_t bytes;
  };

  template <class Body>
  auto guarded(const char* operation, Body body);
  template <class Ready>
  bool wait_until(const char* operation, std::chrono::microseconds limit, Ready ready);
  template <class Ready>
  void wait_or_fail(const char* operation, const int& peer, Ready ready);
  void check_peer(const char* operation, int peer, int tag, bool any_allowed) const;
  void wait_send(const char* operation, int peer, SendHandle handle);
  std::size_t wait_recv(const char* operation, int peer, RecvHandle handle);
  Envelope take(const char* operation, Envelope envelope, int tag, std::vector<std::byte>& out);
  Posted& free_post_slot(int peer);
  bool drop_finished_receives(const char* operation, int& waiting_for);
  bool drop_finished_sends(int& waiting_for);
  void exchange(const char* operation, std::span<const std::byte> send,
                std::span<const ByteRange> send_ranges, std::span<std::byte> recv,
                std::span<const ByteRange> recv_ranges);

  int rank_;
  int size_;
  CommOptions options_;
  std::optional<std::string> failure_;
  std::uint32_t collective_sequence_ = 0;
  std::deque<Posted> posted_;
  std::vector<PendingSend> collective_sends_;
  std::vector<PendingRecv> collective_recvs_;
  std::vector<ByteRange> send_ranges_, recv_ranges_;
  std::vector<std::byte> barrier_scratch_;
  std::vector<float> reduce_scratch_;
};

}  // namespace millrace::parallel
