// Takes matrices from the checkpoint's maps into memory of the worker's own, in the packed form
// that the CPU kernels stream fastest (kernels/packed.h), quantising them on the way where that is
// asked for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "config/cluster_config.h"
#include "kernels/tensor_view.h"

namespace millrace {

// What a matrix is for: decides whether it is packed and whether its precision may be touched.
enum class WeightUse : std::uint8_t {
  kProjection,
  kHead,    // the embedding too, where one rank has both as the same matrix
  kLookup,  // an embedding of which only single rows are read
  kRouter,  // rounding flips experts
};

// The type in which a matrix that the checkpoint holds as `stored` is computed with.
kernels::DType loaded_dtype(const kernels::WeightView& stored, WeightUse use, CpuWeights mode);

// Rows of one matrix from the type in which they are stored to the packed type `dtype` that
// loaded_dtype chose: writes their packed bytes to `out`. `buffer` is scratch.
void pack_rows(const kernels::WeightView& stored, kernels::DType dtype, std::byte* out,
               std::vector<std::byte>& buffer);

// Zero-filled pages, huge ones where the system has them; the threads that first write them decide
// on which NUMA node they lie.
class AnonymousMemory {
 public:
  // Throws std::bad_alloc.
  explicit AnonymousMemory(std::size_t bytes);
  ~AnonymousMemory();
  AnonymousMemory(const AnonymousMemory&) = delete;
  AnonymousMemory& operator=(const AnonymousMemory&) = delete;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  void* map_ = nullptr;
  std::size_t map_bytes_ = 0;
};

struct MatrixUse {
  kernels::WeightView* view = nullptr;
  WeightUse use = WeightUse::kProjection;
};

using LoadProgress = std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

// Points the views of those matrices that loaded_dtype changes to packed copies in the returned
// memory (null when there are none). The pages of a source are given back to the system as soon as
// they are read, so that there is never a second copy of more than a few megabytes for each thread;
// they must be of read-only file maps. `progress` (may be empty) counts bytes of sources, on the
// calling thread, never decreasing and without a call for the last byte.
std::shared_ptr<const AnonymousMemory> pack_matrices(std::span<const MatrixUse> matrices,
                                                     CpuWeights mode, int threads,
                                                     const LoadProgress& progress);

}  // namespace millrace
