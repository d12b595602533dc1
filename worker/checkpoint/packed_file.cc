#include "worker/checkpoint/packed_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "config/gguf_file.h"
#include "kernels/packed.h"
#include "worker/checkpoint/expected_tensors.h"
#include "worker/checkpoint/gguf_tensors.h"
#include "worker/checkpoint/safetensors.h"

namespace millrace {
namespace {

using kernels::DType;
using kernels::WeightView;

// Of every tensor in the file: whole pages, so that a rank's part shares none with another's.
constexpr std::uint64_t kPage = 4096;
constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;

std::uint64_t round_up(std::uint64_t n, std::uint64_t unit) { return (n + unit - 1) / unit * unit; }

struct OutTensor {
  std::string name;                 // in the file
  std::vector<std::uint64_t> dims;  // innermost first
  WeightView stored;
  DType dtype;               // as written
  std::uint64_t offset = 0;  // in the file

  std::uint64_t bytes() const {
    return static_cast<std::uint64_t>(stored.rows * kernels::row_bytes(dtype, stored.cols));
  }
};

WeightUse use_of(const ModelConfig& config, const ExpectedTensor& tensor) {
  if (tensor.role != TensorRole::kMatrix) return WeightUse::kRouter;
  if (tensor.name == "lm_head.weight") return WeightUse::kHead;
  if (tensor.name != "model.embed_tokens.weight") return WeightUse::kProjection;
  return config.tie_embeddings ? WeightUse::kHead : WeightUse::kLookup;
}

// As loaded_dtype, for a whole tensor: each of the matrices stacked in it must pack by itself.
DType written_dtype(const TensorEntry& entry, WeightUse use, CpuWeights mode) {
  WeightView one = entry.view();
  if (entry.shape.size() == 3) one.rows = entry.shape[1];
  if (entry.name.find("gate_up_proj") != std::string::npos) one.rows /= 2;
  return loaded_dtype(one, use, mode);
}

std::vector<OutTensor> choose(const TensorSource& source, const ModelConfig& config,
                              CpuWeights mode, bool from_gguf) {
  std::vector<OutTensor> out;
  for (const ExpectedTensor& expected : expected_tensors(config, source)) {
    const TensorEntry& entry = *source.find(expected.name);
    OutTensor tensor;
    tensor.name = entry.stored_name;
    tensor.stored = entry.view();
    tensor.dtype = written_dtype(entry, use_of(config, expected), mode);
    tensor.dims.assign(entry.shape.rbegin(), entry.shape.rend());
    // The reader put the middle axis of the taps back in; GGUF files have none.
    if (from_gguf && expected.role == TensorRole::kTaps) tensor.dims.erase(tensor.dims.begin() + 1);
    out.push_back(std::move(tensor));
  }
  return out;
}

template <class T>
void append(std::string& out, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  out.append(raw, sizeof(T));
}

void append_text(std::string& out, std::string_view text) {
  append(out, std::uint64_t{text.size()});
  out.append(text);
}

std::string preamble(std::uint64_t tensors, std::uint64_t keys) {
  std::string out = "GGUF";
  append(out, std::uint32_t{3});
  append(out, tensors);
  append(out, keys);
  return out;
}

// Everything before the tensors' data; sets their offsets. `alignment` as the metadata has it.
std::string header(std::string out, std::vector<OutTensor>& tensors, std::uint64_t alignment) {
  std::uint64_t infos = 0;
  for (const OutTensor& t : tensors) infos += 8 + t.name.size() + 4 + 8 * t.dims.size() + 4 + 8;
  const std::uint64_t data = round_up(out.size() + infos, alignment);
  std::uint64_t at = round_up(data, std::max(kPage, alignment));
  for (OutTensor& t : tensors) {
    t.offset = at;
    at = round_up(at + t.bytes(), std::max(kPage, alignment));
    append_text(out, t.name);
    append(out, static_cast<std::uint32_t>(t.dims.size()));
    for (const std::uint64_t dim : t.dims) append(out, dim);
    append(out, static_cast<std::uint32_t>(ggml_type_of(t.dtype)));
    append(out, t.offset - data);
  }
  return out;
}

// Rows of a tensor and where they go.
struct Chunk {
  WeightView stored;
  DType dtype;
  std::uint64_t offset = 0;

  std::size_t bytes() const {
    return static_cast<std::size_t>(stored.rows * kernels::row_bytes(dtype, stored.cols));
  }
};

std::vector<Chunk> cut(const std::vector<OutTensor>& tensors) {
  std::vector<Chunk> chunks;
  for (const OutTensor& t : tensors) {
    const std::int64_t row = kernels::row_bytes(t.dtype, t.stored.cols);
    const std::int64_t tiles =
        std::max<std::int64_t>(1, kChunkBytes / (kernels::kPackedRows * row));
    const std::int64_t rows = tiles * kernels::kPackedRows;
    for (std::int64_t n = 0; n < t.stored.rows; n += rows) {
      const std::int64_t count = std::min(rows, t.stored.rows - n);
      chunks.push_back(
          {t.stored.slice_rows(n, count), t.dtype, t.offset + static_cast<std::uint64_t>(n * row)});
    }
  }
  return chunks;
}

class OutFile {
 public:
  explicit OutFile(const std::string& path)
      : fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)), path_(path) {
    if (fd_ < 0) fail();
  }
  ~OutFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OutFile(const OutFile&) = delete;
  OutFile& operator=(const OutFile&) = delete;

