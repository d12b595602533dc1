// The instructions of kernels/cuda/ptx.cuh against plain loops. On the emulator this tests the
// emulator; on a device it tests what the emulator was written after.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "tests/kernels/cuda/device_memory.h"

namespace millrace::kernels::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffU;

std::vector<std::uint16_t> random_bf16(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> values(-2.0F, 2.0F);
  std::vector<std::uint16_t> out(count);
  for (auto& v : out) v = f32_to_bf16(values(generator));
  return out;
}

// ---- shuffles, votes, reductions --------------------------------------------------------------

__global__ void warp_operations(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* row = out + lane * 12;
  row[0] = __shfl_sync(kAll, lane * 10, 5);
  row[1] = __shfl_up_sync(kAll, lane, 3);
  row[2] = __shfl_down_sync(kAll, lane, 3);
  row[3] = __shfl_xor_sync(kAll, lane, 9);
  row[4] = __shfl_sync(kAll, lane, 2, 8);
  row[5] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  row[6] = __any_sync(kAll, lane == 7);
  row[7] = __all_sync(kAll, lane != 7);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  row[8] = __reduce_add_sync(kAll, lane - 16);
  row[9] = __reduce_min_sync(kAll, lane - 16);
#endif
  // Two halves with masks of their own.
  const unsigned half = lane < 16 ? 0xffffU : 0xffff0000U;
  row[10] = lane < 16 ? __shfl_xor_sync(half, lane, 1) : __shfl_xor_sync(half, lane, 2);
  row[11] = static_cast<int>(__match_any_sync(kAll, lane % 4));
}

TEST(Warp, ShufflesVotesAndReductions) {
  Stream stream;
  auto out = poisoned<int>(stream, 32 * 12);
  launch(warp_operations, {1, 32}, stream, out.as<int>());
  const auto got = download<int>(stream, out);
  for (int lane = 0; lane < 32; ++lane) {
    const int* row = &got[static_cast<std::size_t>(lane) * 12];
    EXPECT_EQ(row[0], 50);
    EXPECT_EQ(row[1], lane < 3 ? lane : lane - 3);
    EXPECT_EQ(row[2], lane > 28 ? lane : lane + 3);
    EXPECT_EQ(row[3], lane ^ 9);
    EXPECT_EQ(row[4], lane / 8 * 8 + 2);
    EXPECT_EQ(static_cast<unsigned>(row[5]), 0x49249249U);
    EXPECT_EQ(row[6], 1);
    EXPECT_EQ(row[7], 0);
    EXPECT_EQ(row[8], -16);
    EXPECT_EQ(row[9], -16);
    EXPECT_EQ(row[10], lane < 16 ? lane ^ 1 : lane ^ 2);
    EXPECT_EQ(static_cast<unsigned>(row[11]), 0x11111111U << lane % 4);
  }
}

__global__ void block_sum(const float* in, float* out, int count) {
  __shared__ float partial[8];
  const unsigned thread = threadIdx.x;
  float sum = 0.0F;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + thread); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    sum += in[i];
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(kAll, sum, step);
  if (thread % 32 == 0) partial[thread / 32] = sum;
  __syncthreads();
  if (thread == 0) {
    for (int i = 1; i < 8; ++i) sum += partial[i];
    out[blockIdx.x] = sum;
  }
}

TEST(Block, SumThroughSharedMemory) {
  Stream stream;
  std::vector<float> values(5000);
  double want = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) want += values[i] = static_cast<float>(i % 17);
  const auto in = upload(stream, values);
  auto out = poisoned<float>(stream, 3);
  launch(block_sum, {3, 256}, stream, in.as<float>(), out.as<float>(), 5000);
  const auto got = download<float>(stream, out);
  EXPECT_EQ(got[0] + got[1] + got[2], want);  // whole numbers: exact in any order
}

__global__ void tickets(std::uint32_t* counter, int* last) {
  __shared__ std::uint32_t ticket;
  if (threadIdx.x == 0) ticket = atomic_ticket(counter);
  __syncthreads();
  if (ticket == gridDim.x - 1) last[threadIdx.x] = static_cast<int>(ticket);
}

