// Weights packed for int8 dot products: the blocks of 16 rows interleaved, so that one vector of
// 32-bit lanes works on 16 rows at once.
//
// A unit is one block of each of 16 rows. It lists the parts of the block one after the other (the
// scales first, then the quantised values), and each part element by element with the 16 rows side
// by side: half-precision scales are 2-byte elements, 6-bit and 8-bit scales single bytes, and
// quantised values groups of 4 bytes. The four bytes of a row in such a group multiply four
// neighbouring inputs, which is what one lane of a dot-product instruction takes. Units follow each
// other along K, tiles of 16 rows along N.
//
// Nothing is rounded: packing and unpacking are permutations of bytes (values of Q8_0 besides get
// their sign bit flipped, to be unsigned). A packed matrix has exactly the bytes of its source, so
// WeightView's sizes hold; slice_rows takes multiples of 16 rows, and row() means nothing inside a
// tile.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/tensor_view.h"

namespace millrace::kernels {

inline constexpr std::int64_t kPackedRows = 16;

// kQ4_0 -> kP4_0 and so on; nothing for a plain or packed type.
std::optional<DType> packed_dtype(DType source);
// The other way; `packed` must be a packed type (CHECK).
DType source_dtype(DType packed);

// A quantised type of a shape that packs: whole tiles of rows, whole blocks along K.
bool can_pack(DType source, std::int64_t rows, std::int64_t cols);

// Writes source.bytes() bytes to `out`, which must not overlap. CHECKs can_pack.
void pack_weight(const WeightView& source, std::byte* out);

// Row `row` of a packed weight as its source stored it: w.row_bytes() bytes.
void unpack_row(const WeightView& w, std::int64_t row, std::byte* out);

}  // namespace millrace::kernels
