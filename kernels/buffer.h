// Owning host memory, aligned to a cache line. Move-only; allocated once at start-up, never on the
// hot path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/tensor_view.h"

namespace millrace::kernels {

inline constexpr std::size_t kBufferAlignment = 64;

class Buffer {
 public:
  Buffer() = default;
  // Zero-filled. From 2 MiB on it begins on a huge page and takes memory only where it is touched,
  // so a buffer sized for the worst case costs what is used of it. Throws std::bad_alloc.
  explicit Buffer(std::size_t bytes);

  std::byte* data() { return memory_.get(); }
  const std::byte* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }

  // The buffer seen as values of T; the caller keeps to bytes() / sizeof(T) of them.
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(memory_.get());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(memory_.get());
  }

 private:
  struct Free {
    std::size_t mapped_bytes;  // 0: from malloc
    void operator()(std::byte* p) const noexcept;
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_ = 0;
};

// A buffer of T with its shape: owner of a [rows, cols] matrix.
template <class T>
class MatrixBuffer {
 public:
  MatrixBuffer() = default;
  MatrixBuffer(std::int64_t rows, std::int64_t cols)
      : buffer_(static_cast<std::size_t>(rows * cols) * sizeof(T)), rows_(rows), cols_(cols) {}

  MatrixView<T> view() { return matrix(buffer_.as<T>(), rows_, cols_); }
  MatrixView<const T> view() const { return matrix(buffer_.as<T>(), rows_, cols_); }
  // The first `rows` rows: activations are sized for the largest step and used for smaller ones.
  MatrixView<T> view(std::int64_t rows) { return view().slice_rows(0, rows); }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::size_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

}  // namespace millrace::kernels
