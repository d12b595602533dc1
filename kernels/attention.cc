#include "kernels/attention.h"

#include "config/check.h"

namespace millrace::kernels {

void check_attention(const AttentionArgs& a) {
  check_kv_pages(a.pages);
  const std::int64_t rows = a.q.rows();
  CHECK(a.q.shape[2] == a.pages.head_dim && a.pages.head_dim <= kMaxHeadDim &&
            a.pages.kv_heads > 0 && a.q.shape[1] % a.pages.kv_heads == 0,
        "q=[{}, {}, {}] G={} head_dim={}", rows, a.q.shape[1], a.q.shape[2], a.pages.kv_heads,
        a.pages.head_dim);
  CHECK(a.out.rows() == rows && a.out.shape[1] == a.q.shape[1] && a.out.shape[2] == a.q.shape[2],
        "q=[{}, {}, {}] out=[{}, {}, {}]", rows, a.q.shape[1], a.q.shape[2], a.out.rows(),
        a.out.shape[1], a.out.shape[2]);
  CHECK(static_cast<std::int64_t>(a.sequences.size()) == rows &&
            static_cast<std::int64_t>(a.positions.size()) == rows,
        "T={} sequences={} positions={}", rows, a.sequences.size(), a.positions.size());
  for (std::size_t t = 0; t < a.sequences.size(); ++t) {
    CHECK(a.sequences[t] >= 0 && static_cast<std::size_t>(a.sequences[t]) < a.block_tables.size() &&
              a.positions[t] >= 0,
          "token {}: sequence={} of {} position={}", t, a.sequences[t], a.block_tables.size(),
          a.positions[t]);
  }
}

}  // namespace millrace::kernels
