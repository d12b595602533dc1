// The dot products of packed weights, by the definition in kernels/packed_gemm.h: weights taken
// back to the blocks of their source, one row and one token at a time.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "config/check.h"
#include "kernels/dtype_name.h"
#include "kernels/packed_gemm.h"
#include "kernels/ref/set.h"

namespace millrace::kernels::reference {
namespace {

using Bytes = const std::uint8_t*;

float half_at(Bytes p) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, p, sizeof bits);
  return f16_to_f32(bits);
}

// 32 weights: quants from their middle, a coefficient for each 16, and one of the activations' sum.
struct Block32 {
  int quant[32];
  float scale[2];
  float minimum = 0;
  bool has_minimum = false;
  bool halves = false;
};

Block32 q8_0(Bytes b) {
  Block32 out{};
  for (int i = 0; i < 32; ++i) out.quant[i] = static_cast<std::int8_t>(b[2 + i]);
  out.scale[0] = half_at(b);
  return out;
}

Block32 q4(Bytes b, bool minimum) {
  Block32 out{};
  out.has_minimum = minimum;
  out.scale[0] = half_at(b);
  if (minimum) out.minimum = half_at(b + 2);
  Bytes nibbles = b + (minimum ? 4 : 2);
  for (int i = 0; i < 16; ++i) {
    out.quant[i] = (nibbles[i] & 15) - (minimum ? 0 : 8);
    out.quant[i + 16] = (nibbles[i] >> 4) - (minimum ? 0 : 8);
  }
  return out;
}

// Sub-block j of Q4_K, or with `fifth` of Q5_K.
Block32 q45_k(Bytes b, int j, bool fifth) {
  Block32 out{};
  out.has_minimum = true;
  Bytes s = b + 4;
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
  const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  out.scale[0] = half_at(b) * static_cast<float>(scale);
  out.minimum = -(half_at(b + 2) * static_cast<float>(minimum));
  for (int i = 0; i < 32; ++i) {
    const int byte = b[(fifth ? 48 : 16) + 32 * (j / 2) + i];
    out.quant[i] = j % 2 == 0 ? byte & 15 : byte >> 4;
    if (fifth) out.quant[i] += 16 * ((b[16 + i] >> j) & 1);
  }
  return out;
}

Block32 q6_k(Bytes b, int j) {
  Block32 out{};
  out.halves = true;
  for (int i = 0; i < 32; ++i) {
    const int low = b[64 * (j / 4) + 32 * (j % 2) + i];
    const int high = (b[128 + 32 * (j / 4) + i] >> (2 * (j % 4))) & 3;
    out.quant[i] = ((j % 4 < 2 ? low & 15 : low >> 4) | (high << 4)) - 32;
  }
  for (int h = 0; h < 2; ++h) {
    const auto scale = static_cast<std::int8_t>(b[192 + 2 * j + h]);
    out.scale[h] = half_at(b + 208) * static_cast<float>(scale);
  }
  return out;
}

Block32 block_at(DType source, Bytes row, std::int64_t k) {
  Bytes b = row + k / block_values(source) * block_bytes(source);
  const int j = static_cast<int>(k % block_values(source) / 32);
  switch (source) {
    case DType::kQ8_0:
      return q8_0(b);
    case DType::kQ4_0:
      return q4(b, false);
    case DType::kQ4_1:
      return q4(b, true);
    case DType::kQ4_K:
      return q45_k(b, j, false);
    case DType::kQ5_K:
      return q45_k(b, j, true);
    case DType::kQ6_K:
      return q6_k(b, j);
    default:
      CHECK(false, "{} does not pack", dtype_name(source));
  }
}

struct Activations32 {
  int quant[32];
  float scale = 0;
};

Activations32 quantize(const float* x) {
  Activations32 out{};
  float most = 0;
  bool finite = true;
  for (int i = 0; i < 32; ++i) {
    finite = finite && std::isfinite(x[i]);
    most = std::fmax(most, std::fabs(x[i]));
  }
  if (!finite) out.scale = std::numeric_limits<float>::quiet_NaN();
  if (!finite || most < 0x1p-100F) return out;
  const float inverse = 127.0F / most;
  out.scale = most / 127.0F;
  for (int i = 0; i < 32; ++i) out.quant[i] = static_cast<int>(std::nearbyint(x[i] * inverse));
  return out;
}

float dot_row(DType source, Bytes row, const float* x, std::int64_t k) {
  float y = 0;
  for (std::int64_t at = 0; at < k; at += 32) {
    const Block32 w = block_at(source, row, at);
    const Activations32 a = quantize(x + at);
    int sum = 0;
    int dot[2] = {};
    for (int i = 0; i < 32; ++i) {
      sum += a.quant[i];
      dot[w.halves ? i / 16 : 0] += w.quant[i] * a.quant[i];
    }
    for (int h = 0; h < (w.halves ? 2 : 1); ++h) {
      y = std::fma(static_cast<float>(dot[h]), w.scale[h] * a.scale, y);
    }
    if (w.has_minimum) y = std::fma(w.minimum, a.scale * static_cast<float>(sum), y);
  }
  return y;
}

}  // namespace

void packed_gemm(MatrixView<const float> x, const WeightView& w, Accumulate accumulate,
                 MatrixView<float> y) {
  std::vector<std::uint8_t> row(static_cast<std::size_t>(w.row_bytes()));
  for (std::int64_t n = 0; n < w.rows; ++n) {
    unpack_row(w, n, reinterpret_cast<std::byte*>(row.data()));
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      const float dot = dot_row(source_dtype(w.dtype), row.data(), x.row(t), w.cols);
      float& out = y.row(t)[n];
      out = accumulate == Accumulate::kAdd ? out + dot : dot;
    }
  }
}

}  // namespace millrace::kernels::reference
