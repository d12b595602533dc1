#include "kernels/qk_norm_rope.h"

#include <cmath>

#include "config/check.h"

namespace millrace::kernels {

std::vector<float> rope_inverse_frequencies(float theta, std::int64_t head_dim) {
  CHECK(theta > 0 && head_dim > 0 && head_dim % 2 == 0, "theta={} head_dim={}", theta, head_dim);
  std::vector<float> out(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const double power = std::pow(static_cast<double>(theta), static_cast<double>(exponent));
    out[i] = 1.0F / static_cast<float>(power);
  }
  return out;
}

void check_rope_angles(std::span<const std::int32_t> positions,
                       std::span<const float> inverse_frequencies, MatrixView<float> cos,
                       MatrixView<float> sin) {
  const auto rows = static_cast<std::int64_t>(positions.size());
  const auto half = static_cast<std::int64_t>(inverse_frequencies.size());
  CHECK(cos.rows() == rows && sin.rows() == rows && cos.cols() == half && sin.cols() == half,
        "positions={} frequencies={} cos=[{}, {}] sin=[{}, {}]", rows, half, cos.rows(), cos.cols(),
        sin.rows(), sin.cols());
}

void check_qk_norm_rope(const QkNormRopeArgs& a) {
  const std::int64_t rows = a.q.rows();
  const std::int64_t head_dim = a.q.shape[2];
  CHECK(head_dim > 0 && head_dim % 2 == 0 && a.k.shape[2] == head_dim && a.k.rows() == rows,
        "q=[{}, {}, {}] k=[{}, {}, {}]", rows, a.q.shape[1], head_dim, a.k.rows(), a.k.shape[1],
        a.k.shape[2]);
  CHECK(static_cast<std::int64_t>(a.q_weight.size()) == head_dim &&
            static_cast<std::int64_t>(a.k_weight.size()) == head_dim,
        "q_weight={} k_weight={} head_dim={}", a.q_weight.size(), a.k_weight.size(), head_dim);
  CHECK(a.cos.rows() >= rows && a.sin.rows() >= rows && a.cos.cols() == head_dim / 2 &&
            a.sin.cols() == head_dim / 2,
        "T={} cos=[{}, {}] sin=[{}, {}]", rows, a.cos.rows(), a.cos.cols(), a.sin.rows(),
        a.sin.cols());
  CHECK(a.eps > 0, "eps={}", a.eps);
}

}  // namespace millrace::kernels
