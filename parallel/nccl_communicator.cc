#include "parallel/nccl_communicator.h"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "config/check.h"
#include "parallel/mpi_communicator.h"

namespace millrace::parallel {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// How often the watchdog looks; its deadlines are kept to this.
constexpr milliseconds kLook{20};

std::string version_name(int version) {
  return fmt::format("nccl {}.{}.{}", version / 10'000, version / 100 % 100, version % 100);
}

// What ncclCommInitRank gives; outlives a caller that stopped waiting for it.
struct Connection {
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;
  int code = kNcclSuccess;
  std::string error;
  NcclApi::Comm comm = nullptr;
};

}  // namespace

// Aborts the communicator when a call does not return in time, and at most once, whoever asks.
class NcclCommunicator::Watchdog {
 public:
  Watchdog(const NcclApi& api, NcclApi::Comm comm, milliseconds deadline, Options options)
      : api_(api), comm_(comm), deadline_(deadline), options_(std::move(options)) {
    thread_ = std::thread([this] { run(); });
  }
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  // Around each call of NCCL. Two stores: cheap beside any call.
  void begin() { began_.store(Clock::now().time_since_epoch().count(), std::memory_order_release); }
  void end() { began_.store(0, std::memory_order_release); }

  // NCCL's abort waits for kernels of other communicators and for graphs that hold this one to be
  // destroyed (2.28), which who aborts cannot wait for: it ends the process.
  void abort() {
    if (aborted_.exchange(true)) return;
    const auto returned = std::make_shared<std::promise<void>>();
    std::thread([api = &api_, comm = comm_, returned] {
      api->comm_abort(comm);
      returned->set_value();
    }).detach();
    returned->get_future().wait_for(options_.abort_grace);
  }
  bool aborted() const { return aborted_.load(); }
  bool late() const { return late_.load(); }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, kLook, [this] { return ending_; })) {
      const auto began = began_.load(std::memory_order_acquire);
      if (began == 0) continue;
      const Clock::duration waited = Clock::now().time_since_epoch() - Clock::duration(began);
      const bool first = !late_.load();
      if (first && waited > deadline_) {
        late_.store(true);
        // On a thread of its own: an abort can hang as well, and then this one must go on watching.
        if (!aborted_.exchange(true))
          std::thread([api = &api_, c = comm_] { api->comm_abort(c); }).detach();
      }
      if (waited > deadline_ + options_.abort_grace) {
        if (!options_.stuck) exit_after_failure();
        options_.stuck();
        return;
      }
    }
  }

  const NcclApi& api_;
  NcclApi::Comm comm_;
  milliseconds deadline_;
  Options options_;
  std::atomic<Clock::rep> began_{0};  // of the call in progress; 0: none
  std::atomic<bool> late_{false};
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::thread thread_;
};

NcclCommunicator::NcclCommunicator(const NcclApi& api, Communicator& bootstrap, Options options)
    : DeviceCommunicator(bootstrap.rank(), bootstrap.size(), bootstrap.options()),
      api_(&api),
      name_(version_name(api.version)) {
  connect(bootstrap);
  watchdog_ = std::make_unique<Watchdog>(api, comm_, this->options().deadline, std::move(options));
}

void NcclCommunicator::connect(Communicator& bootstrap) {
  constexpr const char* kOperation = "nccl init";
  // The code travels with the id, so that the others hear of a failure instead of waiting for it.
  struct Hello {
    NcclApi::UniqueId id;
    int code = kNcclSuccess;
  } hello;
  if (rank() == 0) hello.code = api_->get_unique_id(&hello.id);
  bootstrap.broadcast(0, std::as_writable_bytes(std::span(&hello, 1)));
  must(kOperation, hello.code);

  auto connection = std::make_shared<Connection>();
  std::thread([api = api_, id = hello.id, size = size(), rank = rank(), connection,
               device = kernels::cuda::current_device()] {
    NcclApi::Comm comm = nullptr;
    int code = kNcclInternalError;
    std::string error;
    try {
      kernels::cuda::set_device(device);
      code = api->comm_init_rank(&comm, size, id, rank);
      if (code != kNcclSuccess) error = api->get_last_error(nullptr);
    } catch (const std::exception& e) {
      error = e.what();
    }
    const std::lock_guard lock(connection->mutex);
    connection->ended = true;
    connection->code = code;
    connection->error = error;
    connection->comm = comm;
    connection->changed.notify_one();
  }).detach();

  std::unique_lock lock(connection->mutex);
  if (!connection->changed.wait_for(lock, options().deadline, [&] { return connection->ended; })) {
    throw CommError(kOperation, kNoPeer, options().deadline, "not all ranks came in time");
  }
  if (connection->code != kNcclSuccess) {
    throw CommError(
        kOperation, kNoPeer, options().deadline,
        fmt::format("{}: {}", api_->get_error_string(connection->code), connection->error));
  }
  comm_ = connection->comm;
}

