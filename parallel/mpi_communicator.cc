#include "parallel/mpi_communicator.h"

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <thread>

#include "config/check.h"

namespace millrace::parallel {

namespace {

using std::chrono::milliseconds;

// A tag no message has: a probe for it only drives MPI's progress.
constexpr int kProgressTag = (1 << 20) - 1;

void check_mpi(int code, const char* operation, int peer, milliseconds deadline) {
  if (code == MPI_SUCCESS) [[likely]]
    return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommError(operation, peer, deadline, text);
}

// MPI has these calls in blocking form only: when one exceeds the deadline, the process ends.
class BlockingCallGuard {
 public:
  BlockingCallGuard(const char* call, milliseconds deadline) {
    thread_ = std::thread([this, call, deadline] {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, deadline, [this] { return finished_; })) return;
      fmt::print(stderr, "{} did not return within {} ms: leaving\n", call, deadline.count());
      exit_after_failure();
    });
  }

  ~BlockingCallGuard() {
    {
      const std::lock_guard lock(mutex_);
      finished_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool finished_ = false;
  std::thread thread_;
};

class MpiCommunicator final : public Communicator {
 public:
  static constexpr int kLargestTag = kCollectiveTag + kCollectiveTags;

  // Takes over `comm`.
  static std::unique_ptr<Communicator> adopt(MPI_Comm comm, const CommOptions& options) {
    int rank = 0, size = 0;
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", kNoPeer,
              options.deadline);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    return std::unique_ptr<Communicator>(new MpiCommunicator(comm, rank, size, options));
  }

  std::string_view transport() const override { return "mpi"; }

  ~MpiCommunicator() override {
    const bool pending =
        std::any_of(slots_.begin(), slots_.end(), [](Slot& slot) { return !finished(slot); });
    if (pending || abandoned_) {  // MPI may still read the posted buffers
      leak_posted();
      return;
    }
    const BlockingCallGuard guard("MPI_Comm_free", options().deadline);
    MPI_Comm_free(&comm_);
  }

  void abort(std::string_view reason) noexcept override {
    const std::lock_guard lock(abort_mutex_);
    if (abort_reason_.empty()) abort_reason_ = reason.empty() ? "no reason given" : reason;
  }

 protected:
  SendHandle start_send(int peer, int tag, std::span<const std::byte> data) override {
    check_abort("send");
    const int count = checked_count("send", peer, data.size());
    return start(false, [&](MPI_Request* request) {
      check(MPI_Isend(data.data(), count, MPI_BYTE, peer, tag, comm_, request), "send", peer);
    });
  }

  RecvHandle start_recv(int peer, int tag, std::span<std::byte> data) override {
    check_abort("recv");
    const int count = checked_count("recv", peer, data.size());
    return start(true, [&](MPI_Request* request) {
      check(MPI_Irecv(data.data(), count, MPI_BYTE, peer, tag, comm_, request), "recv", peer);
    });
  }

  bool send_done(SendHandle handle) override { return test(handle, "send", MPI_STATUS_IGNORE); }

  std::optional<std::size_t> recv_done(RecvHandle handle) override {
    MPI_Status status;
    status.MPI_SOURCE = kNoPeer;
    if (!test(handle, "recv", &status)) return std::nullopt;
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    return static_cast<std::size_t>(bytes);
  }

  std::optional<Envelope> probe(int peer, int tag) override {
    check_abort("poll");
    int here = 0;
    MPI_Status status;
    const int source = peer == kAnyPeer ? MPI_ANY_SOURCE : peer;
    check(MPI_Iprobe(source, tag, comm_, &here, &status), "poll", peer);
    if (here == 0) return std::nullopt;
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    return Envelope{status.MPI_SOURCE, static_cast<std::size_t>(bytes)};
  }

  std::unique_ptr<Communicator> make_split(int color, std::span<const int> members) override {
    const auto self = std::find(members.begin(), members.end(), rank()) - members.begin();
    MPI_Comm part = MPI_COMM_NULL;
    {
      const BlockingCallGuard guard("MPI_Comm_split", options().deadline);
      const int mpi_color = members.empty() ? MPI_UNDEFINED : color;
      check(MPI_Comm_split(comm_, mpi_color, static_cast<int>(self), &part), "split", kNoPeer);
    }
    return part == MPI_COMM_NULL ? nullptr : adopt(part, options());
  }

  void check_abort(const char* operation) override {
    const std::lock_guard lock(abort_mutex_);
    if (abort_reason_.empty()) [[likely]]
      return;
    throw CommError(operation, kNoPeer, options().deadline, "aborted: " + abort_reason_);
  }

  void drive() override {
    int here = 0;
    check(MPI_Iprobe(MPI_ANY_SOURCE, kProgressTag, comm_, &here, MPI_STATUS_IGNORE), "progress",
          kNoPeer);
  }

  // A receive that no message has reached yet can be taken back; one that is half through cannot,
  // and neither can a send.
  void abandon() noexcept override {
    abandoned_ = true;
    for (Slot& slot : slots_) {
      if (!slot.used || !slot.receive || slot.request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&slot.request);
      if (finished(slot)) slot.used = false;
    }
  }

 private:
  struct Slot {
    MPI_Request request = MPI_REQUEST_NULL;
    std::uint32_t generation = 0;
    bool used = false;
    bool receive = false;
  };

  MpiCommunicator(MPI_Comm comm, int rank, int size, const CommOptions& options)
      : Communicator(rank, size, options), comm_(comm) {}

  static bool finished(Slot& slot) {
    int flag = 1;
    if (slot.used) MPI_Test(&slot.request, &flag, MPI_STATUS_IGNORE);
    return flag != 0;
  }

  template <class Start>
  SendHandle start(bool receive, Start start_request) {
    if (free_slots_.empty()) {
      free_slots_.push_back(static_cast<std::uint32_t>(slots_.size()));
      slots_.emplace_back();
    }
    const std::uint32_t index = free_slots_.back();
    start_request(&slots_[index].request);
    free_slots_.pop_back();
    slots_[index].used = true;
    slots_[index].receive = receive;
    return {index, slots_[index].generation};
  }

  bool test(SendHandle handle, const char* operation, MPI_Status* status) {
    if (handle.slot == UINT32_MAX) return true;
    Slot& slot = slots_[handle.slot];
    if (slot.generation != handle.generation) return true;
    int flag = 0;
    check(MPI_Test(&slot.request, &flag, status), operation, kNoPeer);
    if (flag == 0) return false;
    ++slot.generation;
    slot.used = false;
    free_slots_.push_back(handle.slot);
    return true;
  }

  int checked_count(const char* operation, int peer, std::size_t bytes) const {
    if (bytes <= INT_MAX) [[likely]]
      return static_cast<int>(bytes);
    throw CommError(operation, peer, options().deadline,
                    fmt::format("message of {} bytes exceeds MPI's 2 GiB", bytes));
  }

  void check(int code, const char* operation, int peer) const {
    check_mpi(code, operation, peer, options().deadline);
  }

  MPI_Comm comm_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  bool abandoned_ = false;
  std::mutex abort_mutex_;
  std::string abort_reason_;
};

}  // namespace

