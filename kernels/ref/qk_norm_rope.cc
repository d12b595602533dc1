#include "kernels/qk_norm_rope.h"

#include <cmath>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {
namespace {

void head(float* x, std::int64_t head_dim, std::span<const float> weight, float eps,
          const float* cos, const float* sin) {
  double squares = 0;
  for (std::int64_t i = 0; i < head_dim; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(head_dim) + eps);
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const double a = x[i] * scale * weight[static_cast<std::size_t>(i)];
    const double b = x[i + half] * scale * weight[static_cast<std::size_t>(i + half)];
    x[i] = static_cast<float>(a * cos[i] - b * sin[i]);
    x[i + half] = static_cast<float>(b * cos[i] + a * sin[i]);
  }
}

}  // namespace

void rope_angles(const Context&, std::span<const std::int32_t> positions,
                 std::span<const float> inverse_frequencies, MatrixView<float> cos,
                 MatrixView<float> sin) {
  check_rope_angles(positions, inverse_frequencies, cos, sin);
  for (std::size_t t = 0; t < positions.size(); ++t) {
    const auto row = static_cast<std::int64_t>(t);
    for (std::size_t i = 0; i < inverse_frequencies.size(); ++i) {
      // The angle itself is an f32 product, as in Transformers.
      const float angle = static_cast<float>(positions[t]) * inverse_frequencies[i];
      cos.row(row)[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sin.row(row)[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

void qk_norm_rope(const Context&, const QkNormRopeArgs& a) {
  check_qk_norm_rope(a);
  const std::int64_t head_dim = a.q.shape[2];
  for (std::int64_t t = 0; t < a.q.rows(); ++t) {
    for (std::int64_t h = 0; h < a.q.shape[1]; ++h) {
      head(a.q.row(t) + h * head_dim, head_dim, a.q_weight, a.eps, a.cos.row(t), a.sin.row(t));
    }
    for (std::int64_t g = 0; g < a.k.shape[1]; ++g) {
      head(a.k.row(t) + g * head_dim, head_dim, a.k_weight, a.eps, a.cos.row(t), a.sin.row(t));
    }
  }
}

}  // namespace millrace::kernels::reference
