#include "kernels/cuda/qk_norm_rope.h"

#include <algorithm>
#include <ostream>
#include <set>

#include "kernels/qk_norm_rope.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

constexpr float kEpsilon = 1e-5F;

struct Shape {
  std::int32_t heads, groups, head_dim, block_size;
  std::int64_t width() const { return std::int64_t{heads + 2 * groups} * head_dim; }
};

struct Input {
  Shape shape;
  std::vector<float> qkv;  // [T, width]
  std::vector<std::int32_t> positions;
  std::vector<std::int64_t> slots;
  std::vector<float> q_weight, k_weight;
  std::int64_t tokens() const { return static_cast<std::int64_t>(positions.size()); }
};

Input make_input(const Shape& shape, std::int64_t tokens, std::int32_t blocks, std::uint32_t seed) {
  Input in{shape, random_bf16(tokens * shape.width(), seed, 3), {}, {}, {}, {}};
  in.q_weight = random_values(shape.head_dim, seed + 1, 2);
  in.k_weight = random_values(shape.head_dim, seed + 2, 2);
  std::mt19937 rng(seed);
  std::vector<std::int64_t> free;
  for (std::int64_t s = 0; s < std::int64_t{blocks} * shape.block_size; ++s) free.push_back(s);
  std::shuffle(free.begin(), free.end(), rng);
  for (std::int64_t t = 0; t < tokens; ++t) {
    in.positions.push_back(static_cast<std::int32_t>(rng() % 128000));
    in.slots.push_back(t % 4 == 3 ? -1 : free[static_cast<std::size_t>(t)]);
  }
  return in;
}

struct Output {
  std::vector<float> qkv;
  std::vector<std::uint16_t> k_bits, v_bits;  // of every element of the pages
};

template <class Element>
Output run(const Input& in, std::int32_t blocks, KvType type, Element poison, float k_scale = 1,
           float v_scale = 1) {
  const Shape& s = in.shape;
  const std::vector<float> frequencies = rope_inverse_frequencies(1e6F, s.head_dim);
  const DeviceArray<float> device_frequencies(frequencies);
  const DeviceArray<std::int32_t> positions(in.positions);
  const auto half = s.head_dim / 2;
  const auto angles = static_cast<std::size_t>(in.tokens() * half);
  const DeviceArray<float> cos(angles, kNan), sin(angles, kNan);
  rope_angles(default_stream(),
              {positions.data(), device_frequencies.data(), matrix(cos.data(), in.tokens(), half),
               matrix(sin.data(), in.tokens(), half)});
  const DeviceArray<BFloat16> qkv(to_bf16(in.qkv));
  const DeviceArray<float> q_weight(in.q_weight), k_weight(in.k_weight);
  const DeviceArray<std::int64_t> slots(in.slots);
  const auto elements =
      static_cast<std::size_t>(std::int64_t{blocks} * s.groups * s.block_size * s.head_dim);
  const DeviceArray<Element> k(elements, poison), v(elements, poison);
  QkNormRopeArgs args;
  args.qkv = matrix(qkv.data(), in.tokens(), s.width());
  args.heads = s.heads;
  args.q_weight = q_weight.data();
  args.k_weight = k_weight.data();
  args.eps = kEpsilon;
  args.cos = matrix<const float>(cos.data(), in.tokens(), half);
  args.sin = matrix<const float>(sin.data(), in.tokens(), half);
  args.slots = slots.data();
  args.pages = {k.data(), v.data(),   type,    blocks, s.block_size,
                s.groups, s.head_dim, k_scale, v_scale};
  qk_norm_rope(default_stream(), args);
  Output out;
  out.qkv = to_f32(qkv.read());
  for (const Element e : k.read()) out.k_bits.push_back(e.bits);
  for (const Element e : v.read()) out.v_bits.push_back(e.bits);
  return out;
}

