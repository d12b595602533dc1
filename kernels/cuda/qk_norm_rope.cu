#include "kernels/cuda/qk_norm_rope.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    rope_angles_kernel(const std::int32_t* positions, const float* inverse_frequencies, int half,
                       std::int64_t count, float* cos_out, float* sin_out) {
  await_previous_kernel();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const float position = static_cast<float>(positions[i / half]);
  const auto angle = static_cast<double>(__fmul_rn(position, inverse_frequencies[i % half]));
  cos_out[i] = static_cast<float>(cos(angle));
  sin_out[i] = static_cast<float>(sin(angle));
}

struct Rope {
  __nv_bfloat16* qkv;
  std::int64_t stride;
  const float* q_weight;
  const float* k_weight;
  float eps;
  const float* cos;
  const float* sin;
  const std::int64_t* slots;
  KvPages pages;
  std::int32_t heads;
  std::int64_t vectors;  // T * (H + 2 G)
};

// The lanes that share a head: eight channels each.
template <int kHeadDim>
inline constexpr int kLanes = kHeadDim / kVec;

// RMSNorm and rotation of the head whose channels [8 lane, 8 lane + 8) are x. All lanes of the warp
// call it. The order of the sum depends on head_dim only.
template <int kHeadDim>
__device__ Vec8 norm_and_rotate(const Vec8& x, int lane, const float* weight, float eps,
                                const float* cos, const float* sin) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVec; ++i) squares = __fmaf_rn(x.v[i], x.v[i], squares);
#pragma unroll
  for (int step = kLanes<kHeadDim> / 2; step > 0; step /= 2) {
    squares = __fadd_rn(squares, __shfl_xor_sync(0xffffffffU, squares, step));
  }
  const float mean = __fdiv_rn(squares, static_cast<float>(kHeadDim));
  const float scale = __fdiv_rn(1.0F, __fsqrt_rn(__fadd_rn(mean, eps)));
  const Vec8 w = load8(weight + lane * kVec);
  const bool upper = lane >= kLanes<kHeadDim> / 2;
  const int pair = (lane % (kLanes<kHeadDim> / 2)) * kVec;
  const Vec8 c = load8(cos + pair);
  const Vec8 s = load8(sin + pair);
  Vec8 out;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float own = __fmul_rn(__fmul_rn(x.v[i], scale), w.v[i]);
    const float other = __shfl_xor_sync(0xffffffffU, own, kLanes<kHeadDim> / 2);
    const float turned = __fmul_rn(other, s.v[i]);
    out.v[i] = __fmaf_rn(own, c.v[i], upper ? turned : -turned);
  }
  return out;
}

// Eight channels of a row of the pages; fp8 divides by the scale first.
__device__ void write_page(void* base, const KvPages& pages, std::int64_t at, Vec8 x, float scale) {
  if (pages.type == KvType::kBf16) {
    store8(static_cast<__nv_bfloat16*>(base) + at, x);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) x.v[i] = __fdiv_rn(x.v[i], scale);
  *reinterpret_cast<uint2*>(static_cast<std::uint8_t*>(base) + at) = pack_e4m3(x);
}

