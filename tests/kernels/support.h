// Shared by the kernel tests: the sets to test, data, and comparisons.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/packed.h"
#include "kernels/table.h"

namespace millrace::kernels::testing {

inline std::vector<const KernelTable*> cpu_sets() {
  std::vector<const KernelTable*> sets;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Amx}) {
    if (isa_supported(isa)) sets.push_back(&cpu_table(isa));
  }
  return sets;
}

// Runs a test once per CPU set this machine has.
class EachSet : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& set() const { return *GetParam(); }
};

inline std::string set_name(const ::testing::TestParamInfo<const KernelTable*>& info) {
  return std::string(info.param->name);
}

#define MILLRACE_TEST_EACH_SET(suite) \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, ::testing::ValuesIn(cpu_sets()), set_name)

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr double kEps = 0x1p-24;  // half an ulp of f32, relative

inline std::vector<float> random_values(std::int64_t n, std::uint32_t seed, float scale = 1.0F) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& v : out) v = uniform(rng);
  return out;
}

inline std::vector<float> poisoned(std::int64_t n) {
  return std::vector<float>(static_cast<std::size_t>(n), kNan);
}

// Bytes whose end is the end of a page before one that must not be touched: reading past a weight
// that ends a mapped file is a crash here as it would be there.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t bytes)
      : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    mapped_ = (bytes + page_ - 1) / page_ * page_ + page_;
    void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(base);
    mprotect(base_ + mapped_ - page_, page_, PROT_NONE);
    data_ = base_ + mapped_ - page_ - bytes;
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::size_t page_;
  std::size_t mapped_ = 0;
  std::byte* base_ = nullptr;
  std::byte* data_ = nullptr;
};

struct TestWeight {
  std::unique_ptr<GuardedBytes> bytes;
  WeightView view;
  std::vector<float> values;  // [N, K], by the reference's dequantiser
};

// Random weight of about unit size in any dtype. Quantised blocks: random bits but for the scales.
inline TestWeight make_weight(DType dtype, std::int64_t rows, std::int64_t cols,
                              std::uint32_t seed) {
  TestWeight w;
  w.view = {nullptr, dtype, rows, cols};
  const auto total = static_cast<std::size_t>(w.view.bytes());
  w.bytes = std::make_unique<GuardedBytes>(total);
  w.view.data = w.bytes->data();
  std::byte* p = w.bytes->data();
  std::mt19937 rng(seed);
  for (std::size_t i = 0; i < total; ++i) p[i] = static_cast<std::byte>(rng() & 0xff);
  const std::int64_t block = block_bytes(dtype);
  const auto put_half = [&](std::int64_t at, float v) {
    const std::uint16_t bits = f32_to_f16(v);
    std::memcpy(p + at, &bits, 2);
  };
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(total); at += block) {
    const float u = uniform(rng);
    const auto bf16 = f32_to_bf16(u);
    switch (dtype) {
      case DType::kF32:
        std::memcpy(p + at, &u, 4);
        break;
      case DType::kF16:
        put_half(at, u);
        break;
      case DType::kBF16:
        std::memcpy(p + at, &bf16, 2);
        break;
      case DType::kQ8_0:
        put_half(at, u / 127);
        break;
      case DType::kQ4_0:
        put_half(at, u / 8);
        break;
      case DType::kQ4_1:
        put_half(at, u / 8);
        put_half(at + 2, uniform(rng));
        break;
      case DType::kQ4_K:
      case DType::kQ5_K:
        put_half(at, u / 512);
        put_half(at + 2, uniform(rng) / 64);
        break;
      case DType::kQ6_K:
        put_half(at + 208, u / 4096);
        break;
      default:
        ADD_FAILURE() << "packed weights are made from others: make_packed";
    }
  }
  w.values.resize(static_cast<std::size_t>(rows * cols));
  reference_table().dequantize({}, w.view, matrix(w.values.data(), rows, cols));
  return w;
}

// The same weight packed (kernels/packed.h); rows a multiple of 16.
inline TestWeight make_packed(const TestWeight& source) {
  TestWeight w;
  w.view = source.view;
  w.view.dtype = *packed_dtype(source.view.dtype);
  w.bytes = std::make_unique<GuardedBytes>(static_cast<std::size_t>(w.view.bytes()));
  pack_weight(source.view, w.bytes->data());
  w.view.data = w.bytes->data();
  w.values = source.values;
  return w;
}

// Types of one row after the other: all but the packed ones.
inline const std::vector<DType>& all_dtypes() {
  static const std::vector<DType> dtypes = {DType::kF32,  DType::kF16,  DType::kBF16,
                                            DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};
  return dtypes;
}

// Those that can be packed.
inline const std::vector<DType>& packable_dtypes() {
  static const std::vector<DType> dtypes = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,
                                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};
  return dtypes;
}

inline void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b,
                             const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(a[i]), std::bit_cast<std::uint32_t>(b[i]))
        << what << " at " << i << ": " << a[i] << " and " << b[i];
  }
}

inline void expect_close(const std::vector<float>& got, const std::vector<float>& want,
                         double relative, double absolute, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound = relative * std::fabs(static_cast<double>(want[i])) + absolute;
    ASSERT_LE(std::fabs(static_cast<double>(got[i]) - want[i]), bound)
        << what << " at " << i << ": " << got[i] << ", want " << want[i];
  }
}

}  // namespace millrace::kernels::testing