// q and k as the reference has them, v as it came.
std::vector<float> reference(const Input& in) {
  const Shape& s = in.shape;
  const auto half = s.head_dim / 2;
  std::vector<float> out = in.qkv;
  std::vector<float> cos = poisoned(in.tokens() * half), sin = cos;
  const std::vector<float> frequencies = rope_inverse_frequencies(1e6F, s.head_dim);
  const auto cos_view = matrix(cos.data(), in.tokens(), half);
  const auto sin_view = matrix(sin.data(), in.tokens(), half);
  reference_table().rope_angles({}, in.positions, frequencies, cos_view, sin_view);
  kernels::QkNormRopeArgs args;
  args.q = heads(out.data(), in.tokens(), s.heads, s.head_dim, s.width());
  args.k = heads(out.data() + s.heads * s.head_dim, in.tokens(), s.groups, s.head_dim, s.width());
  args.q_weight = in.q_weight;
  args.k_weight = in.k_weight;
  args.eps = kEpsilon;
  args.cos = cos_view;
  args.sin = sin_view;
  reference_table().qk_norm_rope({}, args);
  return out;
}

// Element of the pages for (slot, group, channel), by the picture in kernels/cuda/kv_pages.h.
std::size_t page_index(const Shape& s, std::int64_t slot, std::int64_t g, std::int64_t i) {
  const std::int64_t block = slot / s.block_size;
  const std::int64_t offset = slot % s.block_size;
  return static_cast<std::size_t>(((block * s.groups + g) * s.block_size + offset) * s.head_dim +
                                  i);
}

void PrintTo(const Shape& s, std::ostream* out) {
  *out << "H=" << s.heads << " G=" << s.groups << " head_dim=" << s.head_dim
       << " block=" << s.block_size;
}

class CudaQkNormRopeShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(CudaQkNormRopeShapes, AgreesWithTheReferenceAndFillsTheRightPages) {
  const Shape s = GetParam();
  const std::int32_t blocks = 3;
  const Input in = make_input(s, 11, blocks, 5);
  const std::vector<float> want = reference(in);
  const Output got = run<BFloat16>(in, blocks, KvType::kBf16, kBf16Nan);
  std::set<std::size_t> written;
  for (std::int64_t t = 0; t < in.tokens(); ++t) {
    for (std::int64_t head = 0; head < s.heads + 2 * s.groups; ++head) {
      for (std::int64_t i = 0; i < s.head_dim; ++i) {
        const auto at = static_cast<std::size_t>(t * s.width() + head * s.head_dim + i);
        // Products of the pair may cancel: relative to their size, not to the result.
        const auto partner = static_cast<std::size_t>(t * s.width() + head * s.head_dim +
                                                      (i + s.head_dim / 2) % s.head_dim);
        const double size = std::hypot(want[at], want[partner]);
        const double bound = std::fabs(want[at]) * kBf16Half + size * 64 * kF32Half;
        if (head < s.heads) {
          ASSERT_NEAR(got.qkv[at], want[at], bound) << t << " " << head << " " << i;
          continue;
        }
        ASSERT_EQ(got.qkv[at], in.qkv[at]) << "k and v stay as they are";
        const std::int64_t slot = in.slots[static_cast<std::size_t>(t)];
        if (slot < 0) continue;
        const bool is_v = head >= s.heads + s.groups;
        const std::int64_t g = head - s.heads - (is_v ? s.groups : 0);
        const std::size_t page = page_index(s, slot, g, i);
        written.insert(page);
        const float value = cuda::to_f32(BFloat16{is_v ? got.v_bits[page] : got.k_bits[page]});
        if (is_v) {
          ASSERT_EQ(value, in.qkv[at]);
        } else {
          ASSERT_NEAR(value, want[at], bound) << t << " " << head << " " << i;
        }
      }
    }
  }
  for (std::size_t i = 0; i < got.k_bits.size(); ++i) {
    if (written.contains(i)) continue;
    ASSERT_EQ(got.k_bits[i], kBf16Nan.bits) << "element " << i << " belongs to nobody";
    ASSERT_EQ(got.v_bits[i], kBf16Nan.bits) << "element " << i << " belongs to nobody";
  }
}

