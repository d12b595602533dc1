// The tensors of a model that is a shape alone (config/random_model.h): bf16 matrices of random
// values (kernels/random_weights.h), norms of one, random taps, no expert bias, so that hidden
// states and logits stay near their usual size and every expert gets about as many tokens.
//
// The matrices have addresses, but no memory until it is written: a value follows from its address.
// On devices a kernel makes it where it is needed; the CPU's workers call fill().
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "config/result.h"
#include "kernels/tensor_view.h"
#include "worker/checkpoint/tensor_source.h"

namespace millrace {

class RandomMemory {
 public:
  // Reserves addresses. Throws std::bad_alloc.
  RandomMemory(std::uint64_t seed, std::uint64_t bytes);
  ~RandomMemory();
  RandomMemory(const RandomMemory&) = delete;
  RandomMemory& operator=(const RandomMemory&) = delete;

  std::uint64_t seed() const { return seed_; }
  std::byte* data() const { return data_; }

  // Index of a matrix's first value, and their step.
  std::uint64_t first(const kernels::WeightView& matrix) const;
  static float half_step(const kernels::WeightView& matrix);

  // Writes the values of bf16 matrices that have none yet. From any thread. kResourceExhausted when
  // they are more than this machine's memory.
  Result<void> fill(std::span<const kernels::WeightView> matrices, int threads) const;

 private:
  std::uint64_t seed_;
  std::byte* data_ = nullptr;
  std::uint64_t bytes_;
  mutable std::mutex mutex_;
  mutable std::set<const std::byte*> filled_;
};

// `path` as config/random_model.h has it.
Result<TensorSource> open_random_model(const std::string& path);

}  // namespace millrace
