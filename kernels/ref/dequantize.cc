#include "kernels/dequantize.h"

#include <cstring>
#include <vector>

#include "config/check.h"
#include "kernels/dtype_name.h"
#include "kernels/packed.h"
#include "kernels/ref/set.h"

namespace millrace::kernels::reference {
namespace {

using Bytes = const std::uint8_t*;

std::uint16_t read_u16(Bytes p) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

float half(Bytes p) { return f16_to_f32(read_u16(p)); }

float f32(Bytes p) {
  float value = 0;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// d, 32 int8
void block_q8_0(Bytes b, float* out) {
  for (int j = 0; j < 32; ++j)
    out[j] = half(b) * static_cast<float>(static_cast<std::int8_t>(b[2 + j]));
}

// d, 16 bytes: low nibbles are values 0..15, high nibbles 16..31, each less 8
void block_q4_0(Bytes b, float* out) {
  for (int j = 0; j < 16; ++j) {
    out[j] = half(b) * static_cast<float>((b[2 + j] & 15) - 8);
    out[j + 16] = half(b) * static_cast<float>((b[2 + j] >> 4) - 8);
  }
}

// d, m, 16 bytes in the order of Q4_0
void block_q4_1(Bytes b, float* out) {
  for (int j = 0; j < 16; ++j) {
    out[j] = half(b) * static_cast<float>(b[4 + j] & 15) + half(b + 2);
    out[j + 16] = half(b) * static_cast<float>(b[4 + j] >> 4) + half(b + 2);
  }
}

struct ScaleMin {
  int scale;
  int min;
};

// The 6-bit scale and minimum of sub-block j, out of the 12 packed bytes of Q4_K and Q5_K.
ScaleMin scale_min(Bytes b, int j) {
  if (j < 4) return {b[j] & 63, b[j + 4] & 63};
  return {(b[j + 4] & 15) | ((b[j - 4] >> 6) << 4), (b[j + 4] >> 4) | ((b[j] >> 6) << 4)};
}

// d, dmin, 12 scale bytes, then four groups of 32 bytes: low nibbles are sub-block 2g, high 2g + 1.
void block_q4_k(Bytes b, float* out) {
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_min(b + 4, j);
    const float d = half(b) * static_cast<float>(scale);
    const float m = half(b + 2) * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const int byte = b[16 + 32 * (j / 2) + l];
      const int n = j % 2 == 0 ? byte & 15 : byte >> 4;
      out[32 * j + l] = d * static_cast<float>(n) - m;
    }
  }
}

// As Q4_K with 32 bytes of fifth bits before the nibbles: bit j of byte l belongs to sub-block j.
void block_q5_k(Bytes b, float* out) {
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_min(b + 4, j);
    const float d = half(b) * static_cast<float>(scale);
    const float m = half(b + 2) * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const int byte = b[48 + 32 * (j / 2) + l];
      const int n = (j % 2 == 0 ? byte & 15 : byte >> 4) + 16 * ((b[16 + l] >> j) & 1);
      out[32 * j + l] = d * static_cast<float>(n) - m;
    }
  }
}

// ql[128], qh[64], int8 scale[16], d. Value i lies in half h = i / 128, quarter q of 32, lane l.
void block_q6_k(Bytes b, float* out) {
  for (int i = 0; i < 256; ++i) {
    const int h = i / 128;
    const int q = i % 128 / 32;
    const int l = i % 32;
    const int low_byte = b[64 * h + 32 * (q % 2) + l];
    const int low = q < 2 ? low_byte & 15 : low_byte >> 4;
    const int high = (b[128 + 32 * h + l] >> (2 * q)) & 3;
    const auto scale = static_cast<std::int8_t>(b[192 + 8 * h + 2 * q + l / 16]);
    out[i] =
        half(b + 208) * static_cast<float>(scale) * static_cast<float>((low | (high << 4)) - 32);
  }
}

void block(DType dtype, Bytes b, float* out) {
  switch (dtype) {
    case DType::kF32:
      *out = f32(b);
      return;
    case DType::kF16:
      *out = half(b);
      return;
    case DType::kBF16:
      *out = bf16_to_f32(read_u16(b));
      return;
    case DType::kQ8_0:
      return block_q8_0(b, out);
    case DType::kQ4_0:
      return block_q4_0(b, out);
    case DType::kQ4_1:
      return block_q4_1(b, out);
    case DType::kQ4_K:
      return block_q4_k(b, out);
    case DType::kQ5_K:
      return block_q5_k(b, out);
    case DType::kQ6_K:
      return block_q6_k(b, out);
    default:
      CHECK(false, "{} has no blocks of one row", dtype_name(dtype));
  }
}

}  // namespace

void dequantize_row(const WeightView& w, std::int64_t row, float* out) {
  if (is_packed(w.dtype)) {
    std::vector<std::byte> unpacked(static_cast<std::size_t>(w.row_bytes()));
    unpack_row(w, row, unpacked.data());
    return dequantize_row({unpacked.data(), source_dtype(w.dtype), 1, w.cols}, 0, out);
  }
  const auto* bytes = reinterpret_cast<Bytes>(w.row(row));
  for (std::int64_t k = 0; k < w.cols; k += block_values(w.dtype)) {
    block(w.dtype, bytes, out + k);
    bytes += block_bytes(w.dtype);
  }
}

void dequantize(const Context&, const WeightView& w, MatrixView<float> out) {
  check_dequantize(w, out);
  for (std::int64_t n = 0; n < w.rows; ++n) dequantize_row(w, n, out.row(n));
}

}  // namespace millrace::kernels::reference