  void write(const void* data, std::size_t bytes, std::uint64_t offset) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0 && !failed()) {
      const ssize_t n = ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return fail();
      from += n;
      bytes -= static_cast<std::size_t>(n);
      offset += static_cast<std::uint64_t>(n);
    }
  }
  void finish() {
    if (!failed() && ::fsync(fd_) != 0) fail();
  }
  bool failed() const { return failed_; }
  Error error() const { return invalid("out", fmt::format("{}: {}", path_, reason_)); }

 private:
  void fail() {
    const int number = errno;
    const std::lock_guard lock(mutex_);
    if (failed_.exchange(true)) return;
    reason_ = std::generic_category().message(number);
  }

  int fd_;
  std::string path_;
  std::mutex mutex_;
  std::string reason_;
  std::atomic<bool> failed_{false};
};

void write_tensors(OutFile& file, const std::vector<OutTensor>& tensors, const PackOptions& o) {
  const std::vector<Chunk> chunks = cut(tensors);
  std::uint64_t total = 0;
  for (const Chunk& chunk : chunks) total += chunk.bytes();
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> done{0};
  const auto work = [&](bool report) {
    std::vector<std::byte> packed, buffer;
    for (std::size_t i = next++; i < chunks.size() && !file.failed(); i = next++) {
      const Chunk& chunk = chunks[i];
      if (chunk.dtype == chunk.stored.dtype) {
        file.write(chunk.stored.data, chunk.bytes(), chunk.offset);
      } else {
        packed.resize(chunk.bytes());
        pack_rows(chunk.stored, chunk.dtype, packed.data(), buffer);
        file.write(packed.data(), packed.size(), chunk.offset);
      }
      const std::uint64_t written = done += chunk.bytes();
      if (report && o.progress) o.progress(written, total);
    }
  };
  std::vector<std::jthread> helpers;
  for (int i = 1; i < o.threads; ++i) helpers.emplace_back(work, false);
  work(true);
}

Result<void> write_file(const std::string& path, const std::string& head,
                        const std::vector<OutTensor>& tensors, const PackOptions& options) {
  OutFile file(path);
  file.write(head.data(), head.size(), 0);
  write_tensors(file, tensors, options);
  file.finish();
  if (file.failed()) return file.error();
  return {};
}

Result<void> pack_gguf(const PackOptions& options, const std::string& to,
                       std::vector<OutTensor>& tensors) {
  auto file = GgufFile::open(options.model);
  if (!file) return file.error();
  std::string head = preamble(tensors.size(), file->metadata().size());
  const auto metadata = file->metadata_bytes();
  head.append(reinterpret_cast<const char*>(metadata.data()), metadata.size());
  return write_file(to, header(std::move(head), tensors, file->alignment()), tensors, options);
}

bool holds_weights(const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  const std::string extension = file.extension().string();
  return extension == ".safetensors" || extension == ".gguf" || extension == ".bin" ||
         extension == ".pt" || extension == ".pth" || name.ends_with(".safetensors.index.json");
}

Result<void> pack_folder(const PackOptions& options, const ModelConfig& config,
                         const std::string& to, std::vector<OutTensor>& tensors) {
  std::error_code error;
  std::filesystem::create_directory(to, error);
  if (error) return invalid("out", fmt::format("{}: {}", to, error.message()));
  for (const auto& entry : std::filesystem::directory_iterator(options.model, error)) {
    if (!entry.is_regular_file() || holds_weights(entry.path())) continue;
    const auto target = std::filesystem::path(to) / entry.path().filename();
    std::filesystem::copy_file(entry.path(), target, error);
    if (error) return invalid("out", fmt::format("{}: {}", target.string(), error.message()));
  }
  if (error) return invalid(options.model, error.message());
  std::string head = preamble(tensors.size(), 1);
  append_text(head, "general.architecture");
  append(head, static_cast<std::uint32_t>(GgufType::kString));
  append_text(head, config.num_experts > 0 ? "lfm2moe" : "lfm2");
  constexpr std::uint64_t kDefaultAlignment = 32;
  const std::string file = (std::filesystem::path(to) / kPackedFile).string();
  return write_file(file, header(std::move(head), tensors, kDefaultAlignment), tensors, options);
}

}  // namespace

Result<PackSummary> write_packed(const PackOptions& options) {
  std::error_code ignored;
  if (std::filesystem::exists(options.out, ignored)) {
    return invalid(
        "out", fmt::format("{}: is there already; remove it or choose another name", options.out));
  }
  if (options.weights == CpuWeights::kMapped) {
    return invalid("model.cpu_weights", "mapped leaves nothing to pack: use auto, p4 or p8");
  }
  const bool folder = std::filesystem::is_directory(options.model, ignored);
  if (!folder && !options.out.ends_with(".gguf")) {
    return invalid("out", fmt::format("{}: must end with .gguf, as the model does", options.out));
  }
  auto config = load_model_config(options.model);
  if (!config) return config.error();
  auto source = TensorSource::open(options.model);
  if (!source) return source.error();
  if (source->random() != nullptr) {
    return Error{ErrorCode::kUnsupported, "model.path", "random models cannot be packed"};
  }
  if (auto checked = validate_tensors(*source, *config); !checked) return checked.error();
  auto tensors = choose(*source, *config, options.weights, !folder);

  const std::string part = options.out + ".part";
  std::filesystem::remove_all(part, ignored);
  const Result<void> written =
      folder ? pack_folder(options, *config, part, tensors) : pack_gguf(options, part, tensors);
  std::error_code moved;
  if (written) std::filesystem::rename(part, options.out, moved);
  if (!written || moved) {
    std::filesystem::remove_all(part, ignored);
    return written ? invalid("out", fmt::format("{}: {}", options.out, moved.message()))
                   : written.error();
  }
  PackSummary summary;
  for (const OutTensor& tensor : tensors) {
    ++summary.tensors;
    summary.packed_tensors += tensor.dtype != tensor.stored.dtype ? 1U : 0U;
    summary.bytes += tensor.bytes();
  }
  return summary;
}

}  // namespace millrace
