#include "worker/checkpoint/tensor_source.h"

#include <fmt/format.h>

#include <filesystem>

#include "config/random_model.h"
#include "worker/checkpoint/gguf_tensors.h"
#include "worker/checkpoint/random_tensors.h"
#include "worker/checkpoint/safetensors.h"

namespace millrace {

using kernels::WeightView;

WeightView TensorEntry::view() const {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return {data, dtype, rows, shape.empty() ? 1 : shape.back()};
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Result<TensorSource> TensorSource::open(const std::string& path) {
  if (is_random_model(path)) return open_random_model(path);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return open_safetensors_folder(path);
  if (path.ends_with(".safetensors")) return open_safetensors_file(path);
  return open_gguf(path);
}

Result<TensorSource> TensorSource::make(std::string path, std::vector<MappedFile> files,
                                        std::vector<TensorEntry> entries) {
  TensorSource source;
  source.path_ = std::move(path);
  source.files_ = std::move(files);
  source.entries_ = std::move(entries);
  for (std::size_t i = 0; i < source.entries_.size(); ++i) {
    const TensorEntry& entry = source.entries_[i];
    const auto [it, inserted] = source.index_.emplace(entry.name, i);
    if (!inserted) {
      return invalid(entry.name,
                     fmt::format("{}: this tensor appears twice (as {} and {})", source.path_,
                                 entry.stored_name, source.entries_[it->second].stored_name));
    }
  }
  return source;
}

Result<TensorSource> TensorSource::make(std::string path,
                                        std::shared_ptr<const RandomMemory> memory,
                                        std::vector<TensorEntry> entries) {
  Result<TensorSource> source =
      make(std::move(path), std::vector<MappedFile>{}, std::move(entries));
  if (source) source->random_ = std::move(memory);
  return source;
}

const TensorEntry* TensorSource::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

std::uint64_t TensorSource::total_bytes() const {
  std::uint64_t total = 0;
  for (const TensorEntry& entry : entries_) total += entry.bytes;
  return total;
}

namespace {

// Rows [begin, begin + count) of matrix `expert` in a stack [E, rows, cols].
struct StackSlice {
  const TensorEntry* stack = nullptr;
  int parts = 1;  // matrices of equal height side by side: 2 in gate_up_proj
  int part = 0;
};

StackSlice find_stack(const TensorSource& source, const std::string& prefix, const char* own,
                      ExpertPart part) {
  const TensorEntry* stack = source.find(prefix + own + ".weight");
  if (stack != nullptr) return {stack};
  const std::string packed = prefix + (part == ExpertPart::kDown ? "down_proj" : "gate_up_proj");
  stack = source.find(packed);
  if (stack == nullptr) stack = source.find(packed + ".weight");
  if (part == ExpertPart::kDown) return {stack};
  return {stack, 2, part == ExpertPart::kUp ? 1 : 0};
}

}  // namespace

Result<WeightView> TensorSource::expert(std::int32_t layer, std::int32_t expert,
                                        ExpertPart part) const {
  const char* own = part == ExpertPart::kGate ? "w1" : part == ExpertPart::kUp ? "w3" : "w2";
  const std::string prefix = fmt::format("model.layers.{}.feed_forward.experts.", layer);
  const std::string single = fmt::format("{}{}.{}.weight", prefix, expert, own);
  if (const TensorEntry* entry = find(single)) return entry->view();

  const StackSlice slice = find_stack(*this, prefix, own, part);
  if (slice.stack == nullptr) {
    return Error{ErrorCode::kNotFound, single, fmt::format("{}: there is no such tensor", path_)};
  }
  const std::vector<std::int64_t>& shape = slice.stack->shape;
  if (shape.size() != 3 || shape[1] % slice.parts != 0 || expert < 0 || expert >= shape[0]) {
    return invalid(slice.stack->name,
                   fmt::format("{}: shape {} has no expert {} with {} equal parts", path_,
                               shape_text(shape), expert, slice.parts));
  }
  const std::int64_t rows = shape[1] / slice.parts;
  return slice.stack->view().slice_rows(expert * shape[1] + slice.part * rows, rows);
}

}  // namespace millrace
