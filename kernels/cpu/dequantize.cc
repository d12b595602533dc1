#include "kernels/dequantize.h"

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/set.h"
#include "kernels/cpu/weights.h"
#include "kernels/packed.h"
#include "kernels/scratch.h"

namespace millrace::kernels::MILLRACE_ISA {
namespace {

template <class Loader>
void convert_plain(const std::byte* row, std::int64_t begin, std::int64_t count, float* out) {
  const auto* p = reinterpret_cast<const typename Loader::Value*>(row) + begin;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load_as<Loader>(p + i));
  for (; i < count; ++i) out[i] = Loader::one(p + i);
}

template <class Decoder>
void convert_blocks(const std::byte* row, std::int64_t begin, std::int64_t count, float* out) {
  Bytes b = reinterpret_cast<Bytes>(row) + begin / Decoder::kValues * Decoder::kBytes;
  for (std::int64_t i = 0; i < count; i += Decoder::kValues, b += Decoder::kBytes) {
    Decoder::decode(
        b, [to = out + i](int at, Vec v) __attribute__((always_inline)) { store(to + at, v); });
  }
}

}  // namespace

void convert_row(DType dtype, const std::byte* row, std::int64_t begin, std::int64_t count,
                 float* out) {
  switch (dtype) {
    case DType::kF32:
      return convert_plain<LoadF32>(row, begin, count, out);
    case DType::kF16:
      return convert_plain<LoadF16>(row, begin, count, out);
    case DType::kBF16:
      return convert_plain<LoadBf16>(row, begin, count, out);
    case DType::kQ8_0:
      return convert_blocks<Q8_0>(row, begin, count, out);
    case DType::kQ4_0:
      return convert_blocks<Q4_0>(row, begin, count, out);
    case DType::kQ4_1:
      return convert_blocks<Q4_1>(row, begin, count, out);
    case DType::kQ4_K:
      return convert_blocks<Q4_K>(row, begin, count, out);
    case DType::kQ5_K:
      return convert_blocks<Q5_K>(row, begin, count, out);
    case DType::kQ6_K:
      return convert_blocks<Q6_K>(row, begin, count, out);
    default:  // packed rows lie interleaved: convert_weight_row
      __builtin_unreachable();
  }
}

void convert_weight_row(const WeightView& w, std::int64_t row, float* out) {
  if (!is_packed(w.dtype)) return convert_row(w.dtype, w.row(row), 0, w.cols, out);
  std::byte* unpacked = thread_scratch();
  unpack_row(w, row, unpacked);
  convert_row(source_dtype(w.dtype), unpacked, 0, w.cols, out);
}

void dequantize(const Context& context, const WeightView& w, MatrixView<float> out) {
  check_dequantize(w, out);
  parallel_for(context, w.rows, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      convert_weight_row(w, n, out.row(n));
    }
  });
}

}  // namespace millrace::kernels::MILLRACE_ISA
