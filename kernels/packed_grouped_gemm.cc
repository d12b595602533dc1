#include <algorithm>

#include "kernels/packed_job.h"

namespace millrace::kernels {
namespace {

// Experts of one type whose rows meet [row_begin, row_end) of the grouped rows.
class GroupedPass {
 public:
  GroupedPass(const PackedKernels& kernels, const GroupedGemmArgs& args, DType dtype,
              std::span<const WeightView> up, std::int64_t row_begin, std::int64_t row_end,
              const QuantizedBlock* x, const std::int32_t* x_rows)
      : kernels_(kernels),
        args_(args),
        up_(up),
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

  // Of one row tile of an expert, in passes over the weights. A pass of a panel takes about as long
  // as one of tiles, and so does unpacking the rows (docs/performance-log.md).
  std::int64_t cost(std::size_t e) const {
    const std::int64_t rows = last(e) - first(e);
    if (rows <= 0 || args_.weights[e].dtype != dtype_) return 0;
    const int step = kernels_.pass_tokens(dtype_);
    const std::int64_t in_panels =
        panel_tokens(kernels_, dtype_, args_.x.cols() / kQuantBlock, rows);
    const std::int64_t passes = (in_panels + kernels_.panel_pass() - 1) / kernels_.panel_pass();
    return (passes == 0 ? 0 : 1 + passes) + (rows - in_panels + step - 1) / step;
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

  PackedJob job(std::size_t e) const {
    PackedJob job;
    job.blocks = args_.x.cols() / kQuantBlock;
    job.x = x_rows_ == nullptr ? x_ + (first(e) - row_begin_) * job.blocks : x_;
    job.x_rows = x_rows_ == nullptr ? nullptr : x_rows_ + first(e);
    job.tokens = last(e) - first(e);
    job.w = args_.weights[e];
    if (!up_.empty()) job.up = up_[e];
    job.y = args_.y.row(first(e));
    job.y_stride = args_.y.row_stride;
    return job;
  }

  const PackedKernels& kernels_;
  const GroupedGemmArgs& args_;
  std::span<const WeightView> up_;  // empty but for gate_up
  DType dtype_;
  std::int64_t row_begin_, row_end_;
  const QuantizedBlock* x_;
  const std::int32_t* x_rows_;
  std::int64_t row_tiles_;
};

void grouped_gemm_of_type(const PackedKernels& kernels, const Context& context,
                          const GroupedGemmArgs& a, std::span<const WeightView> up, DType dtype) {
  const QuantizedSpace space = space_for(context, a.x.cols() / kQuantBlock);
  const QuantizeMode mode = quantize_mode(dtype);
  const std::int64_t rows = a.offsets.back();
  // Rows of x that several experts read are quantised once, if x fits.
  if (!a.x_rows.empty() && a.x.rows() <= std::min(space.capacity, rows)) {
    quantize_rows(kernels, context, a.x, nullptr, a.x.rows(), mode, space.rows);
    GroupedPass(kernels, a, dtype, up, 0, rows, space.rows, a.x_rows.data()).run(context);
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
    GroupedPass(kernels, a, dtype, up, begin, begin + count, space.rows, nullptr).run(context);
  }
}

}  // namespace

void packed_grouped_gemm(const PackedKernels& kernels, const Context& context,
                         const GroupedGemmArgs& args) {
  check_grouped_gemm(args);
  for (int i = 0; i < kPackedTypes; ++i) {
    const auto dtype = static_cast<DType>(static_cast<int>(DType::kP8_0) + i);
    bool any = false;
    for (std::size_t e = 0; e < args.weights.size(); ++e) {
      any |= args.weights[e].dtype == dtype && args.offsets[e] < args.offsets[e + 1];
    }
    if (any) grouped_gemm_of_type(kernels, context, args, {}, dtype);
  }
}

void packed_gate_up(const PackedKernels& kernels, const Context& context, const GateUpArgs& args) {
  check_gate_up(args);
  for (std::size_t e = 0; e < args.up.size(); ++e) {
    if (args.gate.offsets[e] == args.gate.offsets[e + 1]) continue;
    grouped_gemm_of_type(kernels, context, args.gate, args.up, args.gate.weights[e].dtype);
    return;
  }
}

}  // namespace millrace::kernels
