#include "worker/packing.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "config/check.h"
#include "kernels/packed.h"
#include "kernels/packed_quantize.h"

namespace millrace {
namespace {

using kernels::DType;
using kernels::WeightView;

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::uint64_t kAlignment = 64;
// Of a source: small enough for smooth progress and an even split.
constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;

bool quantises(CpuWeights mode) { return mode == CpuWeights::kP4 || mode == CpuWeights::kP8; }

std::uint64_t round_up(std::uint64_t n, std::uint64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows of one matrix, and where they go.
struct Piece {
  WeightView source;
  DType dtype;  // packed
  std::byte* out = nullptr;
};

std::vector<Piece> cut(const WeightView& source, const WeightView& packed) {
  const std::int64_t tile_bytes = kernels::kPackedRows * source.row_bytes();
  const std::int64_t tiles = std::max<std::int64_t>(1, kPieceBytes / tile_bytes);
  const std::int64_t rows = tiles * kernels::kPackedRows;
  std::vector<Piece> pieces;
  for (std::int64_t n = 0; n < source.rows; n += rows) {
    const std::int64_t count = std::min(rows, source.rows - n);
    pieces.push_back({source.slice_rows(n, count), packed.dtype,
                      const_cast<std::byte*>(packed.data) + n * packed.row_bytes()});
  }
  return pieces;
}

// Advice about the pages that a source touches, those at its ends included: they are clean pages of
// a file, which come back when a neighbour needs them.
void advise(const WeightView& source, int advice) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(source.data);
  const std::uintptr_t first = begin / page * page;
  ::madvise(reinterpret_cast<void*>(first), begin + source.bytes() - first, advice);
}

void pack_piece(const Piece& piece, std::vector<std::byte>& buffer) {
  advise(piece.source, MADV_WILLNEED);
  pack_rows(piece.source, piece.dtype, piece.out, buffer);
  advise(piece.source, MADV_DONTNEED);
}

}  // namespace

DType loaded_dtype(const WeightView& stored, WeightUse use, CpuWeights mode) {
  if (mode == CpuWeights::kMapped || use == WeightUse::kLookup || use == WeightUse::kRouter) {
    return stored.dtype;
  }
  if (kernels::can_pack(stored.dtype, stored.rows, stored.cols)) {
    return *kernels::packed_dtype(stored.dtype);
  }
  const DType source = mode == CpuWeights::kP4 ? DType::kQ4_0 : DType::kQ8_0;
  const bool plain = kernels::block_values(stored.dtype) == 1;
  if (quantises(mode) && plain && use == WeightUse::kProjection &&
      kernels::can_pack(source, stored.rows, stored.cols)) {
    return *kernels::packed_dtype(source);
  }
  return stored.dtype;
}

void pack_rows(const WeightView& stored, DType dtype, std::byte* out,
               std::vector<std::byte>& buffer) {
  if (kernels::packed_dtype(stored.dtype)) return kernels::pack_weight(stored, out);
  WeightView quantised{nullptr, kernels::source_dtype(dtype), stored.rows, stored.cols};
  buffer.resize(static_cast<std::size_t>(quantised.bytes()));
  kernels::quantize_weight(stored, quantised.dtype, buffer.data());
  quantised.data = buffer.data();
  kernels::pack_weight(quantised, out);
}

AnonymousMemory::AnonymousMemory(std::size_t bytes) : bytes_(bytes) {
  map_bytes_ = round_up(bytes, kHugePage) + kHugePage;
  map_ = ::mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map_ == MAP_FAILED) throw std::bad_alloc();
  const auto begin = reinterpret_cast<std::uintptr_t>(map_);
  data_ = reinterpret_cast<std::byte*>(round_up(begin, kHugePage));
  // Only advice: without huge pages the memory is merely slower.
  ::madvise(data_, round_up(bytes, kHugePage), MADV_HUGEPAGE);
}

AnonymousMemory::~AnonymousMemory() { ::munmap(map_, map_bytes_); }

std::shared_ptr<const AnonymousMemory> pack_matrices(std::span<const MatrixUse> matrices,
                                                     CpuWeights mode, int threads,
                                                     const LoadProgress& progress) {
  struct Move {
    WeightView* view;
    WeightView packed;
    std::uint64_t offset;
  };
  std::vector<Move> moves;
  std::uint64_t bytes = 0;
  std::uint64_t total = 0;
  for (const MatrixUse& matrix : matrices) {
    const WeightView& stored = *matrix.view;
    const DType dtype = loaded_dtype(stored, matrix.use, mode);
    if (dtype == stored.dtype) continue;
    const WeightView packed{nullptr, dtype, stored.rows, stored.cols};
    moves.push_back({matrix.view, packed, bytes});
    bytes += round_up(static_cast<std::uint64_t>(packed.bytes()), kAlignment);
    total += static_cast<std::uint64_t>(stored.bytes());
  }
  if (moves.empty()) return nullptr;

  auto memory = std::make_shared<AnonymousMemory>(bytes);
  std::vector<Piece> pieces;
  for (Move& move : moves) {
    move.packed.data = memory->data() + move.offset;
    for (const Piece& piece : cut(*move.view, move.packed)) pieces.push_back(piece);
  }
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> done{0};
  const auto work = [&](bool report) {
    std::vector<std::byte> buffer;
    for (std::size_t i = next++; i < pieces.size(); i = next++) {
      pack_piece(pieces[i], buffer);
      const std::uint64_t packed = done += static_cast<std::uint64_t>(pieces[i].source.bytes());
      if (report && progress && packed < total) progress(packed, total);
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int i = 1; i < threads; ++i) helpers.emplace_back(work, false);
    work(true);
  }
  for (const Move& move : moves) *move.view = move.packed;
  return memory;
}

}  // namespace millrace
