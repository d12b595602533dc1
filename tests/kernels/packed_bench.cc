#include "tests/kernels/packed_bench.h"

#include <fmt/format.h>

#include <array>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/dtype_name.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels {
namespace {

constexpr double kBudget = 0.4;  // seconds a figure
#if defined(__x86_64__)

constexpr std::int64_t kRounds = 1 << 20;

// What the dot-product instructions of a set can do at most, from registers: operations of one call
// on one thread, a multiply and an add counted as two. Twelve independent sums are more than
// latency times issue rate; named one by one, since gcc keeps an array of them in memory.
#define MILLRACE_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define MILLRACE_DECLARE(i) auto s##i = zero;
#define MILLRACE_STEP(i) \
  s##i = dot(s##i);      \
  asm volatile("" : "+v"(s##i), "+v"(a), "+v"(b));
#define MILLRACE_CEILING(name, isa, zero_vector, ops, expression)              \
  __attribute__((target(isa))) double name() {                                 \
    const auto zero = zero_vector();                                           \
    auto a = zero, b = zero;                                                   \
    const auto dot = [&](auto s) __attribute__((always_inline, target(isa))) { \
      return expression;                                                       \
    };                                                                         \
    MILLRACE_EACH(MILLRACE_DECLARE)                                            \
    for (std::int64_t i = 0; i < kRounds; ++i) {                               \
      MILLRACE_EACH(MILLRACE_STEP)                                             \
    }                                                                          \
    return ops * static_cast<double>(kRounds * 12);                            \
  }
MILLRACE_CEILING(ceiling_avx512_vnni, "avx512f,avx512vnni", _mm512_setzero_si512, 128,
                 _mm512_dpbusd_epi32(s, a, b))
MILLRACE_CEILING(ceiling_avx512, "avx512f,avx512bw", _mm512_setzero_si512, 128,
                 _mm512_add_epi32(s, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), b)))
MILLRACE_CEILING(ceiling_avx2_vnni, "avx2,avxvnni", _mm256_setzero_si256, 64,
                 _mm256_dpbusd_avx_epi32(s, a, b))
MILLRACE_CEILING(ceiling_avx2, "avx2", _mm256_setzero_si256, 64,
                 _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), b)))
#undef MILLRACE_CEILING
#undef MILLRACE_STEP
#undef MILLRACE_DECLARE
#undef MILLRACE_EACH

// The same of AMX: full tiles of 16 x 16 sums over 64 inputs, four at a time. Only where
// kernels/packed_amx.h says so.
__attribute__((target("amx-tile,amx-int8"))) double ceiling_avx512_amx() {
  alignas(64) static constexpr auto kConfig = [] {
    std::array<std::uint8_t, 64> config = {1};  // palette 1, then bytes of a row, then rows
    for (std::size_t tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;
      config[48 + tile] = 16;
    }
    return config;
  }();
  _tile_loadconfig(kConfig.data());
  for (std::int64_t i = 0; i < kRounds / 16; ++i) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 6);
    _tile_dpbssd(2, 7, 5);
    _tile_dpbssd(3, 7, 6);
  }
  _tile_release();
  return 2.0 * 16 * 16 * 64 * static_cast<double>(kRounds / 16 * 4);
}

double (*ceiling_of(std::string_view kernels))() {
  if (kernels == "avx512_amx") return &ceiling_avx512_amx;
  if (kernels == "avx512_vnni") return &ceiling_avx512_vnni;
  if (kernels == "avx512") return &ceiling_avx512;
  if (kernels == "avx2_vnni") return &ceiling_avx2_vnni;
  if (kernels == "avx2") return &ceiling_avx2;
  return nullptr;
}

#else

double (*ceiling_of(std::string_view))() { return nullptr; }

#endif

struct Shape {
  std::int64_t n;
  std::int64_t k;
};

struct Rates {
  const PackedKernels& kernels;
  Context context;
  const Buffer& weights;

  // T tokens against matrices that together exceed the caches.
  void gemm(DType dtype, Shape shape, std::int64_t t) const {
    const std::int64_t bytes = shape.n * row_bytes(dtype, shape.k);
    const auto count = t > 64 ? 1 : static_cast<std::int64_t>(weights.bytes()) / bytes;
    MatrixBuffer<float> x(t, shape.k);
    MatrixBuffer<float> y(t, shape.n);
    for (std::int64_t i = 0; i < t * shape.k; ++i) {
      x.view().data[i] = static_cast<float>(i * 37 % 255 - 127);
    }
    const double s = seconds(
        [&] {
          for (std::int64_t i = 0; i < count; ++i) {
            packed_gemm(kernels, context, x.view(),
                        {weights.data() + i * bytes, dtype, shape.n, shape.k}, Accumulate::kStore,
                        y.view());
          }
        },
        kBudget);
    fmt::print("  packed gemm T={:<3} {} [{}, {}]  {:6.1f} GB/s  {:7.1f} Gop/s\n", t,
               dtype_name(dtype), shape.n, shape.k, static_cast<double>(bytes * count) / s * 1e-9,
               2e-9 * static_cast<double>(t * shape.n * shape.k * count) / s);
  }

