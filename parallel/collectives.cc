// The collectives of Communicator: all of them are one exchange() of byte ranges.
#include <algorithm>
#include <cstring>

#include "config/check.h"
#include "parallel/communicator.h"
#include "parallel/communicator_wait.h"

namespace millrace::parallel {

bool Communicator::drop_finished_receives(const char* operation, int& waiting_for) {
  std::erase_if(collective_recvs_, [&](const PendingRecv& pending) {
    const auto bytes = recv_done(pending.handle);
    if (bytes && *bytes != pending.bytes) {
      throw CommError(
          operation, pending.peer, options_.deadline,
          fmt::format("got {} bytes where {} were due: the ranks disagree about the call", *bytes,
                      pending.bytes));
    }
    return bytes.has_value();
  });
  if (!collective_recvs_.empty()) waiting_for = collective_recvs_.front().peer;
  return collective_recvs_.empty();
}

bool Communicator::drop_finished_sends(int& waiting_for) {
  std::erase_if(collective_sends_, [&](const PendingSend& p) { return send_done(p.handle); });
  if (!collective_sends_.empty()) waiting_for = collective_sends_.front().peer;
  return collective_sends_.empty();
}

// Every rank posts its receives, then its sends, starting with its right neighbour so that not all
// ranks fall upon rank 0 at once, and waits for all of them under one deadline.
void Communicator::exchange(const char* operation, std::span<const std::byte> send,
                            std::span<const ByteRange> send_ranges, std::span<std::byte> recv,
                            std::span<const ByteRange> recv_ranges) {
  CHECK(send_ranges.size() == static_cast<std::size_t>(size_) &&
            recv_ranges.size() == send_ranges.size(),
        "{}: {} and {} ranges for {} ranks", operation, send_ranges.size(), recv_ranges.size(),
        size_);
  const auto fits = [](const ByteRange& range, std::size_t size) {
    return range.offset <= size && range.bytes <= size - range.offset;
  };
  const int tag = kCollectiveTag + static_cast<int>(collective_sequence_++ % kCollectiveTags);
  collective_recvs_.clear();
  collective_sends_.clear();
  for (int step = 1; step < size_; ++step) {
    const int peer = (rank_ + size_ - step) % size_;
    const ByteRange range = recv_ranges[peer];
    if (range.bytes == 0) continue;
    CHECK(fits(range, recv.size()), "{}: range of peer {} leaves the buffer", operation, peer);
    const RecvHandle handle = start_recv(peer, tag, recv.subspan(range.offset, range.bytes));
    collective_recvs_.push_back({peer, handle, range.bytes});
  }
  for (int step = 1; step < size_; ++step) {
    const int peer = (rank_ + step) % size_;
    const ByteRange range = send_ranges[peer];
    if (range.bytes == 0) continue;
    CHECK(fits(range, send.size()), "{}: range of peer {} leaves the buffer", operation, peer);
    collective_sends_.push_back(
        {peer, start_send(peer, tag, send.subspan(range.offset, range.bytes))});
  }
  const ByteRange from = send_ranges[rank_], to = recv_ranges[rank_];
  CHECK(from.bytes == to.bytes && fits(from, send.size()) && fits(to, recv.size()),
        "{}: own block is {} bytes out, {} in", operation, from.bytes, to.bytes);
  if (from.bytes > 0) std::memmove(recv.data() + to.offset, send.data() + from.offset, from.bytes);

  int waiting_for = kNoPeer;
  wait_or_fail(operation, waiting_for, [&] {
    const bool received = drop_finished_receives(operation, waiting_for);
    return drop_finished_sends(waiting_for) && received;
  });
}

void Communicator::all_to_all_v(std::span<const std::byte> send,
                                std::span<const ByteRange> send_ranges, std::span<std::byte> recv,
                                std::span<const ByteRange> recv_ranges) {
  guarded("all_to_all_v", [&] { exchange("all_to_all_v", send, send_ranges, recv, recv_ranges); });
}

void Communicator::all_to_all(std::span<const std::byte> send, std::span<std::byte> recv,
                              std::size_t bytes_per_peer) {
  guarded("all_to_all", [&] {
    send_ranges_.resize(size_);
    for (int peer = 0; peer < size_; ++peer) {
      send_ranges_[peer] = {peer * bytes_per_peer, bytes_per_peer};
    }
    exchange("all_to_all", send, send_ranges_, recv, send_ranges_);
  });
}

void Communicator::exchange_counts(std::span<const std::uint64_t> to_peers,
                                   std::span<std::uint64_t> from_peers) {
  all_to_all(std::as_bytes(to_peers), std::as_writable_bytes(from_peers), sizeof(std::uint64_t));
}

void Communicator::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  guarded("all_gather", [&] {
    send_ranges_.assign(size_, {0, mine.size()});
    recv_ranges_.resize(size_);
    for (int peer = 0; peer < size_; ++peer) recv_ranges_[peer] = {peer * mine.size(), mine.size()};
    exchange("all_gather", mine, send_ranges_, all, recv_ranges_);
  });
}

void Communicator::broadcast(int root, std::span<std::byte> data) {
  CHECK(root >= 0 && root < size_, "broadcast: root={} size={}", root, size_);
  guarded("broadcast", [&] {
    send_ranges_.assign(size_, {});
    recv_ranges_.assign(size_, {});
    if (rank_ == root) {
      for (int peer = 0; peer < size_; ++peer) {
        if (peer != root) send_ranges_[peer] = {0, data.size()};
      }
    } else {
      recv_ranges_[root] = {0, data.size()};
    }
    exchange("broadcast", data, send_ranges_, data, recv_ranges_);
  });
}

void Communicator::barrier() {
  guarded("barrier", [&] {
    // One byte to everyone: cells are small, and one wait has one deadline.
    send_ranges_.assign(size_, {0, 1});
    recv_ranges_.resize(size_);
    for (int peer = 0; peer < size_; ++peer) recv_ranges_[peer] = {1u + peer, 1};
    barrier_scratch_.resize(1 + size_);
    const std::span<std::byte> scratch(barrier_scratch_);
    exchange("barrier", scratch, send_ranges_, scratch, recv_ranges_);
  });
}

void Communicator::reduce_scatter_sum(std::span<const float> in, std::span<float> out) {
  CHECK(in.size() == out.size() * size_, "reduce_scatter_sum: {} in, {} out, {} ranks", in.size(),
        out.size(), size_);
  guarded("reduce_scatter_sum", [&] {
    reduce_scratch_.resize(in.size());
    send_ranges_.resize(size_);
    for (int peer = 0; peer < size_; ++peer) {
      send_ranges_[peer] = {peer * out.size_bytes(), out.size_bytes()};
    }
    const std::span<float> blocks(reduce_scratch_);
    exchange("reduce_scatter_sum", std::as_bytes(in), send_ranges_, std::as_writable_bytes(blocks),
             send_ranges_);
    std::copy_n(blocks.begin(), out.size(), out.begin());
    for (int peer = 1; peer < size_; ++peer) {
      const auto block = blocks.subspan(peer * out.size(), out.size());
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += block[i];
    }
  });
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  struct Choice {
    std::int32_t color, key;
  };
  const Choice mine{color, key};
  std::vector<Choice> all(size_);
  all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  std::vector<int> members;
  for (int peer = 0; peer < size_; ++peer) {
    if (color >= 0 && all[peer].color == color) members.push_back(peer);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](int a, int b) { return all[a].key < all[b].key; });
  return guarded("split", [&] { return make_split(color, members); });
}

}  // namespace millrace::parallel