// A group of lanes for each (token, head of q, k or v).
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) qk_norm_rope_kernel(Rope a) {
  await_previous_kernel();
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t vector = thread / kLanes<kHeadDim>;
  const int lane = static_cast<int>(thread % kLanes<kHeadDim>);
  const int groups = a.pages.kv_heads;
  const int per_token = a.heads + 2 * groups;
  // Lanes beyond the end stay for the shuffles.
  const bool present = vector < a.vectors;
  const std::int64_t t = present ? vector / per_token : 0;
  const int head = present ? static_cast<int>(vector % per_token) : 0;
  const std::int64_t slot = present ? a.slots[t] : -1;
  const bool is_q = head < a.heads;
  const bool is_v = head >= a.heads + groups;
  __nv_bfloat16* row = a.qkv + t * a.stride + head * kHeadDim + lane * kVec;

  const Vec8 x = present ? load8(row) : Vec8{};
  const std::int64_t angles = t * (kHeadDim / 2);
  const Vec8 turned = norm_and_rotate<kHeadDim>(x, lane, is_q ? a.q_weight : a.k_weight, a.eps,
                                                a.cos + angles, a.sin + angles);
  if (!present) return;
  if (is_q) {
    store8(row, turned);
    return;
  }
  if (slot < 0) return;
  const int g = is_v ? head - a.heads - groups : head - a.heads;
  const std::int64_t block = slot / a.pages.block_size;
  const auto offset = static_cast<std::int32_t>(slot % a.pages.block_size);
  const std::int64_t at = a.pages.row(block, g, offset) * kHeadDim + lane * kVec;
  if (is_v) {
    write_page(a.pages.v, a.pages, at, x, a.pages.v_scale);
  } else {
    write_page(a.pages.k, a.pages, at, turned, a.pages.k_scale);
  }
}

template <int kHeadDim>
void start(StreamRef stream, const Rope& rope) {
  const std::int64_t threads = rope.vectors * kLanes<kHeadDim>;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  launch(qk_norm_rope_kernel<kHeadDim>, {dim3(blocks), dim3(kThreads)}, stream, rope);
}

}  // namespace

void rope_angles(StreamRef stream, const RopeAnglesArgs& a) {
  const std::int64_t half = a.cos.cols();
  const std::int64_t rows = a.cos.rows();
  CHECK(half > 0 && a.sin.cols() == half && a.sin.rows() == rows && a.cos.row_stride == half &&
            a.sin.row_stride == half,
        "cos=[{}, {}] sin=[{}, {}]", rows, half, a.sin.rows(), a.sin.cols());
  const std::int64_t count = rows * half;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  launch(rope_angles_kernel, {dim3(blocks), dim3(kThreads)}, stream, a.positions,
         a.inverse_frequencies, static_cast<int>(half), count, a.cos.data, a.sin.data);
}

void qk_norm_rope(StreamRef stream, const QkNormRopeArgs& a) {
  const KvPages& p = a.pages;
  const std::int64_t per_token = a.heads + 2 * std::int64_t{p.kv_heads};
  CHECK(a.heads > 0 && p.kv_heads > 0 && a.qkv.cols() == per_token * p.head_dim &&
            a.qkv.row_stride % kVec == 0 && a.eps > 0,
        "H={} G={} head_dim={} qkv=[{}, {}] stride {} eps={}", a.heads, p.kv_heads, p.head_dim,
        a.qkv.rows(), a.qkv.cols(), a.qkv.row_stride, a.eps);
  CHECK(p.block_size > 0 && p.block_size % 16 == 0, "block_size={}", p.block_size);
  CHECK(a.cos.cols() == p.head_dim / 2 && a.sin.cols() == p.head_dim / 2 &&
            a.cos.rows() >= a.qkv.rows() && a.sin.rows() >= a.qkv.rows() &&
            a.cos.row_stride == p.head_dim / 2 && a.sin.row_stride == p.head_dim / 2,
        "T={} cos=[{}, {}] sin=[{}, {}]", a.qkv.rows(), a.cos.rows(), a.cos.cols(), a.sin.rows(),
        a.sin.cols());
  const Rope rope{device_cast(a.qkv.data),
                  a.qkv.row_stride,
                  a.q_weight,
                  a.k_weight,
                  a.eps,
                  a.cos.data,
                  a.sin.data,
                  a.slots,
                  p,
                  a.heads,
                  a.qkv.rows() * per_token};
  switch (p.head_dim) {
    case 32:
      return start<32>(stream, rope);
    case 64:
      return start<64>(stream, rope);
    case 128:
      return start<128>(stream, rope);
    case 256:
      return start<256>(stream, rope);
    default:
      CHECK(false, "head_dim={}: not 32, 64, 128 or 256", p.head_dim);
  }
}

}  // namespace millrace::kernels::cuda