TEST(Block, OneBlockDrawsTheLastTicket) {
  Stream stream;
  const auto counter = upload(stream, std::vector<std::uint32_t>{0});
  auto last = poisoned<int>(stream, 64);
  launch(tickets, {40, 64}, stream, counter.as<std::uint32_t>(), last.as<int>());
  EXPECT_EQ(download<int>(stream, last), std::vector<int>(64, 39));
  EXPECT_EQ(download<std::uint32_t>(stream, counter)[0], 40U);
}

__global__ void named_barriers(int* out) {
  __shared__ int stage[64];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 64) {  // producers fill, and wait until consumers have read
    for (int i = 0; i < 3; ++i) {
      stage[thread] = 100 * i + thread;
      named_barrier_arrive(1, 128);
      named_barrier_sync(2, 128);
    }
  } else {
    for (int i = 0; i < 3; ++i) {
      named_barrier_sync(1, 128);
      out[i * 64 + thread - 64] = stage[127 - thread];
      named_barrier_arrive(2, 128);
    }
  }
}

TEST(Block, NamedBarriersHandOver) {
  Stream stream;
  auto out = poisoned<int>(stream, 3 * 64);
  launch(named_barriers, {1, 128}, stream, out.as<int>());
  const auto got = download<int>(stream, out);
  for (int i = 0; i < 3 * 64; ++i)
    EXPECT_EQ(got[static_cast<std::size_t>(i)], i / 64 * 100 + 63 - i % 64);
}

// ---- cp.async, plain accesses -----------------------------------------------------------------

__global__ void copy_groups(const uint4* in, uint4* out, int valid) {
  MILLRACE_DYNAMIC_SMEM(smem);
  auto* stage = reinterpret_cast<uint4*>(smem);
  const int thread = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 3; ++group) {
    const int i = group * 32 + thread;
    cp_async_16(stage + i, i < valid ? in + i : in, i < valid);
    cp_async_commit();
  }
  cp_async_wait<1>();  // groups 0 and 1
  __syncthreads();
  st_no_allocate_16(out + 31 - thread, stage[31 - thread]);
  out[32 + 31 - thread] = stage[32 + 31 - thread];
  cp_async_wait<0>();
  __syncthreads();
  out[64 + 31 - thread] = stage[64 + 31 - thread];
}

TEST(CpAsync, GroupsArriveInOrderAndInvalidOnesAreZero) {
  Stream stream;
  std::vector<std::uint32_t> values(96 * 4);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint32_t>(i + 1);
  const auto in = upload(stream, values);
  auto out = poisoned<uint4>(stream, 96);
  launch(copy_groups, {1, 32, 96 * 16}, stream, in.as<uint4>(), out.as<uint4>(), 70);
  const auto got = download<std::uint32_t>(stream, out);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], i < 70 * 4 ? i + 1 : 0) << i;
}

__global__ void plain_loads(const unsigned char* in, uint4* wide, uint2* narrow) {
  prefetch_l2(in);
  wide[threadIdx.x] = ld_nc_16(in + 16 * threadIdx.x);
  narrow[threadIdx.x] = ld_nc_8(in + 8 * threadIdx.x);
}

TEST(Memory, StreamingLoads) {
  Stream stream;
  std::vector<unsigned char> bytes(512);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(7 * i);
  const auto in = upload(stream, bytes);
  auto wide = poisoned<uint4>(stream, 32);
  auto narrow = poisoned<uint2>(stream, 32);
  launch(plain_loads, {1, 32}, stream, in.as<unsigned char>(), wide.as<uint4>(),
         narrow.as<uint2>());
  EXPECT_EQ(download<unsigned char>(stream, wide), bytes);
  bytes.resize(256);
  EXPECT_EQ(download<unsigned char>(stream, narrow), bytes);
}

// ---- ldmatrix and mma -------------------------------------------------------------------------

__global__ void load_matrices(const std::uint16_t* in, std::uint32_t* out) {
  __shared__ __align__(16) std::uint16_t stage[32][8];
  const unsigned lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) stage[lane][i] = in[lane * 8 + i];
  __syncthreads();
  std::uint32_t r[4];
  std::uint32_t r2[2];
  std::uint32_t r1[1];
  std::uint32_t* row = out + lane * 14;
  ldmatrix_x4(r, stage[lane]);
  for (int i = 0; i < 4; ++i) row[i] = r[i];
  ldmatrix_x4_trans(r, stage[lane]);
  for (int i = 0; i < 4; ++i) row[4 + i] = r[i];
  ldmatrix_x2(r2, stage[lane % 16]);
  for (int i = 0; i < 2; ++i) row[8 + i] = r2[i];
  ldmatrix_x2_trans(r2, stage[lane % 16]);
  for (int i = 0; i < 2; ++i) row[10 + i] = r2[i];
  ldmatrix_x1(r1, stage[lane % 8]);
  row[12] = r1[0];
  ldmatrix_x1_trans(r1, stage[lane % 8]);
  row[13] = r1[0];
}

