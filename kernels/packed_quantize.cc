#include "kernels/packed_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "config/check.h"
#include "kernels/dtype_name.h"

namespace millrace::kernels {
namespace {

constexpr int kBlock = 32;

// Rounds to nearest, ties to even, for |x| up to 2^22: a plain loop of these vectorises.
float round_even(float x) {
  constexpr float kMagic = 0x1.8p23F;
  return (x + kMagic) - kMagic;
}

float largest_magnitude(const float* x) {
  float most = 0;
  for (int i = 0; i < kBlock; ++i) most = std::max(most, std::fabs(x[i]));
  return most;
}

// A NaN or infinity in a weight shows in every result it takes part in, as it would unquantised.
bool finite(const float* x) {
  bool all = true;
  for (int i = 0; i < kBlock; ++i) all = all && std::isfinite(x[i]);
  return all;
}

// Half precision, but never so large that a finite weight becomes infinite.
std::uint16_t scale_bits(float d) { return f32_to_f16(std::clamp(d, -65504.0F, 65504.0F)); }

void put_scale(std::uint16_t bits, std::byte* out) { std::memcpy(out, &bits, sizeof bits); }

void block_q8_0(const float* x, std::byte* out) {
  const std::uint16_t bits = scale_bits(largest_magnitude(x) / 127.0F);
  const float d = f16_to_f32(bits);
  put_scale(bits, out);
  for (int i = 0; i < kBlock; ++i) {
    const float q = d == 0 ? 0.0F : std::clamp(round_even(x[i] / d), -127.0F, 127.0F);
    out[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(q));
  }
}

// How well values of one sign of scale fit: the squared length of x's part along them, which is the
// squared error's loss, and the scale that gets it.
struct Fit {
  float gain = 0;
  float scale = 0;
};

Fit fit_q4(const float* x, float inverse) {
  float xq = 0;
  float qq = 0;
  for (int i = 0; i < kBlock; ++i) {
    const float q = std::clamp(round_even(x[i] * inverse), -8.0F, 7.0F);
    xq += x[i] * q;
    qq += q * q;
  }
  if (qq == 0) return {};
  return {xq * xq / qq, xq / qq};
}

// The largest value lies at 8 steps of one sign or 7 of the other; scales from a sixth below that
// to a quarter above clip it a little or leave steps unused.
float best_scale_q4(const float* x, float most) {
  Fit best;
  for (int step = -8; step <= 8; ++step) {
    const float inverse = (8.0F + 0.2F * static_cast<float>(step)) / most;
    for (const float sign : {-1.0F, 1.0F}) {
      const Fit fit = fit_q4(x, sign * inverse);
      if (fit.gain > best.gain) best = fit;
    }
  }
  return best.scale;
}

void block_q4_0(const float* x, std::byte* out) {
  const float most = largest_magnitude(x);
  const std::uint16_t bits = most < 0x1p-100F ? 0 : scale_bits(best_scale_q4(x, most));
  const float d = f16_to_f32(bits);
  put_scale(bits, out);
  int n[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float q = d == 0 ? 0.0F : std::clamp(round_even(x[i] / d), -8.0F, 7.0F);
    n[i] = static_cast<int>(q) + 8;
  }
  for (int i = 0; i < kBlock / 2; ++i) out[2 + i] = static_cast<std::byte>(n[i] | (n[i + 16] << 4));
}

void read_block(const WeightView& w, const std::byte* row, std::int64_t k, float* out) {
  const std::int64_t size = block_bytes(w.dtype);
  for (int i = 0; i < kBlock; ++i) {
    std::uint16_t bits = 0;
    const std::byte* from = row + (k + i) * size;
    if (w.dtype == DType::kF32) {
      std::memcpy(out + i, from, sizeof(float));
      continue;
    }
    std::memcpy(&bits, from, sizeof bits);
    out[i] = w.dtype == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  }
}

}  // namespace

void quantize_weight(const WeightView& source, DType dtype, std::byte* out) {
  CHECK(block_values(source.dtype) == 1 && (dtype == DType::kQ8_0 || dtype == DType::kQ4_0) &&
            row_fits(dtype, source.cols),
        "{} [{}, {}] to {}", dtype_name(source.dtype), source.rows, source.cols, dtype_name(dtype));
  const std::int64_t bytes = block_bytes(dtype);
  float x[kBlock];
  for (std::int64_t n = 0; n < source.rows; ++n) {
    for (std::int64_t k = 0; k < source.cols; k += kBlock, out += bytes) {
      read_block(source, source.row(n), k, x);
      if (!finite(x)) {
        std::memset(out, 0, static_cast<std::size_t>(bytes));
        put_scale(0x7e00, out);
      } else if (dtype == DType::kQ8_0) {
        block_q8_0(x, out);
      } else {
        block_q4_0(x, out);
      }
    }
  }
}

}  // namespace millrace::kernels