// fp8 pages hold the rounding of the f32 value, not of its bf16; a step of e4m3 is 2^-3 relative,
// 2^-9 at the least.
TEST_P(CudaQkNormRopeShapes, Fp8PagesHoldTheScaledValue) {
  const Shape s = GetParam();
  const std::int32_t blocks = 2;
  const Input in = make_input(s, 9, blocks, 6);
  const std::vector<float> want = reference(in);
  for (const float scale : {1.0F, 0.25F}) {
    const Output got = run<Fp8E4M3>(in, blocks, KvType::kFp8E4M3, Fp8E4M3{0x7f}, scale, 2 * scale);
    for (std::int64_t t = 0; t < in.tokens(); ++t) {
      const std::int64_t slot = in.slots[static_cast<std::size_t>(t)];
      if (slot < 0) continue;
      for (std::int64_t g = 0; g < s.groups; ++g) {
        for (std::int64_t i = 0; i < s.head_dim; ++i) {
          const std::int64_t row = t * s.width() + i;
          const float k = want[static_cast<std::size_t>(row + (s.heads + g) * s.head_dim)];
          const float v =
              want[static_cast<std::size_t>(row + (s.heads + s.groups + g) * s.head_dim)];
          const std::size_t page = page_index(s, slot, g, i);
          const auto stored_k = cuda::to_f32(Fp8E4M3{static_cast<std::uint8_t>(got.k_bits[page])});
          ASSERT_NEAR(stored_k, k / scale, std::fabs(k / scale) * 0.0626 + 0x1p-10);
          ASSERT_EQ(got.v_bits[page], to_e4m3(v / (2 * scale)).bits) << t << " " << g << " " << i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaQkNormRopeShapes,
                         ::testing::Values(Shape{32, 8, 64, 16}, Shape{4, 2, 64, 32},
                                           Shape{1, 1, 32, 16}, Shape{3, 1, 128, 16},
                                           Shape{2, 2, 256, 48}));

TEST(CudaRopeAnglesTest, AreThoseOfTheCpu) {
  std::vector<std::int32_t> positions = {0, 1, 2, 31, 4095, 32767, 105615, 105616, 127999};
  const std::vector<float> frequencies = rope_inverse_frequencies(5e6F, 64);
  const auto rows = static_cast<std::int64_t>(positions.size());
  std::vector<float> cos = poisoned(rows * 32), sin = cos;
  cpu_table(Isa::kPortable)
      .rope_angles({}, positions, frequencies, matrix(cos.data(), rows, 32),
                   matrix(sin.data(), rows, 32));
  const DeviceArray<std::int32_t> device_positions(positions);
  const DeviceArray<float> device_frequencies(frequencies);
  const DeviceArray<float> got_cos(cos.size(), kNan), got_sin(cos.size(), kNan);
  rope_angles(default_stream(),
              {device_positions.data(), device_frequencies.data(), matrix(got_cos.data(), rows, 32),
               matrix(got_sin.data(), rows, 32)});
  expect_same_bits(got_cos.read(), cos, "cos");
  expect_same_bits(got_sin.read(), sin, "sin");
}

TEST(CudaQkNormRopeTest, BitsOfATokenDependOnTheTokenOnly) {
  const Shape s{4, 2, 64, 16};
  Input in = make_input(s, 24, 4, 7);
  for (std::int64_t i = 0; i < s.width(); ++i) {
    in.qkv[static_cast<std::size_t>(5 * s.width() + i)] = kNan;
  }
  const Output all = run<BFloat16>(in, 4, KvType::kBf16, kBf16Nan);
  for (const std::int64_t t : {4, 6, 23}) {
    Input one{s, rows_of(in.qkv, t, 1, s.width()), {}, {}, in.q_weight, in.k_weight};
    one.positions = {in.positions[static_cast<std::size_t>(t)]};
    one.slots = {in.slots[static_cast<std::size_t>(t)]};
    const Output alone = run<BFloat16>(one, 4, KvType::kBf16, kBf16Nan);
    expect_same_bits(alone.qkv, rows_of(all.qkv, t, 1, s.width()), "alone");
    if (one.slots[0] < 0) continue;
    for (std::int64_t i = 0; i < s.head_dim; ++i) {
      const std::size_t page = page_index(s, one.slots[0], 1, i);
      EXPECT_EQ(alone.k_bits[page], all.k_bits[page]);
    }
  }
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
