#include "worker/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "config/json_text.h"
#include "worker/checkpoint/gguf_tensors.h"

namespace millrace {
namespace {

using kernels::DType;
using nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // limit of the reference reader
constexpr std::uint64_t kMaxIndexBytes = 64U << 20;
constexpr std::size_t kMaxRank = 8;

struct Placed {
  TensorEntry entry;
  std::uint64_t begin = 0;  // in the data section
  std::uint64_t end = 0;
};

std::optional<DType> dtype_of(const std::string& name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  return std::nullopt;
}

Result<std::vector<std::uint64_t>> unsigned_list(const json& object, const char* key,
                                                 const std::string& name, const std::string& path) {
  const auto it = object.find(key);
  const bool is_list = it != object.end() && it->is_array() &&
                       std::all_of(it->begin(), it->end(),
                                   [](const json& item) { return item.is_number_unsigned(); });
  if (!is_list) {
    return invalid(name,
                   fmt::format("{}: \"{}\" is not a list of non-negative integers", path, key));
  }
  return it->get<std::vector<std::uint64_t>>();
}

// One entry of the header, with its bytes checked against shape and dtype.
Result<Placed> parse_entry(const std::string& name, const json& object, const std::string& path) {
  if (!object.is_object() || !object.contains("dtype") || !object["dtype"].is_string()) {
    return invalid(name,
                   fmt::format("{}: expected an object with dtype, shape and data_offsets", path));
  }
  const auto& dtype_name = object["dtype"].get_ref<const std::string&>();
  const auto dtype = dtype_of(dtype_name);
  if (!dtype) {
    return Error{ErrorCode::kUnsupported, name,
                 fmt::format("{}: dtype \"{}\" is not read, expected F32, F16 or BF16", path,
                             dtype_name.substr(0, 40))};
  }
  auto shape = unsigned_list(object, "shape", name, path);
  if (!shape) return shape.error();
  auto offsets = unsigned_list(object, "data_offsets", name, path);
  if (!offsets) return offsets.error();
  if (offsets->size() != 2 || (*offsets)[0] > (*offsets)[1] || shape->size() > kMaxRank) {
    return invalid(name, fmt::format("{}: data_offsets or shape has the wrong form", path));
  }
  Placed out{{name, name, *dtype}, (*offsets)[0], (*offsets)[1]};
  auto bytes = static_cast<std::uint64_t>(kernels::block_bytes(*dtype));
  bool fits = true;
  for (const std::uint64_t dim : *shape) {
    fits = fits && dim <= INT64_MAX && !__builtin_mul_overflow(bytes, dim, &bytes);
    out.entry.shape.push_back(static_cast<std::int64_t>(dim));
  }
  if (!fits || bytes != out.end - out.begin) {
    return invalid(name,
                   fmt::format("{}: shape {} of {} does not take the {} bytes of its "
                               "data_offsets",
                               path, shape_text(out.entry.shape), dtype_name, out.end - out.begin));
  }
  out.entry.bytes = bytes;
  return out;
}

// The tensors must lie side by side and cover the data section exactly.
std::optional<Error> check_cover(std::vector<Placed>& tensors, std::uint64_t data_bytes,
                                 const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const Placed& a, const Placed& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t end = 0;
  for (const Placed& tensor : tensors) {
    const std::string& name = tensor.entry.name;
    if (tensor.end > data_bytes) {
      return invalid(name,
                     fmt::format("{}: its data ends at byte {} but the file holds only {}; the "
                                 "file is cut or damaged",
                                 path, tensor.end, data_bytes));
    }
    if (tensor.begin < end) {
      return invalid(name, fmt::format("{}: its data overlaps that of another tensor", path));
    }
    if (tensor.begin > end) {
      return invalid(name, fmt::format("{}: the {} bytes before its data belong to no tensor", path,
                                       tensor.begin - end));
    }
    end = tensor.end;
  }
  if (end != data_bytes) {
    return invalid(path, fmt::format("{} bytes at its end belong to no tensor", data_bytes - end));
  }
  return std::nullopt;
}

Result<std::uint64_t> header_length(const MappedFile& file) {
  std::uint64_t length = 0;
  if (file.size() < sizeof(length)) {
    return invalid(file.path(),
                   fmt::format("{} bytes are too few for a safetensors file", file.size()));
  }
  std::memcpy(&length, file.bytes().data(), sizeof(length));
  if (file.text().starts_with("version https://git-lfs")) {
    return invalid(file.path(), "is a Git LFS pointer, not the weights; fetch the real file");
  }
  if (length > kMaxHeaderBytes || length > file.size() - sizeof(length)) {
    return invalid(
        file.path(),
        fmt::format("claims a header of {} bytes in a file of {} (limit {}); it is not a "
                    "safetensors file or it is cut",
                    length, file.size(), kMaxHeaderBytes));
  }
  return length;
}

}  // namespace

Result<std::vector<TensorEntry>> parse_safetensors(const MappedFile& file) {
  auto length = header_length(file);
  if (!length) return length.error();
  auto header = parse_json_strict(file.text().substr(8, *length), file.path());
  if (!header) return header.error();
  if (!header->is_object()) return invalid(file.path(), "the header is not a JSON object");

  const std::uint64_t data_begin = 8 + *length;
  std::vector<Placed> tensors;
  for (const auto& [name, object] : header->items()) {
    if (name == "__metadata__") continue;
    auto placed = parse_entry(name, object, file.path());
    if (!placed) return placed.error();
    tensors.push_back(std::move(*placed));
  }
  if (auto error = check_cover(tensors, file.size() - data_begin, file.path())) return *error;

  std::vector<TensorEntry> entries;
  for (Placed& tensor : tensors) {
    tensor.entry.data = file.bytes().data() + data_begin + tensor.begin;
    entries.push_back(std::move(tensor.entry));
  }
  return entries;
}

Result<TensorSource> open_safetensors_file(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  auto entries = parse_safetensors(*file);
  if (!entries) return entries.error();
  std::vector<MappedFile> files;
  files.push_back(std::move(*file));
  return TensorSource::make(path, std::move(files), std::move(*entries));
}

namespace {

// tensor -> shard, as the index states it.
Result<std::map<std::string, std::string>> parse_weight_map(const std::string& path) {
  auto index = load_json_file(path, kMaxIndexBytes);
  if (!index) return index.error();
  const auto map = index->is_object() ? index->find("weight_map") : index->end();
  if (!index->is_object() || map == index->end() || !map->is_object() || map->empty()) {
    return invalid("weight_map", fmt::format("{}: expected an object {{tensor: shard}}", path));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      return invalid(tensor, fmt::format("{}: expected the name of a shard", path));
    }
    const auto& name = shard.get_ref<const std::string&>();
    const bool plain = !name.empty() && name != "." && name != ".." &&
                       name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
    if (!plain) {
      return invalid(
          tensor, fmt::format("{}: shard \"{}\" is not the name of a file beside the index", path,
                              name.substr(0, 80)));
    }
    shards.emplace(tensor, name);
  }
  return shards;
}

// Moves one shard's tensors to `entries` and ticks them off in `weight_map`.
std::optional<Error> take_shard(const MappedFile& file, const std::string& shard,
                                std::map<std::string, std::string>& weight_map,
                                std::vector<TensorEntry>& entries) {
  auto tensors = parse_safetensors(file);
  if (!tensors) return tensors.error();
  for (TensorEntry& entry : *tensors) {
    const auto it = weight_map.find(entry.name);
    if (it == weight_map.end() || it->second != shard) {
      return invalid(
          entry.name,
          fmt::format("{}: the index does not put this tensor into this shard", file.path()));
    }
    weight_map.erase(it);
    entries.push_back(std::move(entry));
  }
  return std::nullopt;
}

}  // namespace

