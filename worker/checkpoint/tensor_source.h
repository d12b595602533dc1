// The tensors of one checkpoint, whatever its file format, under Hugging Face's names.
//
// Nothing is copied: each entry points into a read-only map that the source owns, so opening costs
// the header only and pages are read when they are first used. Immutable after open, so any number
// of threads may read it. Entries and views live as long as the source.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/mapped_file.h"
#include "config/result.h"
#include "kernels/tensor_view.h"

namespace millrace {

struct TensorEntry {
  std::string name;         // Hugging Face's name, or the file's own where none corresponds
  std::string stored_name;  // as in the file, for messages
  kernels::DType dtype = kernels::DType::kF32;
  std::vector<std::int64_t> shape;  // outermost first; the last dimension is contiguous
  const std::byte* data = nullptr;  // byte aligned at least
  std::uint64_t bytes = 0;

  // As a matrix: all dimensions but the last are rows. A vector is one row.
  kernels::WeightView view() const;
};

std::string shape_text(std::span<const std::int64_t> shape);  // "[65536, 2048]"

// The three matrices of one expert: out = w2 (silu(w1 u) * (w3 u)).
enum class ExpertPart : std::uint8_t { kGate, kUp, kDown };  // w1 [F, D], w3 [F, D], w2 [D, F]

class RandomMemory;

class TensorSource {
 public:
  // A Hugging Face folder (model.packed.gguf, else model.safetensors, else the shards that
  // model.safetensors.index.json names), a single .safetensors file, or a .gguf file. Checks the
  // containers: extents, overlaps, duplicates, element types. Or random:SHAPE
  // (worker/checkpoint/random_tensors.h). Whether the tensors are those of the model is checked by
  // validate_tensors (worker/checkpoint/expected_tensors.h).
  static Result<TensorSource> open(const std::string& path);

  // For the readers: takes the maps and the entries that point into them; refuses two entries of
  // one name.
  static Result<TensorSource> make(std::string path, std::vector<MappedFile> files,
                                   std::vector<TensorEntry> entries);
  static Result<TensorSource> make(std::string path, std::shared_ptr<const RandomMemory> memory,
                                   std::vector<TensorEntry> entries);

  const std::string& path() const { return path_; }
  std::span<const TensorEntry> tensors() const { return entries_; }
  const TensorEntry* find(std::string_view name) const;
  std::uint64_t total_bytes() const;
  std::span<const MappedFile> files() const { return files_; }
  // Null for files. Otherwise what holds the matrices, whose values are still to be made.
  const std::shared_ptr<const RandomMemory>& random() const { return random_; }

  // One expert's matrix, however the experts are stored. For layer prefix
  // P = model.layers.{layer}.feed_forward.experts:
  //   P.{e}.w1 / w3 / w2.weight   one tensor per expert
  //   P.gate_up_proj, P.down_proj (each also with .weight)  [E, 2F, D] gate rows first, [E, D, F]
  //   P.w1 / w3 / w2.weight       [E, F, D], [E, F, D], [E, D, F]: GGUF's stacks
  // kNotFound names the per-expert tensor when no form of it is there; kInvalidArgument when a
  // stack has another rank than 3, an odd number of gate_up rows, or no expert `expert`.
  Result<kernels::WeightView> expert(std::int32_t layer, std::int32_t expert,
                                     ExpertPart part) const;

 private:
  std::string path_;
  std::vector<MappedFile> files_;
  std::shared_ptr<const RandomMemory> random_;
  std::vector<TensorEntry> entries_;
  std::map<std::string, std::size_t, std::less<>> index_;
};

}  // namespace millrace
