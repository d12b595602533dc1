#include "kernels/cuda/gemm_pack.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm_pack.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// One block for each record, threads over its 16 bytes each in order: stores are consecutive, and
// the loads of eight lanes with the same row cover whole sectors.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(PackedRows<const __nv_bfloat16> source, unsigned char* packed, int records) {
  await_previous_kernel();
  const int tile = static_cast<int>(blockIdx.x) / records;
  const int record = static_cast<int>(blockIdx.x) % records;
  auto* out = reinterpret_cast<uint4*>(packed + static_cast<std::int64_t>(blockIdx.x) *
                                                    record_bytes(WeightFormat::kBf16));
  for (int i = static_cast<int>(threadIdx.x); i < record_bytes(WeightFormat::kBf16) / 16;
       i += kThreads) {
    const int lane = i % 32;
    const int n = tile * kGemmTileRows + i / 128 * 16 + lane / 4;
    const int k = record * record_cols(WeightFormat::kBf16) + i / 32 % 4 * 16 + lane % 4 * 2;
    const auto pair = [&](int row, int col) {
      return static_cast<unsigned>(__bfloat16_as_ushort(source.at(row, col))) |
             static_cast<unsigned>(__bfloat16_as_ushort(source.at(row, col + 1))) << 16;
    };
    out[i] = make_uint4(pair(n, k), pair(n + 8, k), pair(n, k + 8), pair(n + 8, k + 8));
  }
}

// One thread for each element of the matrix.
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const unsigned char* packed, WeightFormat format,
                  PackedRows<__nv_bfloat16> target) {
  await_previous_kernel();
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(target.rows) * target.cols) return;
  const int n = static_cast<int>(index / target.cols);
  const int k = static_cast<int>(index % target.cols);
  const unsigned char* at = packed + packed_offset(format, target.cols, n, k);
  if (format == WeightFormat::kBf16) {
    target.row(n)[k] = *reinterpret_cast<const __nv_bfloat16*>(at);
    return;
  }
  const unsigned bits = (*at & 0x80U) << 8 | (*at & 0x7fU) << 4;
  const auto* multiplier =
      reinterpret_cast<const __nv_bfloat16*>(packed + multiplier_offset(target.cols, n, k));
  // Exact: a power of two times four bits.
  const float value = __uint_as_float(bits << 16) * __bfloat162float(*multiplier);
  target.row(n)[k] = __float2bfloat16_rn(value);
}

template <class Rows>
void check_rows(const Rows& rows) {
  const bool both = rows.second.rows() != 0;
  CHECK(rows.first.rows() > 0 && rows.first.cols() > 0, "rows=[{}, {}]", rows.first.rows(),
        rows.first.cols());
  CHECK(!both || (rows.first.rows() == rows.second.rows() &&
                  rows.first.cols() == rows.second.cols() && rows.first.rows() % 8 == 0),
        "gate=[{}, {}] up=[{}, {}]", rows.first.rows(), rows.first.cols(), rows.second.rows(),
        rows.second.cols());
}

}  // namespace

PackedRows<const __nv_bfloat16> packed_rows(const WeightRows& rows) {
  check_rows(rows);
  return {device_cast(rows.first.data),
          rows.second.rows() != 0 ? device_cast(rows.second.data) : nullptr,
          rows.first.row_stride,
          rows.second.row_stride,
          static_cast<int>(rows.rows()),
          static_cast<int>(rows.cols())};
}

void pack_weight(StreamRef stream, const WeightRows& rows, std::byte* packed) {
  const auto source = packed_rows(rows);
  const std::int64_t records = gemm_records(WeightFormat::kBf16, source.cols);
  launch(pack_kernel,
         {dim3(static_cast<unsigned>(gemm_tiles(source.rows) * records)), dim3(kThreads)}, stream,
         source, reinterpret_cast<unsigned char*>(packed), static_cast<int>(records));
}

void unpack_weight(StreamRef stream, const PackedWeight& packed, const WeightRowsOut& rows) {
  check_rows(rows);
  CHECK(rows.first.rows() + rows.second.rows() == packed.rows && rows.first.cols() == packed.cols,
        "packed=[{}, {}] target=[{}, {}]", packed.rows, packed.cols,
        rows.first.rows() + rows.second.rows(), rows.first.cols());
  const PackedRows<__nv_bfloat16> target{
      device_cast(rows.first.data),
      rows.second.rows() != 0 ? device_cast(rows.second.data) : nullptr,
      rows.first.row_stride,
      rows.second.row_stride,
      static_cast<int>(packed.rows),
      static_cast<int>(packed.cols)};
  const std::int64_t blocks = (packed.rows * packed.cols + kThreads - 1) / kThreads;
  launch(unpack_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, stream,
         reinterpret_cast<const unsigned char*>(packed.data), packed.format, target);
}

}  // namespace millrace::kernels::cuda
