#include "worker/cuda/weight_upload.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "config/check.h"
#include "kernels/cuda/gemm_pack.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/random_weights.h"
#include "kernels/cuda/runtime.h"
#include "kernels/table.h"
#include "worker/checkpoint/random_tensors.h"

namespace millrace {

namespace {

using kernels::DType;
using kernels::WeightView;
using kernels::cuda::BFloat16;
using kernels::cuda::WeightFormat;
using Kind = UploadPiece::Kind;

// A single piece waits for a disk at most this long in all; the load's own deadline is the
// coordinator's.
constexpr std::chrono::milliseconds kPieceDeadline{120'000};

void read_ahead(const WeightView& view) {
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(view.data);
  const std::uintptr_t first = begin / page * page;
  madvise(reinterpret_cast<void*>(first), begin - first + static_cast<std::size_t>(view.bytes()),
          MADV_WILLNEED);
}

BFloat16 remainder_of(float value, int remainder) {
  for (int i = 0; i < remainder; ++i) value -= to_f32(kernels::cuda::to_bf16(value));
  return kernels::cuda::to_bf16(value);
}

// Reads rows of any dtype as bf16.
class RowReader {
 public:
  void read(const WeightView& view, int remainder, BFloat16* out) {
    read_ahead(view);
    if (view.dtype == DType::kBF16 && remainder == 0) {
      std::memcpy(out, view.data, static_cast<std::size_t>(view.bytes()));
      return;
    }
    constexpr std::int64_t kRows = 16;
    values_.resize(static_cast<std::size_t>(kRows * view.cols));
    for (std::int64_t r = 0; r < view.rows; r += kRows) {
      const WeightView part = view.slice_rows(r, std::min(kRows, view.rows - r));
      table_.dequantize({}, part, kernels::matrix(values_.data(), part.rows, part.cols));
      for (std::int64_t i = 0; i < part.rows * part.cols; ++i) {
        *out++ = remainder_of(values_[static_cast<std::size_t>(i)], remainder);
      }
    }
  }

 private:
  const kernels::KernelTable& table_ = kernels::cpu_table(kernels::best_isa());
  std::vector<float> values_;
};

// One thread's stream and buffers.
class Lane {
 public:
  explicit Lane(std::int64_t buffer_bytes) {
    for (Slot& slot : slots_) {
      slot.host = kernels::cuda::PinnedBuffer(static_cast<std::size_t>(buffer_bytes));
      slot.device = kernels::cuda::DeviceBuffer(static_cast<std::size_t>(buffer_bytes));
    }
  }

  // `unusable`: the piece's counter on the device.
  void upload(const UploadPiece& piece, std::uint32_t* unusable) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    if (slot.used) slot.done.synchronize(kPieceDeadline);
    slot.used = true;
    const auto bytes = static_cast<std::size_t>(piece.staged_bytes());
    CHECK(bytes <= slot.host.bytes(), "{}: {} bytes", piece.name, bytes);
    const bool direct = piece.kind == Kind::kRows || piece.kind == Kind::kFloats;
    std::byte* const device = direct ? piece.target : slot.device.data();
    if (piece.random != nullptr) {
      make_rows(piece, reinterpret_cast<BFloat16*>(device));
    } else {
      fill_host(piece, slot.host);
      kernels::cuda::copy_to_device(stream_, device, slot.host.data(), bytes);
    }
    if (!direct) pack(piece, slot.device.as<BFloat16>(), unusable);
    slot.done.record(stream_);
  }

  void finish() { kernels::cuda::synchronize(stream_, kPieceDeadline); }

 private:
  struct Slot {
    kernels::cuda::PinnedBuffer host;
    kernels::cuda::DeviceBuffer device;
    kernels::cuda::Event done;
    bool used = false;
  };

  void fill_host(const UploadPiece& piece, const kernels::cuda::PinnedBuffer& host) {
    if (piece.kind == Kind::kFloats) {
      std::memcpy(host.data(), piece.floats->data(), piece.floats->size() * sizeof(float));
      return;
    }
    auto* out = host.as<BFloat16>();
    for (const WeightView& view : piece.rows) {
      reader_.read(view, piece.remainder, out);
      out += view.rows * view.cols;
    }
  }

  void make_rows(const UploadPiece& piece, BFloat16* out) {
    CHECK(piece.remainder == 0, "{}: bf16 leaves no remainder", piece.name);
    for (const WeightView& view : piece.rows) {
      const std::int64_t count = view.rows * view.cols;
      kernels::cuda::random_weights(stream_, {piece.random->seed(), piece.random->first(view),
                                              count, RandomMemory::half_step(view), out});
      out += count;
    }
  }

  void pack(const UploadPiece& piece, const BFloat16* staged, std::uint32_t* unusable) {
    const std::int64_t cols = piece.rows.front().cols;
    kernels::cuda::WeightRows rows;
    if (piece.kind == Kind::kGateUp) {
      const std::int64_t half = piece.rows.front().rows;
      rows.first = kernels::matrix(staged, half, cols);
      rows.second = kernels::matrix(staged + half * cols, half, cols);
    } else {
      rows.first = kernels::matrix(staged, piece.row_count(), cols);
    }
    if (piece.format == WeightFormat::kBf16) {
      kernels::cuda::pack_weight(stream_, rows, piece.target);
    } else {
      kernels::cuda::quantize_weight(stream_, rows, piece.target, unusable);
    }
  }

  kernels::cuda::Stream stream_;
  std::array<Slot, 2> slots_;
  std::size_t next_ = 0;
  RowReader reader_;
};

// The pieces, handed out to threads one after the other.
class Upload {
 public:
  Upload(const std::vector<UploadPiece>& pieces, int threads)
      : pieces_(pieces),
        device_(kernels::cuda::current_device()),
        unusable_(pieces.size() * sizeof(std::uint32_t)) {
    for (const UploadPiece& piece : pieces) {
      total_bytes_ += piece.source_bytes();
      buffer_bytes_ = std::max(buffer_bytes_, piece.staged_bytes());
    }
    const kernels::cuda::Stream stream;
    kernels::cuda::fill(stream, unusable_.data(), 0, unusable_.bytes());
    kernels::cuda::synchronize(stream, kPieceDeadline);
    const auto count = std::min<std::size_t>(static_cast<std::size_t>(std::max(threads, 1)),
                                             std::max<std::size_t>(pieces.size(), 1));
    running_ = count;
    for (std::size_t i = 0; i < count; ++i) threads_.emplace_back([this] { run(); });
  }