MpiRuntime::MpiRuntime(int* argc, char*** argv, CommOptions options) : options_(options) {
  int provided = 0;
  {
    const BlockingCallGuard guard("MPI_Init_thread", options.deadline);
    check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "init", kNoPeer,
              options.deadline);
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_FUNNELED) {
    throw CommError("init", kNoPeer, options.deadline, "MPI offers no MPI_THREAD_FUNNELED");
  }
  void* bound = nullptr;  // Open MPI keeps the attribute on MPI_COMM_WORLD only
  int known = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &bound, &known);
  if (known == 0 || *static_cast<int*>(bound) < MpiCommunicator::kLargestTag) {
    throw CommError("init", kNoPeer, options.deadline, "this MPI has too few message tags");
  }
}

MpiRuntime::~MpiRuntime() {
  if (std::uncaught_exceptions() > 0)
    exit_after_failure();  // MPI_Finalize would wait for all ranks
  const BlockingCallGuard guard("MPI_Finalize", options_.deadline);
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiRuntime::world() {
  MPI_Comm comm = MPI_COMM_NULL;
  {
    const BlockingCallGuard guard("MPI_Comm_dup", options_.deadline);
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "world", kNoPeer, options_.deadline);
  }
  return MpiCommunicator::adopt(comm, options_);
}

void exit_after_failure(int code) { _exit(code); }

}  // namespace millrace::parallel