NcclCommunicator::~NcclCommunicator() {
  if (watchdog_->aborted()) return;
  watchdog_->begin();
  const int code = api_->comm_destroy(comm_);
  watchdog_->end();
  if (code != kNcclSuccess) {
    fmt::print(stderr, "ncclCommDestroy: {}\n", api_->get_error_string(code));
  }
}

void NcclCommunicator::fail(const char* operation, const std::string& detail) {
  if (watchdog_) watchdog_->abort();
  throw CommError(operation, kNoPeer, options().deadline, detail);
}

void NcclCommunicator::must(const char* operation, int code) {
  if (code == kNcclSuccess) return;
  const char* last = comm_ == nullptr ? "" : api_->get_last_error(comm_);
  fail(operation, fmt::format("{}: {}", api_->get_error_string(code), last == nullptr ? "" : last));
}

// Runs `call`, which returns NCCL's code, under the watchdog.
template <class Call>
void NcclCommunicator::guarded(const char* operation, Call call) {
  if (watchdog_->aborted()) {
    throw CommError(operation, kNoPeer, options().deadline, "the communicator was aborted");
  }
  watchdog_->begin();
  const int code = call();
  watchdog_->end();
  if (watchdog_->late()) {
    throw CommError(operation, kNoPeer, options().deadline, "no answer in time");
  }
  must(operation, code);
}

void NcclCommunicator::check() {
  constexpr const char* kOperation = "nccl check";
  int error = kNcclSuccess;
  guarded(kOperation, [&] { return api_->comm_get_async_error(comm_, &error); });
  must(kOperation, error);
}

void NcclCommunicator::abort(std::string_view) noexcept { watchdog_->abort(); }

void NcclCommunicator::all_to_all(const void* send, void* recv, std::size_t bytes_per_peer,
                                  StreamRef stream) {
  if (api_->all_to_all != nullptr) {
    guarded("nccl all_to_all",
            [&] { return api_->all_to_all(send, recv, bytes_per_peer, comm_, stream.handle); });
    return;
  }
  std::array<ByteRange, 64> ranges;
  CHECK(static_cast<std::size_t>(size()) <= ranges.size(), "{} ranks", size());
  for (int peer = 0; peer < size(); ++peer) {
    ranges[peer] = {static_cast<std::size_t>(peer) * bytes_per_peer, bytes_per_peer};
  }
  const std::span<const ByteRange> all(ranges.data(), static_cast<std::size_t>(size()));
  all_to_all_v(send, all, recv, all, stream);
}

void NcclCommunicator::all_to_all_v(const void* send, std::span<const ByteRange> send_ranges,
                                    void* recv, std::span<const ByteRange> recv_ranges,
                                    StreamRef stream) {
  CHECK(send_ranges.size() == static_cast<std::size_t>(size()) &&
            recv_ranges.size() == static_cast<std::size_t>(size()),
        "{} and {} ranges for {} ranks", send_ranges.size(), recv_ranges.size(), size());
  const auto* out = static_cast<const std::byte*>(send);
  auto* in = static_cast<std::byte*>(recv);
  guarded("nccl all_to_all_v", [&] {
    int code = api_->group_start();
    const auto keep_first = [&code](int next) { code = code == kNcclSuccess ? next : code; };
    for (int peer = 0; peer < size() && code == kNcclSuccess; ++peer) {
      const ByteRange to = send_ranges[peer], from = recv_ranges[peer];
      if (to.bytes > 0)
        keep_first(api_->send(out + to.offset, to.bytes, peer, comm_, stream.handle));
      if (from.bytes > 0)
        keep_first(api_->recv(in + from.offset, from.bytes, peer, comm_, stream.handle));
    }
    keep_first(api_->group_end());
    return code;
  });
}

void NcclCommunicator::all_gather(const void* mine, void* all, std::size_t bytes,
                                  StreamRef stream) {
  guarded("nccl all_gather",
          [&] { return api_->all_gather(mine, all, bytes, comm_, stream.handle); });
}

void NcclCommunicator::reduce_scatter_bf16(const void* in, void* out, std::size_t bytes,
                                           StreamRef stream) {
  guarded("nccl reduce_scatter",
          [&] { return api_->reduce_scatter_bf16(in, out, bytes / 2, comm_, stream.handle); });
}

void NcclCommunicator::send(int peer, const void* data, std::size_t bytes, StreamRef stream) {
  guarded("nccl send", [&] { return api_->send(data, bytes, peer, comm_, stream.handle); });
}

void NcclCommunicator::recv(int peer, void* data, std::size_t bytes, StreamRef stream) {
  guarded("nccl recv", [&] { return api_->recv(data, bytes, peer, comm_, stream.handle); });
}

}  // namespace millrace::parallel
