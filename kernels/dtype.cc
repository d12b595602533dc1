#include "kernels/dtype_name.h"

#include <array>

#include "config/check.h"

namespace millrace::kernels {
namespace {

struct Traits {
  DType dtype;
  std::string_view name;
  std::int64_t values;
  std::int64_t bytes;
};

// In the order of the enumerators.
constexpr std::array<Traits, kNumDTypes> kTraits = {{
    {DType::kF32, "f32", 1, 4},
    {DType::kF16, "f16", 1, 2},
    {DType::kBF16, "bf16", 1, 2},
    {DType::kQ8_0, "q8_0", 32, 2 + 32},
    {DType::kQ4_0, "q4_0", 32, 2 + 16},
    {DType::kQ4_1, "q4_1", 32, 2 + 2 + 16},
    {DType::kQ4_K, "q4_K", 256, 2 + 2 + 12 + 128},
    {DType::kQ5_K, "q5_K", 256, 2 + 2 + 12 + 32 + 128},
    {DType::kQ6_K, "q6_K", 256, 128 + 64 + 16 + 2},
    {DType::kP8_0, "p8_0", 32, 2 + 32},
    {DType::kP4_0, "p4_0", 32, 2 + 16},
    {DType::kP4_1, "p4_1", 32, 2 + 2 + 16},
    {DType::kP4_K, "p4_K", 256, 2 + 2 + 12 + 128},
    {DType::kP5_K, "p5_K", 256, 2 + 2 + 12 + 32 + 128},
    {DType::kP6_K, "p6_K", 256, 128 + 64 + 16 + 2},
}};

const Traits& traits(DType dtype) {
  const auto index = static_cast<std::size_t>(dtype);
  CHECK(index < kTraits.size(), "dtype={}", index);
  return kTraits[index];
}

}  // namespace

std::int64_t block_values(DType dtype) { return traits(dtype).values; }
std::int64_t block_bytes(DType dtype) { return traits(dtype).bytes; }
bool is_packed(DType dtype) { return dtype >= DType::kP8_0; }
std::string_view dtype_name(DType dtype) { return traits(dtype).name; }

bool row_fits(DType dtype, std::int64_t values) {
  return values >= 0 && values % block_values(dtype) == 0;
}

std::int64_t row_bytes(DType dtype, std::int64_t values) {
  const Traits& t = traits(dtype);
  CHECK(values >= 0 && values % t.values == 0, "dtype={} values={}", t.name, values);
  return values / t.values * t.bytes;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Traits& t : kTraits) {
    if (t.name == name) return t.dtype;
  }
  return std::nullopt;
}

float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t fraction = bits & 0x3ffU;
  if (exponent == 0x1f) {  // infinity, or NaN made quiet as the hardware conversion does
    const std::uint32_t quiet = fraction != 0 ? 0x400000U : 0U;
    return std::bit_cast<float>(sign | 0x7f800000U | quiet | (fraction << 13));
  }
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in f32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

std::uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // rounds to inf
  if (magnitude < 0x38800000U) {
    // Below 2^-14: adding 0.5 leaves the value in units of 2^-24, rounded to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1U;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U + 0xfffU + odd) >> 13));
}

}  // namespace millrace::kernels
