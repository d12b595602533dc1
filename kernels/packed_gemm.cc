#include "kernels/packed_gemm.h"

#include <algorithm>

#include "config/check.h"
#include "kernels/scratch.h"

namespace millrace::kernels {
namespace {

// Activations of one token block stay in an L2 of 1 MiB beside the weights that stream through it.
constexpr std::int64_t kTokenBlockBytes = std::int64_t{3} << 18;
// A tile reads this far ahead of itself: far enough to hide memory's latency at full speed, near
// enough for L1.
constexpr std::int64_t kPrefetchAhead = 6144;
constexpr std::int64_t kLine = 64;

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

// Some quantised rows against the rows of one weight.
struct Job {
  const QuantizedBlock* x = nullptr;
  std::int64_t blocks = 0;               // of a row: K / 32
  const std::int32_t* x_rows = nullptr;  // null: token t is row t of x
  std::int64_t tokens = 0;
  WeightView w;
  float* y = nullptr;  // [tokens, w.rows]
  std::int64_t y_stride = 0;
  bool add = false;

  const QuantizedBlock* row(std::int64_t t) const {
    return x + (x_rows == nullptr ? t : std::int64_t{x_rows[t]}) * blocks;
  }
};

// Tile `n` of the weight for tokens [begin, end). The next tile is asked for in equal parts, one in
// each pass over this one; a single pass asks for what it will read itself soon.
void run_row_tile(const PackedKernels& kernels, const Job& job, std::int64_t n, std::int64_t begin,
                  std::int64_t end) {
  const std::int64_t tile_bytes = kPackedRows * job.w.row_bytes();
  const auto type = static_cast<std::size_t>(job.w.dtype) - static_cast<std::size_t>(DType::kP8_0);
  const std::int64_t passes = (end - begin + kernels.tile_tokens - 1) / kernels.tile_tokens;
  PackedTile tile;
  tile.w = job.w.data + n * tile_bytes;
  tile.blocks = job.blocks;
  tile.y_stride = job.y_stride;
  tile.add = job.add;
  tile.prefetch = tile.w + (passes == 1 ? kPrefetchAhead : tile_bytes);
  tile.prefetch_bytes = passes == 1 ? tile_bytes / job.blocks
                                    : round_up(tile_bytes / (passes * job.blocks) + 1, kLine);
  for (std::int64_t t = begin; t < end; t += kernels.tile_tokens) {
    const std::int64_t count = std::min<std::int64_t>(kernels.tile_tokens, end - t);
    for (std::int64_t i = 0; i < count; ++i) tile.x[i] = job.row(t + i);
    tile.y = job.y + t * job.y_stride + n * kPackedRows;
    kernels.tiles[type][count - 1](tile);
    tile.prefetch += tile.prefetch_bytes * job.blocks;
  }
}

std::int64_t token_block(const PackedKernels& kernels, std::int64_t blocks) {
  const std::int64_t row = blocks * static_cast<std::int64_t>(sizeof(QuantizedBlock));
  const std::int64_t tiles = kTokenBlockBytes / (row * kernels.tile_tokens);
  return std::max<std::int64_t>(1, tiles) * kernels.tile_tokens;
}

// Tiles [begin, end) of the weight for all tokens.
void run_row_tiles(const PackedKernels& kernels, const Job& job, std::int64_t begin,
                   std::int64_t end) {
  const std::int64_t step = token_block(kernels, job.blocks);
  for (std::int64_t t = 0; t < job.tokens; t += step) {
    const std::int64_t last = std::min(job.tokens, t + step);
    for (std::int64_t n = begin; n < end; ++n) run_row_tile(kernels, job, n, t, last);
  }
}

// Where quantised rows go, and how many of `blocks` blocks fit.
struct Space {
  QuantizedBlock* rows = nullptr;
  std::int64_t capacity = 0;
};

Space space_for(const Context& context, std::int64_t blocks) {
  const std::int64_t row = blocks * static_cast<std::int64_t>(sizeof(QuantizedBlock));
  std::span<std::byte> memory = context.workspace;
  if (static_cast<std::int64_t>(memory.size()) < row) memory = {thread_scratch(), kScratchBytes};
  const Space space{reinterpret_cast<QuantizedBlock*>(memory.data()),
                    static_cast<std::int64_t>(memory.size()) / row};
  CHECK(space.capacity > 0, "a row of {} blocks does not fit in the scratch", blocks);
  return space;
}

// Row i of `out` from row x_rows[i] of x, or row i where x_rows is null.
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

// The least number of row tiles worth a thread: 32 Ki multiply-adds of a gemm in f32 take about as
// long as a wake-up; these are some times faster.
std::int64_t tile_grain(std::int64_t tokens, std::int64_t k) {
  return 1 + 131072 / (kPackedRows * (tokens + 1) * (k + 1));
}

// Experts of one type whose rows meet [row_begin, row_end) of the grouped rows.
class GroupedPass {
 public:
  GroupedPass(const PackedKernels& kernels, const GroupedGemmArgs& args, DType dtype,
              std::int64_t row_begin, std::int64_t row_end, const QuantizedBlock* x,
              const std::int32_t* x_rows)
      : kernels_(kernels),
        args_(args),
        dtype_(dtype),
        row_begin_(row_begin),
        row_end_(row_end),
        x_(x),
        x_rows_(x_rows),
        row_tiles_(args.y.cols() / kPackedRows) {}

