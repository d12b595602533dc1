#include "kernels/packed_gemm.h"

#include <algorithm>

#include "config/check.h"
#include "kernels/dtype_name.h"
#include "kernels/packed_job.h"
#include "kernels/scratch.h"

namespace millrace::kernels {
namespace {

// A tile reads this far ahead of itself: far enough to hide memory's latency at full speed, near
// enough for L1.
constexpr std::int64_t kPrefetchAhead = 6144;
constexpr std::int64_t kLine = 64;

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

// What a row tile is made of: tile `n[0]` of the job's weight, and beside it tile n[1], or that of
// the other weight of gate_up.
struct RowTile {
  std::int64_t n[2];
  bool pair;
};

// For tokens [begin, end). The next tile of each is asked for in equal parts, one in each pass over
// this one; a single pass asks for what it will read itself soon.
void run_row_tile(const PackedKernels& kernels, const PackedJob& job, RowTile rows,
                  std::int64_t begin, std::int64_t end) {
  const bool gated = job.up.data != nullptr;
  const std::int64_t bytes = kPackedRows * job.w.row_bytes();
  const std::int64_t step = rows.pair ? kernels.pair_tokens : kernels.tile_tokens;
  const std::int64_t passes = (end - begin + step - 1) / step;
  PackedTileFn* const* fns = kernels.tiles_of(job.w.dtype, rows.pair);
  alignas(64) float sums[2][kMaxTileTokens * kPackedRows];
  PackedTile tile;
  tile.w[0] = job.w.data + rows.n[0] * bytes;
  tile.w[1] = (gated ? job.up : job.w).data + rows.n[1] * bytes;
  tile.blocks = job.blocks;
  tile.y_stride = gated ? kPackedRows : job.y_stride;
  tile.add = job.add;
  tile.prefetch_ahead = passes == 1 ? kPrefetchAhead : bytes;
  tile.prefetch_bytes =
      passes == 1 ? bytes / job.blocks : round_up(bytes / (passes * job.blocks) + 1, kLine);
  for (std::int64_t t = begin; t < end; t += step) {
    const std::int64_t count = std::min(step, end - t);
    for (std::int64_t i = 0; i < count; ++i) tile.x[i] = job.row(t + i);
    float* y = job.y + t * job.y_stride;
    for (int m = 0; m < 2; ++m) tile.y[m] = gated ? sums[m] : y + rows.n[m] * kPackedRows;
    fns[count - 1](tile);
    if (gated && !rows.pair) {
      PackedTile up = tile;
      up.w[0] = tile.w[1];
      up.y[0] = tile.y[1];
      fns[count - 1](up);
    }
    for (std::int64_t i = 0; gated && i < count; ++i) {
      kernels.gate(sums[0] + i * kPackedRows, sums[1] + i * kPackedRows,
                   y + i * job.y_stride + rows.n[0] * kPackedRows);
    }
    tile.prefetch_ahead += tile.prefetch_bytes * tile.blocks;
  }
}

std::int64_t token_block(const PackedKernels& kernels, std::int64_t blocks) {
  const std::int64_t row = blocks * static_cast<std::int64_t>(sizeof(QuantizedBlock));
  const std::int64_t tiles = kTokenBlockBytes / (row * kernels.tile_tokens);
  return std::max<std::int64_t>(1, tiles) * kernels.tile_tokens;
}

}  // namespace

void run_row_tiles(const PackedKernels& kernels, const PackedJob& job, std::int64_t begin,
                   std::int64_t end) {
  const std::int64_t step = token_block(kernels, job.blocks);
  const bool pairs = kernels.tiles_of(job.w.dtype, true) != nullptr;
  // Both halves of the rows side by side, so that each is read from memory in order.
  const std::int64_t half = pairs && job.up.data == nullptr ? (end - begin) / 2 : 0;
  const std::int64_t first = run_row_panels(kernels, job, begin, end);
  for (std::int64_t t = first; t < job.tokens; t += step) {
    const std::int64_t last = std::min(job.tokens, t + step);
    for (std::int64_t n = begin; n < begin + half; ++n) {
      run_row_tile(kernels, job, {{n, n + half}, true}, t, last);
    }
    for (std::int64_t n = begin + 2 * half; n < end; ++n) {
      run_row_tile(kernels, job, {{n, n}, pairs && job.up.data != nullptr}, t, last);
    }
  }
}

QuantizedSpace space_for(const Context& context, std::int64_t blocks) {
  const std::int64_t row = blocks * static_cast<std::int64_t>(sizeof(QuantizedBlock));
  std::span<std::byte> memory = context.workspace;
  if (static_cast<std::int64_t>(memory.size()) < row) memory = {thread_scratch(), kScratchBytes};
  const QuantizedSpace space{reinterpret_cast<QuantizedBlock*>(memory.data()),
                             static_cast<std::int64_t>(memory.size()) / row};
  CHECK(space.capacity > 0, "a row of {} blocks does not fit in the scratch", blocks);
  return space;
}

void quantize_rows(const PackedKernels& kernels, const Context& context, MatrixView<const float> x,
                   const std::int32_t* x_rows, std::int64_t count, QuantizeMode mode,
                   QuantizedBlock* out) {
  const std::int64_t blocks = x.cols() / kQuantBlock;
  constexpr std::int64_t kGrain = 256;  // blocks; some microseconds
  parallel_for(context, count * blocks, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t row = i / blocks;
      const std::int64_t b = i % blocks;
      const std::int64_t n = std::min(end - i, blocks - b);
      const float* from = x.row(x_rows == nullptr ? row : x_rows[row]) + b * kQuantBlock;
      kernels.quantize(from, n, mode, out + i);
      i += n;
    }
  });
}

// 32 Ki multiply-adds of a gemm in f32 take about as long as a wake-up; these are some times
// faster.
std::int64_t tile_grain(std::int64_t tokens, std::int64_t k) {
  return 1 + 131072 / (kPackedRows * (tokens + 1) * (k + 1));
}

QuantizeMode quantize_mode(DType packed) {
  switch (packed) {
    case DType::kP8_0:
      return {128, false};
    case DType::kP4_0:
      return {8, false};
    case DType::kP6_K:
      return {32, true};
    default:
      CHECK(is_packed(packed), "{}", dtype_name(packed));
      return {};
  }
}

void packed_gemm(const PackedKernels& kernels, const Context& context, MatrixView<const float> x,
                 const WeightView& w, Accumulate accumulate, MatrixView<float> y) {
  check_gemm(x, w, y);
  const std::int64_t blocks = w.cols / kQuantBlock;
  const QuantizedSpace space = space_for(context, blocks);
  const QuantizeMode mode = quantize_mode(w.dtype);
  for (std::int64_t begin = 0; begin < x.rows(); begin += space.capacity) {
    PackedJob job;
    job.x = space.rows;
    job.blocks = blocks;
    job.tokens = std::min(space.capacity, x.rows() - begin);
    job.w = w;
    job.y = y.row(begin);
    job.y_stride = y.row_stride;
    job.add = accumulate == Accumulate::kAdd;
    quantize_rows(kernels, context, x.slice_rows(begin, job.tokens), nullptr, job.tokens, mode,
                  space.rows);
    parallel_for(
        context, w.rows / kPackedRows, tile_grain(job.tokens, w.cols),
        [&](std::int64_t first, std::int64_t last) { run_row_tiles(kernels, job, first, last); });
  }
}

}  // namespace millrace::kernels
