// Ranks as threads of one process: the embedded cell, and the tests without mpirun.
//
// Zero-copy rendezvous: a send publishes (pointer, size) in the receiver's mailbox, and the
// receiving thread copies straight from the sender's buffer. So a send completes only when it is
// received, and nothing is ever buffered without bound.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace millrace::parallel {

struct ThreadGroupState;  // mailboxes shared by the ranks; thread_communicator.cc

// A world of `size` ranks. take(rank) is called once per rank, before or inside that rank's thread;
// the group may be destroyed before the communicators it handed out.
class ThreadGroup {
 public:
  explicit ThreadGroup(int size, CommOptions options = {});
  ~ThreadGroup();
  ThreadGroup(const ThreadGroup&) = delete;
  ThreadGroup& operator=(const ThreadGroup&) = delete;

  int size() const;
  std::unique_ptr<Communicator> take(int rank);
  // As Communicator::abort; from any thread.
  void abort(std::string_view reason) noexcept;

 private:
  std::shared_ptr<ThreadGroupState> state_;
  CommOptions options_;
  std::vector<bool> taken_;
};

}  // namespace millrace::parallel
