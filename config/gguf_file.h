// The GGUF container, versions 2 and 3, little endian: metadata and tensor table of one mapped
// file.
//
// Source: ggml's GGUF specification (docs/gguf.md of ggml-org/ggml). Everything is checked at
// open(): lengths and counts against the bytes that are left, tensor extents against the file and
// against each other. After a successful open no getter and no tensor extent can leave the map.
//
// Strings and arrays are views into the map and live as long as the GgufFile. Immutable after
// open(), so safe to read from many threads. Used for the model's shape, for its tokenizer and by
// the checkpoint reader.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/mapped_file.h"
#include "config/result.h"

namespace millrace {

enum class GgufType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
const char* gguf_type_name(GgufType type);

// Storage types of tensors, by their number in the file. From 1000 on our own: the type 1000 below,
// with the rows of 16 interleaved (kernels/packed.h). No other program reads them, and none should.
enum class GgmlType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
  kP4_0 = 1002,
  kP4_1 = 1003,
  kP8_0 = 1008,
  kP4_K = 1012,
  kP5_K = 1013,
  kP6_K = 1014,
};

struct GgmlTypeInfo {
  const char* name;
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
};
// nullptr for a number that is not in the enum above.
const GgmlTypeInfo* ggml_type_info(std::uint32_t type);

struct GgufArray {
  GgufType element_type = GgufType::kU8;
  std::uint64_t count = 0;
  std::span<const std::byte> packed;      // numbers and bools, as in the file, unaligned
  std::vector<std::string_view> strings;  // for kString
  std::vector<GgufArray> arrays;          // for kArray
};

struct GgufValue {
  GgufType type = GgufType::kU8;
  std::variant<bool, std::int64_t, std::uint64_t, double, std::string_view, GgufArray> value;
};

struct GgufTensor {
  std::string name;
  std::vector<std::uint64_t> dims;  // ggml order: dims[0] is contiguous (input features)
  GgmlType type = GgmlType::kF32;
  std::uint64_t offset = 0;  // of the first byte, from the start of the file
  std::uint64_t bytes = 0;
};

class GgufFile {
 public:
  // Errors: field is the path, the metadata key or the tensor; the message always names the file.
  static Result<GgufFile> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const MappedFile& file() const { return file_; }
  // Gives the map away; views into it stay valid as long as the map, and this object must not be
  // used any more.
  MappedFile take_file() && { return std::move(file_); }
  std::uint32_t version() const { return version_; }
  std::uint64_t alignment() const { return alignment_; }

  // Metadata. A getter refuses a missing key (kNotFound) and a value of another type or outside
  // [min, max]; integers of every width are accepted where an integer is asked for, and nothing is
  // converted between integers, floats, bools and strings.
  bool has(std::string_view key) const { return find(key) != nullptr; }
  const GgufValue* find(std::string_view key) const;
  Result<std::int64_t> get_int(std::string_view key, std::int64_t min = INT64_MIN,
                               std::int64_t max = INT64_MAX) const;
  Result<double> get_float(std::string_view key) const;  // finite
  Result<bool> get_bool(std::string_view key) const;
  Result<std::string_view> get_string(std::string_view key) const;
  Result<std::vector<std::int64_t>> get_int_array(std::string_view key) const;
  Result<std::vector<double>> get_float_array(std::string_view key) const;
  Result<std::span<const std::string_view>> get_string_array(std::string_view key) const;
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  // All keys and values as they lie in the file, for copying them.
  std::span<const std::byte> metadata_bytes() const { return metadata_bytes_; }

  // Tensors, in the order of the file.
  std::span<const GgufTensor> tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;
  std::span<const std::byte> tensor_bytes(const GgufTensor& tensor) const {
    return file_.bytes().subspan(tensor.offset, tensor.bytes);
  }

 private:
  friend class GgufParser;

  MappedFile file_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::span<const std::byte> metadata_bytes_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> tensor_index_;
};

}  // namespace millrace