TEST(Matrix, LdmatrixLayout) {
  Stream stream;
  std::vector<std::uint16_t> values(
      32 * 8);  // 4 matrices of 8 x 8: value = 100 * matrix + 10 * row + col
  for (int i = 0; i < 256; ++i) {
    values[static_cast<std::size_t>(i)] =
        static_cast<std::uint16_t>(i / 64 * 100 + i / 8 % 8 * 10 + i % 8);
  }
  const auto in = upload(stream, values);
  auto out = poisoned<std::uint32_t>(stream, 32 * 14);
  launch(load_matrices, {1, 32}, stream, in.as<std::uint16_t>(), out.as<std::uint32_t>());
  const auto got = download<std::uint32_t>(stream, out);
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned row = lane / 4;
    const unsigned col = 2 * (lane % 4);
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned plain = (100 * m + 10 * row + col) | (100 * m + 10 * row + col + 1) << 16;
      const unsigned trans = (100 * m + 10 * col + row) | (100 * m + 10 * (col + 1) + row) << 16;
      EXPECT_EQ(got[lane * 14 + m], plain);
      EXPECT_EQ(got[lane * 14 + 4 + m], trans);
      if (m < 2) {
        EXPECT_EQ(got[lane * 14 + 8 + m], plain);
        EXPECT_EQ(got[lane * 14 + 10 + m], trans);
      }
      if (m < 1) {
        EXPECT_EQ(got[lane * 14 + 12], plain);
        EXPECT_EQ(got[lane * 14 + 13], trans);
      }
    }
  }
}

// a [16, 16], b [16, 8] (k by n), d [16, 8], row-major, through the fragments that the header
// describes.
__global__ void one_mma(const std::uint16_t* a, const std::uint16_t* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int q = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](std::uint16_t lo, std::uint16_t hi) {
    return lo | static_cast<std::uint32_t>(hi) << 16;
  };
  std::uint32_t fa[4];
  std::uint32_t fb[2];
  float fd[4];
  for (int i = 0; i < 4; ++i) {
    const std::uint16_t* at = a + (g + 8 * (i % 2)) * 16 + 2 * q + 8 * (i / 2);
    fa[i] = pair(at[0], at[1]);
    fd[i] = d[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2];
  }
  for (int i = 0; i < 2; ++i) {
    const std::uint16_t* at = b + (2 * q + 8 * i) * 8 + g;
    fb[i] = pair(at[0], at[8]);
  }
  mma_m16n8k16_bf16(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = fd[i];
}

TEST(Matrix, MmaAgainstLoops) {
  Stream stream;
  const auto a = random_bf16(16 * 16, 1);
  const auto b = random_bf16(16 * 8, 2);
  std::vector<float> d(16 * 8);
  for (std::size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(i) / 64.0F;
  const auto da = upload(stream, a);
  const auto db = upload(stream, b);
  const auto dd = upload(stream, d);
  launch(one_mma, {1, 32}, stream, da.as<std::uint16_t>(), db.as<std::uint16_t>(), dd.as<float>());
  const auto got = download<float>(stream, dd);
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 8; ++n) {
      double want = d[m * 8 + n];
      for (std::size_t k = 0; k < 16; ++k) {
        want += static_cast<double>(bf16_to_f32(a[m * 16 + k])) * bf16_to_f32(b[k * 8 + n]);
      }
      EXPECT_NEAR(got[m * 8 + n], want, 1e-5) << m << ' ' << n;
    }
  }
}

// ---- conversions ------------------------------------------------------------------------------

