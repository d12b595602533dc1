// GEMM with transposed weights on the device: y[t, n] = sum over k of x[t, k] * w[n, k], bf16
// activations, bf16 or fp8 weights (kernels/cuda/gemm_layout.h), f32 accumulation.
//
// The order of every sum is fixed by K alone (contract C1): K is cut in chunks of 512 columns; the
// tensor cores sum a chunk from zero in ascending steps of 16; chunks are added in f32, ascending.
// The bits of a row depend on x's row, w and the path (the instruction family) only: not on T, the
// tile, the row's place, or whether the chunks of a tile were summed by one block or by several.
// The path is chosen by compute capability, never by shape.
//
// Method: weights are the M side of the multiply and tokens the N side, so a step of one token
// wastes 7 of 8 columns instead of 63 of 64 rows. Many tokens: a block sums all chunks of a tile.
// Few tokens: GemmSpread has the ways to give every multiprocessor weights to read.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/cuda/gemm_layout.h"
#include "kernels/cuda/stream_ref.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

enum class GemmEpilogue : std::uint8_t {
  kStoreBf16,  // y = round_bf16(dot)
  kStoreF32,   // y = dot
  kAddF32,     // y = y + dot: one rounded addition after the whole dot, for residuals
  kSwiGlu,     // y[t, f] = round_bf16(silu(dot[gate_row(f)]) * dot[up_row(f)])
};

// y [T, N], or [T, N / 2] for kSwiGlu, in device memory; rows may be strided.
struct GemmOutput {
  GemmEpilogue epilogue = GemmEpilogue::kStoreBf16;
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;

  static GemmOutput store(MatrixView<BFloat16> y) { return of(GemmEpilogue::kStoreBf16, y); }
  static GemmOutput store(MatrixView<float> y) { return of(GemmEpilogue::kStoreF32, y); }
  static GemmOutput add(MatrixView<float> y) { return of(GemmEpilogue::kAddF32, y); }
  static GemmOutput swiglu(MatrixView<BFloat16> y) { return of(GemmEpilogue::kSwiGlu, y); }

 private:
  template <class T>
  static GemmOutput of(GemmEpilogue epilogue, MatrixView<T> y) {
    return {epilogue, y.data, y.rows(), y.cols(), y.row_stride};
  }
};

// Device memory for split sums, used by one launch at a time: launches of one stream share it. A
// launch whose plan splits CHECKs that it is large enough; an empty one (no tickets) means that
// nothing is split, which gives the same bits.
struct GemmWorkspace {
  float* partials = nullptr;  // 16-byte aligned
  std::int64_t partial_bytes = 0;
  std::uint32_t* tickets = nullptr;  // zero before the first launch; every launch leaves them zero
  std::int64_t ticket_count = 0;
};

// What a workspace must hold.
struct GemmWorkspaceSize {
  std::int64_t partial_bytes = 0;
  std::int64_t ticket_count = 0;
};
// Enough for every T up to max_tokens on the current device.
GemmWorkspaceSize gemm_workspace(WeightFormat format, std::int64_t max_tokens, std::int64_t rows,
                                 std::int64_t cols);
// The larger of each.
GemmWorkspaceSize max_workspace(GemmWorkspaceSize a, GemmWorkspaceSize b);

enum class GemmPath : std::uint8_t {
  kMma,  // mma.sync, ldmatrix, cp.async: 8.0 and newer, but for 8.6 and 8.9, whose blocks have too
         // little shared memory (99 KiB) for tiles of 128 rows
  kWgmma,  // wgmma, bulk copies, mbarriers: compute capability 9.0 only
};
// The path of the current device.
GemmPath gemm_path();

// How the chunks of a tile are summed.
enum class GemmSpread : std::uint8_t {
  kWhole,  // tiles of 64 or 128 rows, a block each, chunk after chunk
  kSplit,  // a block for each chunk of such a tile; the last to arrive adds them from the workspace
  kNarrow,  // tiles of 16 rows, a block each, four chunks at a time; of 8 or 16 tokens
};

// Choices that change speed, never bits (but for `path`): for tests and measurements.
struct GemmTuning {
  std::optional<GemmPath> path;
  std::optional<GemmSpread> spread;
  int tile_tokens = 0;  // one of kGemmTileTokens; 0: chosen by shape
};
inline constexpr int kGemmTileTokens[] = {8, 16, 32, 64, 96, 128};

struct GemmArgs {
  MatrixView<const BFloat16> x;  // [T, K] in device memory, rows 16-byte aligned
  PackedWeight w;  // [N, K]; on a stream that overlaps kernels not written since it was last idle
  GemmOutput y;    // not overlapping x or w
  GemmWorkspace workspace;
  GemmTuning tuning;
};

// K is a multiple of 32 (kSwiGlu: N of 16). Asynchronous, capturable, no allocation.
void gemm(StreamRef stream, const GemmArgs& args);

}  // namespace millrace::kernels::cuda
