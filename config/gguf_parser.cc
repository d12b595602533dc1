#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <optional>

#include "config/gguf_file.h"
#include "config/gguf_values.h"

namespace millrace {

using gguf_detail::decode_scalar;
using gguf_detail::load;
using gguf_detail::packed_bytes;

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in memory");

namespace {

// Far above any real file; they bound the memory that a hostile header can make us allocate.
constexpr std::uint64_t kMaxTensors = 1U << 20;
constexpr std::uint64_t kMaxKeys = 1U << 16;
constexpr std::uint64_t kMaxKeyBytes = 1U << 16;
constexpr std::uint64_t kMaxArrayObjects = 1U << 24;  // strings and nested arrays over all keys
constexpr std::uint64_t kMaxAlignment = 1U << 20;
constexpr int kMaxArrayDepth = 4;
constexpr std::uint32_t kMaxDims = 4;

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 80)) out += (c >= ' ' && c < 127) ? c : '?';
  return out;
}

}  // namespace

// Reads the header front to back. Each step returns the first error; nothing after it is trusted.
class GgufParser {
 public:
  explicit GgufParser(GgufFile& out) : out_(out), bytes_(out.file_.bytes()) {}

  std::optional<Error> parse() {
    if (auto error = parse_preamble()) return error;
    const std::uint64_t metadata = position_;
    for (std::uint64_t i = 0; i < key_count_; ++i) {
      if (auto error = parse_key(i)) return error;
    }
    out_.metadata_bytes_ = bytes_.subspan(metadata, position_ - metadata);
    if (auto error = read_alignment()) return error;
    for (std::uint64_t i = 0; i < tensor_count_; ++i) {
      if (auto error = parse_tensor(i)) return error;
    }
    if (auto error = place_tensors()) return error;
    return check_overlap();
  }

 private:
  std::uint64_t left() const { return bytes_.size() - position_; }

  template <class T>
  bool read(T& value) {
    if (left() < sizeof(T)) return false;
    value = load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return true;
  }

  bool read_string(std::string_view& text, std::uint64_t limit) {
    std::uint64_t length = 0;
    if (!read(length) || length > limit || length > left()) return false;
    text = {reinterpret_cast<const char*>(bytes_.data() + position_),
            static_cast<std::size_t>(length)};
    position_ += length;
    return true;
  }

  Error fail(std::string field, const std::string& what,
             ErrorCode code = ErrorCode::kInvalidArgument) const {
    const bool about_file = field == out_.path();
    return {code, std::move(field), about_file ? what : fmt::format("{}: {}", out_.path(), what)};
  }
  Error cut(const std::string& where) const {
    return fail(out_.path(),
                fmt::format("the GGUF header is cut or damaged at byte {} of {}, in {}", position_,
                            bytes_.size(), where));
  }

  std::optional<Error> parse_preamble() {
    std::string_view text = out_.file_.text();
    if (!text.starts_with("GGUF")) return not_gguf(text);
    position_ = 4;
    if (!read(out_.version_)) return cut("the version");
    const std::uint32_t version = out_.version_;
    if (version == 0x03000000U || version == 0x02000000U) {
      return fail(out_.path(), "is a big-endian GGUF file; convert it to little endian",
                  ErrorCode::kUnsupported);
    }
    if (version != 2 && version != 3) {
      return fail(out_.path(), fmt::format("GGUF version {}, expected 2 or 3", version),
                  ErrorCode::kUnsupported);
    }
    if (!read(tensor_count_) || !read(key_count_)) return cut("the counts");
    constexpr std::uint64_t kSmallestKey = 8 + 4 + 1;
    constexpr std::uint64_t kSmallestTensor = 8 + 4 + 8 + 4 + 8;
    if (key_count_ > kMaxKeys || key_count_ > left() / kSmallestKey) {
      return fail(out_.path(), fmt::format("claims {} metadata keys, more than the file or the "
                                           "limit of {} allows",
                                           key_count_, kMaxKeys));
    }
    if (tensor_count_ > kMaxTensors || tensor_count_ > left() / kSmallestTensor) {
      return fail(out_.path(),
                  fmt::format("claims {} tensors, more than the file or the limit of {} allows",
                              tensor_count_, kMaxTensors));
    }
    return std::nullopt;
  }