  // Top-4 of T tokens over 64 experts of the 24B, spread evenly.
  void experts(DType dtype, Shape shape, std::int64_t t) const {
    const std::int64_t e = 64;
    const std::int64_t bytes = shape.n * row_bytes(dtype, shape.k);
    MatrixBuffer<float> x(t * 4, shape.k);
    MatrixBuffer<float> y(t * 4, shape.n);
    for (std::int64_t i = 0; i < t * 4 * shape.k; ++i) {
      x.view().data[i] = static_cast<float>(i * 37 % 255 - 127);
    }
    std::vector<WeightView> w;
    std::vector<std::int64_t> offsets = {0};
    for (std::int64_t i = 0; i < e; ++i) {
      w.push_back({weights.data() + i * bytes, dtype, shape.n, shape.k});
      offsets.push_back((i + 1) * t * 4 / e);
    }
    std::int64_t read = 0;
    for (std::int64_t i = 0; i < e; ++i) {
      read += offsets[static_cast<std::size_t>(i)] < offsets[static_cast<std::size_t>(i + 1)]
                  ? bytes
                  : 0;
    }
    const double s = seconds(
        [&] {
          packed_grouped_gemm(kernels, context, {x.view(), {}, offsets, w, y.view()});
        },
        kBudget);
    fmt::print(
        "  packed grouped_gemm T={:<3} top 4 of 64 {} [{}, {}]  {:6.1f} GB/s  {:7.1f} Gop/s\n", t,
        dtype_name(dtype), shape.n, shape.k, static_cast<double>(read) / s * 1e-9,
        2e-9 * static_cast<double>(t * 4 * shape.n * shape.k) / s);
  }

  void quantize(std::int64_t k) const {
    std::vector<float> x(static_cast<std::size_t>(k), 0.5F);
    std::vector<QuantizedBlock> out(static_cast<std::size_t>(k / kQuantBlock));
    const double s = seconds(
        [&] {
          for (int i = 0; i < 100; ++i) {
            kernels.quantize(x.data(), k / kQuantBlock, {8, false}, out.data());
          }
        },
        0.1);
    fmt::print("  packed quantize [{}]  {:6.2f} Gvalues/s\n", k,
               100e-9 * static_cast<double>(k) / s);
  }
};

}  // namespace

double int8_ceiling(std::string_view set, const Context& context) {
  double (*const one)() = ceiling_of(packed_kernels(set).name);
  if (one == nullptr) return 0;
  const int threads = context.pool == nullptr ? 1 : context.pool->threads();
  double ops = 0;
  const double s = seconds(
      [&] {
        parallel_for(context, threads, 1, [&](std::int64_t begin, std::int64_t end) {
          double mine = 0;
          for (std::int64_t i = begin; i < end; ++i) mine += one();
          if (begin == 0) ops = mine / static_cast<double>(end) * threads;
        });
      },
      kBudget);
  return ops / s * 1e-9;
}

void run_packed(std::string_view set, const Context& context, const Buffer& weights) {
  Buffer workspace(std::size_t{16} << 20);
  const PackedKernels& kernels = packed_kernels(set);
  const Rates rates{kernels, {context.pool, {workspace.data(), workspace.bytes()}}, weights};
  if (const double ceiling = int8_ceiling(set, context); ceiling > 0) {
    fmt::print("  packed int8 dot products from registers, {}  {:7.1f} Gop/s\n", kernels.name,
               ceiling);
  }
  rates.quantize(2048);
  // Projections, in_proj, experts, and the tied head of the 24B.
  const Shape dense[] = {{2048, 2048}, {6144, 2048}, {1536, 2048}, {2048, 1536}};
  for (const std::int64_t t : {1, 8, 32, 512}) {
    for (const Shape shape : dense) rates.gemm(DType::kP4_0, shape, t);
    rates.gemm(DType::kP8_0, dense[0], t);
    rates.gemm(DType::kP4_K, dense[0], t);
    rates.gemm(DType::kP6_K, {65536, 2048}, t);
  }
  for (const std::int64_t t : {1, 8, 32, 512}) {
    rates.experts(DType::kP4_0, {1536, 2048}, t);
    rates.experts(DType::kP4_0, {2048, 1536}, t);
    rates.experts(DType::kP4_K, {1536, 2048}, t);
    rates.experts(DType::kP6_K, {2048, 1536}, t);
  }
}

}  // namespace millrace::kernels