__global__ void decode_fp8(std::uint32_t* bf16, std::uint32_t* half, float2* wide) {
  const auto pair = static_cast<std::uint16_t>(threadIdx.x | (255 - threadIdx.x) << 8);
  bf16[threadIdx.x] = e4m3x2_to_bf16x2(pair);
  half[threadIdx.x] = e4m3x2_to_half2(pair);
  wide[threadIdx.x] = e4m3x2_to_f32x2(pair);
}
__global__ void encode_fp8(std::uint16_t* out) {  // all bf16 values, with its neighbour's
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  out[i] = bf16x2_to_e4m3x2(i | (i ^ 1U) << 16);
}

TEST(Conversion, Fp8IsWhatTheHostSays) {
  Stream stream;
  auto bf16 = poisoned<std::uint32_t>(stream, 256);
  auto half = poisoned<std::uint32_t>(stream, 256);
  auto wide = poisoned<float2>(stream, 256);
  launch(decode_fp8, {1, 256}, stream, bf16.as<std::uint32_t>(), half.as<std::uint32_t>(),
         wide.as<float2>());
  const auto got_bf16 = download<std::uint32_t>(stream, bf16);
  const auto got_half = download<std::uint32_t>(stream, half);
  const auto got_wide = download<float2>(stream, wide);
  for (unsigned i = 0; i < 256; ++i) {
    const float lo = to_f32(Fp8E4M3{static_cast<std::uint8_t>(i)});
    const float hi = to_f32(Fp8E4M3{static_cast<std::uint8_t>(255 - i)});
    if (std::isnan(lo) || std::isnan(hi)) {
      EXPECT_EQ(std::isnan(lo), std::isnan(got_wide[i].x));
      EXPECT_EQ(std::isnan(hi),
                std::isnan(bf16_to_f32(static_cast<std::uint16_t>(got_bf16[i] >> 16))));
      continue;
    }
    EXPECT_EQ(got_wide[i].x, lo);
    EXPECT_EQ(got_wide[i].y, hi);
    EXPECT_EQ(got_bf16[i], f32_to_bf16(lo) | static_cast<unsigned>(f32_to_bf16(hi)) << 16);
    EXPECT_EQ(got_half[i], f32_to_f16(lo) | static_cast<unsigned>(f32_to_f16(hi)) << 16);
  }
  auto encoded = poisoned<std::uint16_t>(stream, 65536);
  launch(encode_fp8, {256, 256}, stream, encoded.as<std::uint16_t>());
  const auto got = download<std::uint16_t>(stream, encoded);
  for (unsigned i = 0; i < 65536; ++i) {
    const float v = bf16_to_f32(static_cast<std::uint16_t>(i));
    const auto code = static_cast<std::uint8_t>(got[i]);
    if (std::isnan(v)) {
      EXPECT_EQ(code & 0x7f, 0x7f);
    } else {
      EXPECT_EQ(code, to_e4m3(v).bits) << v;
    }
    EXPECT_EQ(got[i] >> 8, got[i ^ 1U] & 0xff);
  }
}

// Each e4m3 value, the halfway points between neighbours (to even), and beyond the range.
TEST(Conversion, HostFp8ByEnumeration) {
  for (int code = 0; code < 0x7e; ++code) {
    const float here = to_f32(Fp8E4M3{static_cast<std::uint8_t>(code)});
    const float next = to_f32(Fp8E4M3{static_cast<std::uint8_t>(code + 1)});
    const float half = (here + next) / 2;
    EXPECT_LT(here, next);
    EXPECT_EQ(to_e4m3(here).bits, code);
    EXPECT_EQ(to_e4m3(-next).bits, 0x80 | (code + 1));
    EXPECT_EQ(to_e4m3(half).bits, code + code % 2);
    EXPECT_EQ(to_e4m3(std::nextafter(half, 0.0F)).bits, code);
    EXPECT_EQ(to_e4m3(std::nextafter(half, 1000.0F)).bits, code + 1);
  }
  EXPECT_EQ(to_f32(Fp8E4M3{0x7e}), 448.0F);
  EXPECT_EQ(to_f32(Fp8E4M3{0x01}), 0x1p-9F);
  EXPECT_EQ(to_e4m3(1e30F).bits, 0x7e);
  EXPECT_EQ(to_e4m3(-INFINITY).bits, 0xfe);
  EXPECT_EQ(to_e4m3(-0.0F).bits, 0x80);
}

}  // namespace
}  // namespace millrace::kernels::cuda
