#include "kernels/cuda/moe_exchange.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kCopyThreads = 128;

__device__ void copy_row(const void* from, void* to, std::int64_t vectors) {
  for (std::int64_t i = threadIdx.x; i < vectors; i += kCopyThreads) {
    static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  }
}

struct Pack {
  const __nv_bfloat16* x;
  std::int64_t x_stride;
  const std::int32_t* ids;
  std::int64_t ids_stride;
  std::int32_t tokens;
  const std::int32_t* record_tokens;
  std::byte* records;
  std::int64_t record_bytes;
  std::int64_t ids_offset;
  std::int32_t top_k;
};

// A block for each record.
__global__ void __launch_bounds__(kCopyThreads) pack_records_kernel(Pack a) {
  await_previous_kernel();
  const auto record = static_cast<std::int32_t>(blockIdx.x);
  std::int32_t token = record < a.tokens ? record : kEmptyRecord;
  if (a.record_tokens != nullptr) token = a.record_tokens[record];
  if (token == kNoRecord) return;
  std::byte* to = a.records + record * a.record_bytes;
  const auto id_slots = static_cast<int>((a.record_bytes - a.ids_offset) / 4);
  const auto k = static_cast<int>(threadIdx.x);
  if (k < id_slots) {
    std::int32_t id = 0;  // padding of the record
    if (k < a.top_k) id = token >= 0 ? a.ids[token * a.ids_stride + k] : -1;
    reinterpret_cast<std::int32_t*>(to + a.ids_offset)[k] = id;
  }
  if (token >= 0) copy_row(a.x + token * a.x_stride, to, a.ids_offset / 16);
}

// A block for each (record, k).
__global__ void __launch_bounds__(kCopyThreads)
    pack_returns_kernel(const __nv_bfloat16* y, std::int64_t y_stride, const std::int32_t* rows,
                        const std::int32_t* places, bool fill_missing, __nv_bfloat16* out,
                        std::int64_t out_stride, std::int64_t vectors) {
  await_previous_kernel();
  const std::int64_t pair = blockIdx.x;
  const std::int32_t row = rows[pair];
  if (row < 0 && !fill_missing) return;
  const std::int64_t place = places == nullptr ? pair : places[pair];
  if (row >= 0) {
    copy_row(y + row * y_stride, out + place * out_stride, vectors);
    return;
  }
  constexpr unsigned kMinusZeros = 0x80008000U;
  auto* to = reinterpret_cast<uint4*>(out + place * out_stride);
  for (std::int64_t i = threadIdx.x; i < vectors; i += kCopyThreads) {
    to[i] = make_uint4(kMinusZeros, kMinusZeros, kMinusZeros, kMinusZeros);
  }
}

}  // namespace

void pack_records(StreamRef stream, const PackRecordsArgs& a) {
  CHECK(a.layout.hidden > 0 && a.layout.hidden % 8 == 0 && a.x.cols() == a.layout.hidden &&
            a.x.row_stride % 8 == 0 && a.layout.top_k >= 1 && a.layout.top_k <= kMaxExchangeTopK &&
            a.ids.cols() == a.layout.top_k && a.ids.rows() == a.x.rows() && a.count >= 0 &&
            (a.record_tokens != nullptr || a.x.rows() <= a.count),
        "D={} K={} x=[{}, {}] stride {} ids=[{}, {}] count={}", a.layout.hidden, a.layout.top_k,
        a.x.rows(), a.x.cols(), a.x.row_stride, a.ids.rows(), a.ids.cols(), a.count);
  const Pack pack{device_cast(a.x.data),
                  a.x.row_stride,
                  a.ids.data,
                  a.ids.row_stride,
                  static_cast<std::int32_t>(a.x.rows()),
                  a.record_tokens,
                  static_cast<std::byte*>(a.records),
                  a.layout.bytes(),
                  a.layout.ids_offset(),
                  static_cast<std::int32_t>(a.layout.top_k)};
  launch(pack_records_kernel, {dim3(static_cast<unsigned>(a.count)), dim3(kCopyThreads)}, stream,
         pack);
}

void pack_returns(StreamRef stream, const PackReturnsArgs& a) {
  const std::int64_t d = a.out.cols();
  CHECK(d > 0 && d % 8 == 0 && a.y.cols() == d && a.y.row_stride % 8 == 0 &&
            a.out.row_stride % 8 == 0 && a.rows.row_stride == a.rows.cols() &&
            !(a.fill_missing && a.places != nullptr),
        "y=[{}, {}] stride {} rows=[{}, {}] out=[{}, {}] stride {}", a.y.rows(), a.y.cols(),
        a.y.row_stride, a.rows.rows(), a.rows.cols(), a.out.rows(), d, a.out.row_stride);
  const std::int64_t pairs = a.rows.rows() * a.rows.cols();
  launch(pack_returns_kernel, {dim3(static_cast<unsigned>(pairs)), dim3(kCopyThreads)}, stream,
         device_cast(a.y.data), a.y.row_stride, a.rows.data, a.places, a.fill_missing,
         device_cast(a.out.data), a.out.row_stride, d / 8);
}

}  // namespace millrace::kernels::cuda
