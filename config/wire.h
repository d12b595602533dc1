// Bounds-checked little-endian reading and writing of plain values: the one binary form of
// everything that crosses a process border (step plans over MPI, requests and tokens over TCP).
//
// Integers are fixed-width little-endian, floats their IEEE-754 bits, booleans one byte 0 or 1, and
// strings and lists a u32 count followed by their elements. Nothing is padded or aligned.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "config/check.h"
#include "config/result.h"

namespace millrace {

static_assert(std::endian::native == std::endian::little,
              "the wire format is copied byte for byte; a big-endian build needs byte swaps here");

// Appends to a caller's buffer, so that a buffer that has grown once is used again without
// allocating. Not thread-safe.
class WireWriter {
 public:
  explicit WireWriter(std::vector<std::uint8_t>& out) : out_(out) {}

  void u8(std::uint8_t v) { out_.push_back(v); }
  void u16(std::uint16_t v) { fixed(v); }
  void u32(std::uint32_t v) { fixed(v); }
  void u64(std::uint64_t v) { fixed(v); }
  void i32(std::int32_t v) { fixed(v); }
  void f32(float v) { fixed(v); }
  void f64(double v) { fixed(v); }
  void boolean(bool v) { out_.push_back(v ? 1 : 0); }

  void count(std::size_t n) {
    CHECK(n <= UINT32_MAX, "n={}", n);
    u32(static_cast<std::uint32_t>(n));
  }
  void string(std::string_view s) {
    count(s.size());
    bytes(s.data(), s.size());
  }
  // A list of 4-byte values (token ids, block ids) in one copy.
  template <class T>
  requires(sizeof(T) == 4 && std::is_arithmetic_v<T>) void list(std::span<const T> values) {
    count(values.size());
    bytes(values.data(), values.size_bytes());
  }

 private:
  template <class T>
  void fixed(T v) {
    bytes(&v, sizeof v);
  }
  void bytes(const void* data, std::size_t n) {
    const auto* p = static_cast<const std::uint8_t*>(data);
    out_.insert(out_.end(), p, p + n);
  }

  std::vector<std::uint8_t>& out_;
};

// Reads from bytes that somebody else wrote. The first bad read fails the reader for good: later
// reads give zeros and empty lists, so a decoder is written straight through and asks finish()
// once. Counts are checked against the bytes that are left before anything is allocated, hence a
// short message can never make us reserve much memory. `field` names what is read, for the error;
// it must outlive the reader (a literal). Not thread-safe.
class WireReader {
 public:
  explicit WireReader(std::span<const std::uint8_t> in) : in_(in) {}

  std::uint8_t u8(const char* field) { return fixed<std::uint8_t>(field); }
  std::uint16_t u16(const char* field) { return fixed<std::uint16_t>(field); }
  std::uint32_t u32(const char* field) { return fixed<std::uint32_t>(field); }
  std::uint64_t u64(const char* field) { return fixed<std::uint64_t>(field); }
  std::int32_t i32(const char* field) { return fixed<std::int32_t>(field); }
  float f32(const char* field) { return fixed<float>(field); }
  float finite_f32(const char* field) {
    const float v = f32(field);
    if (!std::isfinite(v)) fail(field, "must be a finite number");
    return ok() ? v : 0.0F;
  }
  double finite_f64(const char* field) {
    const auto v = fixed<double>(field);
    if (!std::isfinite(v)) fail(field, "must be a finite number");
    return ok() ? v : 0.0;
  }
  bool boolean(const char* field) {
    const std::uint8_t v = u8(field);
    if (v > 1) fail(field, "must be 0 or 1");
    return v == 1;
  }
  // An enum with enumerators 0..last.
  template <class E>
  requires(sizeof(E) == 1 && std::is_enum_v<E>) E enumerator(const char* field, E last) {
    const std::uint8_t v = u8(field);
    if (v > static_cast<std::uint8_t>(last)) fail(field, "is not a value this build knows");
    return ok() ? static_cast<E>(v) : E{};
  }

  // Number of elements that follow, each of at least `element_bytes` (> 0) bytes.
  std::size_t count(const char* field, std::size_t element_bytes) {
    const std::size_t n = u32(field);
    if (n > in_.size() / element_bytes) {
      fail(field, "counts more elements than the message has bytes for");
      return 0;
    }
    return n;
  }
  void string(const char* field, std::string& out) {
    const std::size_t n = count(field, 1);
    out.assign(reinterpret_cast<const char*>(in_.data()), n);
    in_ = in_.subspan(n);
  }
  template <class T>
  requires(sizeof(T) == 4 && std::is_arithmetic_v<T>) void list(const char* field,
                                                                std::vector<T>& out) {
    const std::size_t n = count(field, sizeof(T));
    out.resize(n);
    if (n != 0) std::memcpy(out.data(), in_.data(), n * sizeof(T));
    in_ = in_.subspan(n * sizeof(T));
  }

  // For a decoder's own rules ("prompt_tokens exceeds tokens"). Only the first failure is kept.
  void fail(const char* field, const char* why) {
    if (!ok()) return;
    failed_field_ = field;
    failure_ = why;
    in_ = {};
  }
  bool ok() const { return failure_ == nullptr; }
  std::size_t remaining() const { return in_.size(); }

  // The verdict on the whole message; bytes left over are an error. `message` names it.
  Result<void> finish(std::string_view message) {
    if (ok() && !in_.empty()) fail("end", "is followed by bytes that do not belong to the message");
    if (ok()) return {};
    return invalid(std::string(message) + "." + failed_field_,
                   std::string(failure_) + "; the peer is damaged or of another version");
  }

 private:
  template <class T>
  T fixed(const char* field) {
    T v{};
    if (in_.size() < sizeof(T)) {
      fail(field, "is missing: the message ends before it");
      return v;
    }
    std::memcpy(&v, in_.data(), sizeof(T));
    in_ = in_.subspan(sizeof(T));
    return v;
  }

  std::span<const std::uint8_t> in_;
  const char* failed_field_ = "";
  const char* failure_ = nullptr;
};

}  // namespace millrace