  ~Upload() {
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  std::uint64_t wait(const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
    std::unique_lock lock(mutex_);
    while (
        !ended_.wait_for(lock, std::chrono::milliseconds(50), [this] { return running_ == 0; })) {
      lock.unlock();
      if (progress) progress(done_bytes_.load(), total_bytes_);
      lock.lock();
    }
    if (error_) std::rethrow_exception(error_);
    if (progress) progress(total_bytes_, total_bytes_);
    return total_bytes_;
  }

  // The first piece with values that its format cannot hold.
  Result<void> check() const {
    std::vector<std::uint32_t> counts(pieces_.size());
    if (counts.empty()) return {};
    const kernels::cuda::Stream stream;
    kernels::cuda::copy_to_host(stream, counts.data(), unusable_.data(), unusable_.bytes());
    kernels::cuda::synchronize(stream, kPieceDeadline);
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] == 0) continue;
      return Error{ErrorCode::kUnsupported, pieces_[i].name,
                   fmt::format("{} values are not finite or too large for fp8; set device.weights "
                               "to bf16",
                               counts[i])};
    }
    return {};
  }

 private:
  void run() noexcept {
    try {
      kernels::cuda::set_device(device_);
      Lane lane(buffer_bytes_);
      while (!failed_.load()) {
        const std::size_t i = next_.fetch_add(1);
        if (i >= pieces_.size()) break;
        lane.upload(pieces_[i], unusable_.as<std::uint32_t>() + i);
        done_bytes_ += pieces_[i].source_bytes();
      }
      lane.finish();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      failed_ = true;
    }
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_one();
  }

  const std::vector<UploadPiece>& pieces_;
  int device_;
  kernels::cuda::DeviceBuffer unusable_;  // a counter for each piece
  std::int64_t buffer_bytes_ = 0;
  std::uint64_t total_bytes_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::uint64_t> done_bytes_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable ended_;
  std::size_t running_ = 0;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::uint64_t> upload_weights(
    const std::vector<UploadPiece>& pieces, int threads,
    const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  Upload upload(pieces, threads);
  const std::uint64_t bytes = upload.wait(progress);
  if (auto checked = upload.check(); !checked) return checked.error();
  return bytes;
}

}  // namespace millrace