Result<TensorSource> open_safetensors_folder(const std::string& folder) {
  const std::filesystem::path base(folder);
  const std::string single = (base / "model.safetensors").string();
  const std::string index = (base / "model.safetensors.index.json").string();
  const std::string packed = (base / kPackedFile).string();
  std::error_code ignored;
  if (std::filesystem::exists(packed, ignored)) return open_gguf(packed);
  if (std::filesystem::exists(single, ignored)) return open_safetensors_file(single);
  if (!std::filesystem::exists(index, ignored)) {
    return Error{ErrorCode::kNotFound, folder,
                 "holds neither model.safetensors nor model.safetensors.index.json"};
  }
  auto weight_map = parse_weight_map(index);
  if (!weight_map) return weight_map.error();
  std::map<std::string, std::string> first_tensor;  // shard -> a tensor in it, for the message
  for (const auto& [tensor, shard] : *weight_map) first_tensor.emplace(shard, tensor);

  std::vector<MappedFile> files;
  std::vector<TensorEntry> entries;
  for (const auto& [shard, tensor] : first_tensor) {
    auto file = MappedFile::open((base / shard).string());
    if (!file) {
      Error error = file.error();
      error.message += fmt::format(" ({} puts {} there)", index, tensor);
      return error;
    }
    if (auto error = take_shard(*file, shard, *weight_map, entries)) return *error;
    files.push_back(std::move(*file));
  }
  if (!weight_map->empty()) {
    const auto& [tensor, shard] = *weight_map->begin();
    return Error{
        ErrorCode::kNotFound, tensor,
        fmt::format("{}: the index puts it into {}, which does not hold it", index, shard)};
  }
  return TensorSource::make(folder, std::move(files), std::move(entries));
}

}  // namespace millrace
