// Panels (kernels/packed_gemm.h): groups of tokens against one row tile after the other.
#include <algorithm>
#include <cstring>

#include "kernels/buffer.h"
#include "kernels/packed_job.h"

namespace millrace::kernels {
namespace {

// Sums of these many lie in L1 and L2 beside all else.
constexpr std::int64_t kMostTokens = 256;

std::int64_t quantized_bytes(std::int64_t blocks) {
  return blocks * static_cast<std::int64_t>(sizeof(QuantizedBlock));
}

// What a thread needs besides the arguments: allocated at its first panel.
struct Space {
  QuantizedBlock* rows;  // kTokenBlockBytes: those of groups that do not follow each other in x
  float* sums;           // [kMostTokens, 16]
  float* gate_up[2];     // the same
};
QuantizedBlock* thread_rows() {
  thread_local Buffer buffer(kTokenBlockBytes);
  return reinterpret_cast<QuantizedBlock*>(buffer.data());
}
Space thread_space(const PackedKernels& kernels) {
  constexpr std::size_t kSums = kMostTokens * kPackedRows;
  thread_local Buffer buffer(3 * kSums * sizeof(float));
  auto* sums = reinterpret_cast<float*>(buffer.data());
  return {
      kernels.panel_group == 1 ? nullptr : thread_rows(), sums, {sums + kSums, sums + 2 * kSums}};
}

// Tokens [begin, end) of a job as a panel wants them. Rows that follow each other stay where they
// are; others are copied beside each other, once for all row tiles, and a group is filled up with
// zeros.
class TokenGroups {
 public:
  TokenGroups(const PackedJob& job, std::int64_t group, std::int64_t begin, std::int64_t end,
              QuantizedBlock* space) {
    for (std::int64_t t = begin; t < end; t += group) {
      const std::int64_t count = std::min(group, end - t);
      const bool in_place = count == group && (group == 1 || job.x_rows == nullptr);
      first_[(t - begin) / group] = in_place ? job.row(t) : space;
      if (in_place) continue;
      const auto row = static_cast<std::size_t>(quantized_bytes(job.blocks));
      for (std::int64_t i = 0; i < group; ++i, space += job.blocks) {
        if (i < count) {
          std::memcpy(space, job.row(t + i), row);
        } else {
          std::memset(space, 0, row);
        }
      }
    }
  }
  const QuantizedBlock* const* first() const { return first_; }

 private:
  const QuantizedBlock* first_[kMostTokens];
};

// Row tile n of the weight, and of gate_up's other one.
void run_row_panel(const PackedKernels& kernels, const PackedJob& job, std::int64_t n,
                   PackedPanel panel, const Space& space) {
  PackedPanelFn* const fn = kernels.panel_of(job.w.dtype);
  const std::int64_t bytes = kPackedRows * job.w.row_bytes();
  float* const y = panel.y + n * kPackedRows;
  panel.w = job.w.data + n * bytes;
  panel.prefetch_ahead = bytes;
  if (job.up.data == nullptr) {
    panel.y = y;
    return fn(panel);
  }
  panel.y = space.gate_up[0];
  panel.y_stride = kPackedRows;
  fn(panel);
  panel.w = job.up.data + n * bytes;
  panel.y = space.gate_up[1];
  fn(panel);
  for (std::int64_t t = 0; t < panel.tokens; ++t) {
    kernels.gate(space.gate_up[0] + t * kPackedRows, space.gate_up[1] + t * kPackedRows,
                 y + t * job.y_stride);
  }
}

}  // namespace

std::int64_t panel_tokens(const PackedKernels& kernels, DType packed, std::int64_t blocks,
                          std::int64_t tokens) {
  const bool fits = kernels.panel_pass() * quantized_bytes(blocks) <= kTokenBlockBytes;
  if (!fits || kernels.panel_of(packed) == nullptr || tokens < kernels.panel_least) return 0;
  const std::int64_t rest = tokens % kernels.panel_group;
  return rest < kernels.panel_least ? tokens - rest : tokens;
}

std::int64_t run_row_panels(const PackedKernels& kernels, const PackedJob& job, std::int64_t begin,
                            std::int64_t end) {
  const std::int64_t tokens = panel_tokens(kernels, job.w.dtype, job.blocks, job.tokens);
  if (tokens == 0) return 0;
  const Space space = thread_space(kernels);
  const std::int64_t pass = kernels.panel_pass();
  const std::int64_t fit = kTokenBlockBytes / (quantized_bytes(job.blocks) * pass);
  const std::int64_t step = std::min(kMostTokens / pass, fit) * pass;
  const std::int64_t tile_bytes = kPackedRows * job.w.row_bytes();
  for (std::int64_t t = 0; t < tokens; t += step) {
    PackedPanel panel;
    panel.blocks = job.blocks;
    panel.tokens = std::min(step, tokens - t);
    const TokenGroups groups(job, kernels.panel_group, t, t + panel.tokens, space.rows);
    panel.x = groups.first();
    panel.sums = space.sums;
    panel.y = job.y + t * job.y_stride;
    panel.y_stride = job.y_stride;
    panel.add = job.add;
    const std::int64_t passes = (panel.tokens + pass - 1) / pass * job.blocks;
    panel.prefetch_bytes = (tile_bytes / passes + 64) / 64 * 64;
    for (std::int64_t n = begin; n < end; ++n) run_row_panel(kernels, job, n, panel, space);
  }
  return tokens;
}

}  // namespace millrace::kernels
