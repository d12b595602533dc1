// Cuts one device allocation into aligned parts.
//
// What lies in it is described by a function over a cursor. Run with a cursor without memory it
// measures, so that the memory plan and the allocation cannot differ; run again with memory it
// hands the addresses out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace millrace {

class ArenaCursor {
 public:
  ArenaCursor() = default;  // measures: take() gives null
  explicit ArenaCursor(std::byte* base) : base_(base) {}

  // `count` values, aligned to 256 bytes: enough for every kernel. Contents undefined.
  template <class T>
  T* take(std::int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ +=
        (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(at);
  }

  bool measuring() const { return base_ == nullptr; }
  std::size_t used_bytes() const { return used_; }

 private:
  static constexpr std::size_t kAlignment = 256;
  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
};

// Bytes of what `lay_out(cursor)` takes.
template <class LayOut>
std::size_t arena_bytes(LayOut&& lay_out) {
  ArenaCursor cursor;
  lay_out(cursor);
  return cursor.used_bytes();
}

// Allocates what `lay_out(cursor)` takes and lets it take it.
template <class LayOut>
kernels::cuda::DeviceBuffer make_arena(LayOut&& lay_out) {
  kernels::cuda::DeviceBuffer memory(arena_bytes(lay_out));
  ArenaCursor cursor(memory.data());
  if (memory.data() != nullptr) lay_out(cursor);
  return memory;
}

}  // namespace millrace