  // Threads take equal shares of the cost of all experts laid end to end, so that they end together
  // however uneven the groups are. A row tile belongs to the share in which it begins.
  void run(const Context& context) const {
    std::int64_t total = 0;
    for (std::size_t e = 0; e < args_.weights.size(); ++e) total += row_tiles_ * cost(e);
    const std::int64_t grain = tile_grain(kernels_.tile_tokens, args_.x.cols());
    parallel_for(context, total, grain,
                 [this](std::int64_t begin, std::int64_t end) { run_share(begin, end); });
  }

 private:
  std::int64_t first(std::size_t e) const { return std::max(args_.offsets[e], row_begin_); }
  std::int64_t last(std::size_t e) const { return std::min(args_.offsets[e + 1], row_end_); }

  // Of one row tile of an expert, in passes over the weights.
  std::int64_t cost(std::size_t e) const {
    const std::int64_t rows = last(e) - first(e);
    if (rows <= 0 || args_.weights[e].dtype != dtype_) return 0;
    return (rows + kernels_.tile_tokens - 1) / kernels_.tile_tokens;
  }

  void run_share(std::int64_t begin, std::int64_t end) const {
    std::int64_t at = 0;
    for (std::size_t e = 0; e < args_.weights.size() && at < end; ++e) {
      const std::int64_t each = cost(e);
      if (each == 0) continue;
      const auto tile_at = [&](std::int64_t position) {
        return std::clamp<std::int64_t>((position - at + each - 1) / each, 0, row_tiles_);
      };
      const std::int64_t from = begin <= at ? 0 : tile_at(begin);
      const std::int64_t to = tile_at(end);
      if (from < to) run_row_tiles(kernels_, job(e), from, to);
      at += row_tiles_ * each;
    }
  }

  Job job(std::size_t e) const {
    Job job;
    job.blocks = args_.x.cols() / kQuantBlock;
    job.x = x_rows_ == nullptr ? x_ + (first(e) - row_begin_) * job.blocks : x_;
    job.x_rows = x_rows_ == nullptr ? nullptr : x_rows_ + first(e);
    job.tokens = last(e) - first(e);
    job.w = args_.weights[e];
    job.y = args_.y.row(first(e));
    job.y_stride = args_.y.row_stride;
    return job;
  }

  const PackedKernels& kernels_;
  const GroupedGemmArgs& args_;
  DType dtype_;
  std::int64_t row_begin_, row_end_;
  const QuantizedBlock* x_;
  const std::int32_t* x_rows_;
  std::int64_t row_tiles_;
};

void grouped_gemm_of_type(const PackedKernels& kernels, const Context& context,
                          const GroupedGemmArgs& a, DType dtype) {
  const Space space = space_for(context, a.x.cols() / kQuantBlock);
  const QuantizeMode mode = quantize_mode(dtype);
  const std::int64_t rows = a.offsets.back();
  // Rows of x that several experts read are quantised once, if x fits.
  if (!a.x_rows.empty() && a.x.rows() <= std::min(space.capacity, rows)) {
    quantize_rows(kernels, context, a.x, nullptr, a.x.rows(), mode, space.rows);
    GroupedPass(kernels, a, dtype, 0, rows, space.rows, a.x_rows.data()).run(context);
    return;
  }
  for (std::int64_t begin = 0; begin < rows; begin += space.capacity) {
    const std::int64_t count = std::min(space.capacity, rows - begin);
    if (a.x_rows.empty()) {
      quantize_rows(kernels, context, a.x.slice_rows(begin, count), nullptr, count, mode,
                    space.rows);
    } else {
      quantize_rows(kernels, context, a.x, a.x_rows.data() + begin, count, mode, space.rows);
    }
    GroupedPass(kernels, a, dtype, begin, begin + count, space.rows, nullptr).run(context);
  }
}

}  // namespace

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
  const Space space = space_for(context, blocks);
  const QuantizeMode mode = quantize_mode(w.dtype);
  for (std::int64_t begin = 0; begin < x.rows(); begin += space.capacity) {
    Job job;
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

void packed_grouped_gemm(const PackedKernels& kernels, const Context& context,
                         const GroupedGemmArgs& args) {
  check_grouped_gemm(args);
  for (int i = 0; i < kPackedTypes; ++i) {
    const auto dtype = static_cast<DType>(static_cast<int>(DType::kP8_0) + i);
    bool any = false;
    for (std::size_t e = 0; e < args.weights.size(); ++e) {
      any |= args.weights[e].dtype == dtype && args.offsets[e] < args.offsets[e + 1];
    }
    if (any) grouped_gemm_of_type(kernels, context, args, dtype);
  }
}

}  // namespace millrace::kernels
