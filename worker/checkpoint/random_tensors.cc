#include "worker/checkpoint/random_tensors.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "config/check.h"
#include "config/random_model.h"
#include "kernels/dtype_name.h"
#include "kernels/random_weights.h"
#include "worker/checkpoint/expected_tensors.h"

namespace millrace {

namespace {

using kernels::DType;
using kernels::WeightView;

// Of one value, and of every tensor's size: a block of values.
constexpr std::uint64_t kValueBytes = sizeof(std::uint16_t);
constexpr std::uint64_t kAlignment = kernels::kRandomWeightsOfBlock * kValueBytes;

// Small tensors, which every worker reads in host memory.
bool is_small(TensorRole role) { return role == TensorRole::kVector || role == TensorRole::kTaps; }

std::uint64_t bytes_of(const ExpectedTensor& tensor) {
  std::uint64_t bytes = is_small(tensor.role) ? sizeof(float) : kValueBytes;
  for (const std::int64_t size : tensor.shape) bytes *= static_cast<std::uint64_t>(size);
  return bytes;
}

void write_small(const ExpectedTensor& tensor, std::uint64_t seed, TensorEntry& entry) {
  const std::size_t count = entry.bytes / sizeof(float);
  auto* values = reinterpret_cast<float*>(const_cast<std::byte*>(entry.data));
  const bool norm = tensor.name.ends_with("norm.weight");
  std::fill_n(values, count, norm ? 1.0F : 0.0F);
  if (tensor.role != TensorRole::kTaps) return;
  // L taps of deviation 1 / sqrt(L) each.
  std::vector<std::uint16_t> bits((count + 7) / 8 * 8);
  kernels::random_weights(~seed, 0, kernels::random_weight_half_step(tensor.shape.back()), bits);
  for (std::size_t i = 0; i < count; ++i) values[i] = kernels::bf16_to_f32(bits[i]);
}

}  // namespace

RandomMemory::RandomMemory(std::uint64_t seed, std::uint64_t bytes) : seed_(seed), bytes_(bytes) {
  void* map = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(map);
}

RandomMemory::~RandomMemory() { ::munmap(data_, bytes_); }

std::uint64_t RandomMemory::first(const WeightView& matrix) const {
  CHECK(matrix.dtype == DType::kBF16 && matrix.data >= data_ && matrix.data < data_ + bytes_,
        "{} is not of this model", kernels::dtype_name(matrix.dtype));
  return static_cast<std::uint64_t>(matrix.data - data_) / kValueBytes;
}

float RandomMemory::half_step(const WeightView& matrix) {
  return kernels::random_weight_half_step(matrix.cols);
}

Result<void> RandomMemory::fill(std::span<const WeightView> matrices, int threads) const {
  const std::lock_guard lock(mutex_);
  std::vector<WeightView> todo;
  std::uint64_t bytes = 0;
  for (const WeightView& matrix : matrices) {
    if (!filled_.insert(matrix.data).second) continue;
    todo.push_back(matrix);
    bytes += static_cast<std::uint64_t>(matrix.bytes());
  }
  const auto memory = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
                      static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  if (bytes > memory) {
    return Error{
        ErrorCode::kResourceExhausted, "model.path",
        fmt::format("{:.1f} GB of random weights are more than this machine's {:.1f} GB; "
                    "devices make them in their own memory",
                    static_cast<double>(bytes) * 1e-9, static_cast<double>(memory) * 1e-9)};
  }
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < todo.size(); i = next++) {
      auto* values = reinterpret_cast<std::uint16_t*>(const_cast<std::byte*>(todo[i].data));
      kernels::random_weights(seed_, first(todo[i]), half_step(todo[i]),
                              {values, static_cast<std::size_t>(todo[i].rows * todo[i].cols)});
    }
  };
  std::vector<std::jthread> helpers;
  for (int i = 1; i < threads; ++i) helpers.emplace_back(work);
  work();
  return {};
}

Result<TensorSource> open_random_model(const std::string& path) {
  const Result<RandomModel> model = parse_random_model(path);
  if (!model) return model.error();
  const Result<ModelConfig> config = random_model_config(path);
  if (!config) return config.error();
  const std::vector<ExpectedTensor> tensors = expected_tensors(*config, TensorSource());

  std::uint64_t bytes = 0;
  std::vector<std::uint64_t> offsets;
  for (const ExpectedTensor& tensor : tensors) {
    offsets.push_back(bytes);
    bytes += (bytes_of(tensor) + kAlignment - 1) / kAlignment * kAlignment;
  }
  auto memory = std::make_shared<RandomMemory>(model->seed, bytes);
  std::vector<TensorEntry> entries;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const ExpectedTensor& tensor = tensors[i];
    TensorEntry entry{tensor.name,
                      tensor.name,
                      is_small(tensor.role) ? DType::kF32 : DType::kBF16,
                      tensor.shape,
                      memory->data() + offsets[i],
                      bytes_of(tensor)};
    if (is_small(tensor.role)) write_small(tensor, model->seed + offsets[i], entry);
    entries.push_back(std::move(entry));
  }
  return TensorSource::make(path, std::move(memory), std::move(entries));
}

}  // namespace millrace
