#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/ref/set.h"

namespace millrace::kernels::reference {
namespace {

double load(const std::byte* pages, std::int64_t index, DType dtype) {
  if (dtype == DType::kF32) {
    float value = 0;
    std::memcpy(&value, pages + index * 4, 4);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, pages + index * 2, 2);
  return bf16_to_f32(bits);
}

// softmax(scale * q . K) . V for one query head, in two passes over the whole prefix.
void one_head(const AttentionArgs& a, std::int64_t t, std::int64_t h) {
  const KvPages& p = a.pages;
  const std::int64_t d = p.head_dim;
  const std::int64_t g = h / (a.q.shape[1] / p.kv_heads);
  const float* q = a.q.row(t) + h * d;
  const std::int64_t prefix = a.positions[static_cast<std::size_t>(t)] + 1;
  const std::uint32_t* blocks =
      a.block_tables[static_cast<std::size_t>(a.sequences[static_cast<std::size_t>(t)])];

  std::vector<double> weight(static_cast<std::size_t>(prefix));
  double greatest = -std::numeric_limits<double>::infinity();
  for (std::int64_t s = 0; s < prefix; ++s) {
    double dot = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      dot += q[i] * load(p.k, p.k_index(blocks[s / p.block_size], s % p.block_size, g, i), p.dtype);
    }
    weight[static_cast<std::size_t>(s)] = dot * a.scale;
    greatest = std::max(greatest, dot * a.scale);
  }
  double sum = 0;
  for (double& w : weight) sum += w = std::exp(w - greatest);
  for (std::int64_t i = 0; i < d; ++i) {
    double out = 0;
    for (std::int64_t s = 0; s < prefix; ++s) {
      out += weight[static_cast<std::size_t>(s)] *
             load(p.v, p.v_index(blocks[s / p.block_size], s % p.block_size, g, i), p.dtype);
    }
    a.out.row(t)[h * d + i] = static_cast<float>(out / sum);
  }
}

}  // namespace

void attention(const Context&, const AttentionArgs& args) {
  check_attention(args);
  for (std::int64_t t = 0; t < args.q.rows(); ++t) {
    for (std::int64_t h = 0; h < args.q.shape[1]; ++h) one_head(args, t, h);
  }
}

}  // namespace millrace::kernels::reference