  Error not_gguf(std::string_view text) const {
    const char* guess = "";
    if (text.starts_with("tjgg") || text.starts_with("fmgg") || text.starts_with("lmgg")) {
      guess = " (an older ggml format; convert the model again)";
    } else if (text.starts_with("FUGG")) {
      guess = " (byte-swapped GGUF)";
    } else if (text.starts_with("PK")) {
      guess = " (a zip or PyTorch file)";
    } else if (text.size() > 8 && text[8] == '{') {
      guess = " (it looks like safetensors; give the folder that holds it)";
    } else if (text.starts_with("version https://git-lfs")) {
      guess = " (a Git LFS pointer; fetch the real file)";
    }
    return fail(out_.path(), fmt::format("is not a GGUF file: it starts with \"{}\"{}",
                                         printable(text.substr(0, 4)), guess));
  }

  std::optional<Error> parse_key(std::uint64_t index) {
    std::string_view key;
    if (!read_string(key, kMaxKeyBytes) || key.empty())
      return cut(fmt::format("the name of key {}", index));
    std::uint32_t type = 0;
    if (!read(type)) return cut(fmt::format("the type of key \"{}\"", printable(key)));
    if (type > static_cast<std::uint32_t>(GgufType::kF64)) {
      return fail(printable(key), fmt::format("has the unknown value type {}", type));
    }
    GgufValue value{static_cast<GgufType>(type), false};
    if (value.type == GgufType::kString) {
      std::string_view text;
      if (!read_string(text, left())) return cut(fmt::format("key \"{}\"", printable(key)));
      value.value = text;
    } else if (value.type == GgufType::kArray) {
      GgufArray array;
      if (auto error = parse_array(key, array, 1)) return error;
      value.value = std::move(array);
    } else {
      const std::uint64_t size = packed_bytes(value.type);
      if (left() < size) return cut(fmt::format("key \"{}\"", printable(key)));
      value = decode_scalar(value.type, bytes_.data() + position_);
      position_ += size;
    }
    if (!out_.metadata_.emplace(std::string(key), std::move(value)).second) {
      return fail(printable(key), "this metadata key appears twice");
    }
    return std::nullopt;
  }

  std::optional<Error> parse_array(std::string_view key, GgufArray& array, int depth) {
    std::uint32_t type = 0;
    if (!read(type) || !read(array.count)) return cut(fmt::format("key \"{}\"", printable(key)));
    if (type > static_cast<std::uint32_t>(GgufType::kF64)) {
      return fail(printable(key), fmt::format("has the unknown array element type {}", type));
    }
    if (depth > kMaxArrayDepth) return fail(printable(key), "nests arrays too deeply");
    array.element_type = static_cast<GgufType>(type);
    const std::uint64_t size = packed_bytes(array.element_type);
    const std::uint64_t smallest = size > 0                                  ? size
                                   : array.element_type == GgufType::kString ? 8
                                                                             : 12;
    if (array.count > left() / smallest) {
      return fail(printable(key),
                  fmt::format("claims {} array elements, more than the file holds", array.count));
    }
    if (size > 0) {
      array.packed = bytes_.subspan(position_, array.count * size);
      position_ += array.count * size;
      return std::nullopt;
    }
    array_objects_ += array.count;
    if (array_objects_ > kMaxArrayObjects) {
      return fail(
          printable(key),
          fmt::format("more than {} strings and nested arrays in the metadata", kMaxArrayObjects));
    }
    return parse_array_objects(key, array, depth);
  }

  std::optional<Error> parse_array_objects(std::string_view key, GgufArray& array, int depth) {
    for (std::uint64_t i = 0; i < array.count; ++i) {
      if (array.element_type == GgufType::kString) {
        if (!read_string(array.strings.emplace_back(), left())) {
          return cut(fmt::format("element {} of key \"{}\"", i, printable(key)));
        }
      } else if (auto error = parse_array(key, array.arrays.emplace_back(), depth + 1)) {
        return error;
      }
    }
    return std::nullopt;
  }

  std::optional<Error> read_alignment() {
    if (!out_.has("general.alignment")) return std::nullopt;
    auto alignment = out_.get_int("general.alignment", 1, static_cast<std::int64_t>(kMaxAlignment));
    if (!alignment) return alignment.error();
    out_.alignment_ = static_cast<std::uint64_t>(*alignment);
    if (!std::has_single_bit(out_.alignment_)) {
      return fail("general.alignment",
                  fmt::format("expected a power of two, found {}", out_.alignment_));
    }
    return std::nullopt;
  }

