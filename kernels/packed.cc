#include "kernels/packed.h"

#include <array>
#include <cstring>
#include <span>

#include "config/check.h"
#include "kernels/dtype_name.h"

namespace millrace::kernels {
namespace {

// `count` elements of `bytes` bytes at `offset` of a block.
struct Part {
  int offset;
  int bytes;
  int count;
  std::uint8_t flip = 0;  // XORed into each byte
};

struct Layout {
  DType source;
  DType packed;
  std::array<Part, 5> parts;
};

// Offsets: kernels/ref/dequantize.cc. Unused parts have count 0.
constexpr Layout kLayouts[] = {
    {DType::kQ8_0, DType::kP8_0, {{{0, 2, 1}, {2, 4, 8, 0x80}}}},
    {DType::kQ4_0, DType::kP4_0, {{{0, 2, 1}, {2, 4, 4}}}},
    {DType::kQ4_1, DType::kP4_1, {{{0, 2, 1}, {2, 2, 1}, {4, 4, 4}}}},
    {DType::kQ4_K, DType::kP4_K, {{{0, 2, 1}, {2, 2, 1}, {4, 1, 12}, {16, 4, 32}}}},
    {DType::kQ5_K, DType::kP5_K, {{{0, 2, 1}, {2, 2, 1}, {4, 1, 12}, {16, 4, 8}, {48, 4, 32}}}},
    {DType::kQ6_K, DType::kP6_K, {{{208, 2, 1}, {192, 1, 16}, {0, 4, 32}, {128, 4, 16}}}},
};

const Layout& layout_of(DType packed) {
  for (const Layout& layout : kLayouts) {
    if (layout.packed == packed) return layout;
  }
  CHECK(false, "{} is not a packed type", dtype_name(packed));
}

template <int Bytes>
void interleave(const std::byte* from, std::int64_t row_stride, int count, std::uint8_t flip,
                std::byte* to) {
  for (int i = 0; i < count; ++i) {
    for (std::int64_t r = 0; r < kPackedRows; ++r, to += Bytes) {
      std::memcpy(to, from + r * row_stride + i * Bytes, Bytes);
      if (flip == 0) continue;
      for (int b = 0; b < Bytes; ++b) to[b] ^= static_cast<std::byte>(flip);
    }
  }
}

void pack_unit(const Layout& layout, const std::byte* from, std::int64_t row_stride,
               std::byte* to) {
  for (const Part& p : layout.parts) {
    if (p.bytes == 1) interleave<1>(from + p.offset, row_stride, p.count, p.flip, to);
    if (p.bytes == 2) interleave<2>(from + p.offset, row_stride, p.count, p.flip, to);
    if (p.bytes == 4) interleave<4>(from + p.offset, row_stride, p.count, p.flip, to);
    to += p.bytes * p.count * kPackedRows;
  }
}

}  // namespace

std::optional<DType> packed_dtype(DType source) {
  for (const Layout& layout : kLayouts) {
    if (layout.source == source) return layout.packed;
  }
  return std::nullopt;
}

DType source_dtype(DType packed) { return layout_of(packed).source; }

bool can_pack(DType source, std::int64_t rows, std::int64_t cols) {
  return packed_dtype(source).has_value() && rows > 0 && rows % kPackedRows == 0 &&
         row_fits(source, cols);
}

void pack_weight(const WeightView& source, std::byte* out) {
  CHECK(can_pack(source.dtype, source.rows, source.cols), "{} [{}, {}]", dtype_name(source.dtype),
        source.rows, source.cols);
  const Layout& layout = layout_of(*packed_dtype(source.dtype));
  const std::int64_t block = block_bytes(source.dtype);
  const std::int64_t row_bytes = source.row_bytes();
  for (std::int64_t n = 0; n < source.rows; n += kPackedRows) {
    const std::byte* rows = source.data + n * row_bytes;
    for (std::int64_t at = 0; at < row_bytes; at += block, out += block * kPackedRows) {
      pack_unit(layout, rows + at, row_bytes, out);
    }
  }
}

void unpack_row(const WeightView& w, std::int64_t row, std::byte* out) {
  const Layout& layout = layout_of(w.dtype);
  const std::int64_t block = block_bytes(w.dtype);
  const std::int64_t row_bytes = w.row_bytes();
  CHECK(row >= 0 && row < w.rows, "row {} of {}", row, w.rows);
  const std::byte* unit = w.data + row / kPackedRows * kPackedRows * row_bytes;
  for (std::int64_t at = 0; at < row_bytes; at += block) {
    for (const Part& p : layout.parts) {
      const std::byte* from = unit + row % kPackedRows * p.bytes;
      std::byte* to = out + at + p.offset;
      for (int i = 0; i < p.count; ++i, from += kPackedRows * p.bytes) {
        for (int b = 0; b < p.bytes; ++b) *to++ = from[b] ^ static_cast<std::byte>(p.flip);
      }
      unit += p.bytes * p.count * kPackedRows;
    }
  }
}

}  // namespace millrace::kernels