  std::optional<Error> parse_tensor(std::uint64_t index) {
    std::string_view name;
    if (!read_string(name, kMaxKeyBytes) || name.empty()) {
      return cut(fmt::format("the name of tensor {}", index));
    }
    GgufTensor tensor{printable(name) == name ? std::string(name) : printable(name)};
    std::uint32_t n_dims = 0;
    if (!read(n_dims)) return cut(fmt::format("tensor \"{}\"", tensor.name));
    if (n_dims < 1 || n_dims > kMaxDims) {
      return fail(tensor.name,
                  fmt::format("has {} dimensions, expected 1 to {}", n_dims, kMaxDims));
    }
    tensor.dims.resize(n_dims);
    std::uint32_t type = 0;
    for (std::uint64_t& dim : tensor.dims) {
      if (!read(dim)) return cut(fmt::format("tensor \"{}\"", tensor.name));
    }
    if (!read(type) || !read(tensor.offset)) return cut(fmt::format("tensor \"{}\"", tensor.name));
    if (auto error = measure(tensor, type)) return error;
    if (!out_.tensor_index_.emplace(tensor.name, out_.tensors_.size()).second) {
      return fail(tensor.name, "this tensor appears twice");
    }
    out_.tensors_.push_back(std::move(tensor));
    return std::nullopt;
  }

  // Fills type and bytes from dims.
  std::optional<Error> measure(GgufTensor& tensor, std::uint32_t type) const {
    const GgmlTypeInfo* info = ggml_type_info(type);
    if (info == nullptr) {
      return fail(tensor.name, fmt::format("is stored as ggml type {}, which is not read", type),
                  ErrorCode::kUnsupported);
    }
    tensor.type = static_cast<GgmlType>(type);
    if (tensor.dims[0] % info->block_elements != 0) {
      return fail(tensor.name, fmt::format("rows of {} values do not divide into {} blocks of {}",
                                           tensor.dims[0], info->name, info->block_elements));
    }
    std::uint64_t blocks = tensor.dims[0] / info->block_elements;
    bool fits = tensor.dims[0] > 0;
    for (std::size_t i = 1; i < tensor.dims.size(); ++i) {
      fits = fits && tensor.dims[i] > 0 && !__builtin_mul_overflow(blocks, tensor.dims[i], &blocks);
    }
    fits = fits && !__builtin_mul_overflow(blocks, std::uint64_t{info->block_bytes}, &tensor.bytes);
    if (!fits || tensor.bytes > bytes_.size()) {
      return fail(tensor.name, fmt::format("dimensions [{}] of type {} do not fit in the file",
                                           fmt::join(tensor.dims, ", "), info->name));
    }
    return std::nullopt;
  }

  std::optional<Error> place_tensors() {
    const std::uint64_t data =
        (position_ + out_.alignment_ - 1) / out_.alignment_ * out_.alignment_;
    for (GgufTensor& tensor : out_.tensors_) {
      if (tensor.offset % out_.alignment_ != 0) {
        return fail(tensor.name, fmt::format("data offset {} is not a multiple of the alignment {}",
                                             tensor.offset, out_.alignment_));
      }
      const bool inside = data <= bytes_.size() && tensor.offset <= bytes_.size() - data &&
                          tensor.bytes <= bytes_.size() - data - tensor.offset;
      if (!inside) {
        return fail(
            tensor.name,
            fmt::format("its {} bytes at data offset {} end beyond the file's {} bytes; the "
                        "file is cut or damaged",
                        tensor.bytes, tensor.offset, bytes_.size()));
      }
      tensor.offset += data;
    }
    return std::nullopt;
  }

  std::optional<Error> check_overlap() const {
    std::vector<std::size_t> order(out_.tensors_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [this](std::size_t a, std::size_t b) {
      return out_.tensors_[a].offset < out_.tensors_[b].offset;
    });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = out_.tensors_[order[i - 1]];
      const GgufTensor& after = out_.tensors_[order[i]];
      if (before.offset + before.bytes > after.offset) {
        return fail(after.name, fmt::format("its data overlaps that of {}", before.name));
      }
    }
    return std::nullopt;
  }

  GgufFile& out_;
  std::span<const std::byte> bytes_;
  std::uint64_t position_ = 0;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t key_count_ = 0;
  std::uint64_t array_objects_ = 0;
};

Result<GgufFile> GgufFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  GgufFile out;
  out.file_ = std::move(*file);
  if (auto error = GgufParser(out).parse()) return *error;
  return out;
}

}  // namespace millrace
