// The instructions of compute capability 9.0 against plain loops: mbarriers, the copy engine,
// wgmma. Skipped on other devices.
#include <gtest/gtest.h>

#include <random>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/tensor_map.h"
#include "tests/kernels/cuda/device_memory.h"

namespace millrace::kernels::cuda {
namespace {

class Sm90 : public testing::Test {
 protected:
  void SetUp() override {
    if (device_count() == 0 || current_cc() != 90) GTEST_SKIP() << "no device of capability 9.0";
  }
};

// bf16 of small whole numbers: all products and sums are exact.
std::vector<std::uint16_t> whole_bf16(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> values(-8, 8);
  std::vector<std::uint16_t> out(count);
  for (auto& v : out) v = f32_to_bf16(static_cast<float>(values(generator)));
  return out;
}

std::vector<std::uint16_t> numbered(std::size_t count) {
  std::vector<std::uint16_t> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::uint16_t>(i + 1);
  return out;
}

// ---- copy engine ------------------------------------------------------------------------------

// Loads `boxes` boxes one below the other, through two buffers, and stores them as they lie.
__global__ void copy_boxes(const __grid_constant__ TensorMap map, std::uint16_t* out, int boxes,
                           int elements, int box_rows, int col) {
#if MILLRACE_SM90
  MILLRACE_DYNAMIC_SMEM(smem);
  __shared__ std::uint64_t full[2];
  const int thread = static_cast<int>(threadIdx.x);
  const int stage_bytes = (elements * 2 + 1023) / 1024 * 1024;
  if (thread == 0) {
    tma_prefetch_map(&map);
    mbarrier_init(&full[0], 1);
    mbarrier_init(&full[1], 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  const auto load = [&](int box) {
    if (thread != 0 || box >= boxes) return;
    mbarrier_arrive_expect_tx(&full[box % 2], static_cast<std::uint32_t>(elements * 2));
    tma_load_2d(smem + box % 2 * stage_bytes, &map, &full[box % 2], box * box_rows, col,
                CachePolicy::kEvictFirst);
  };
  load(0);
  for (int box = 0; box < boxes; ++box) {
    load(box + 1);
    mbarrier_wait(&full[box % 2], static_cast<std::uint32_t>(box / 2 % 2));
    const auto* tile = reinterpret_cast<const std::uint16_t*>(smem + box % 2 * stage_bytes);
    for (int i = thread; i < elements; i += 128) out[box * elements + i] = tile[i];
    __syncthreads();  // all have read before the next load overwrites this stage
  }
#endif
}

// The value that the matrix [rows, cols] has there; zero outside.
std::uint16_t element(const std::vector<std::uint16_t>& values, int rows, int cols, int r, int c) {
  if (r < 0 || r >= rows || c < 0 || c >= cols) return 0;
  return values[static_cast<std::size_t>(r * cols + c)];
}

void check_boxes(Swizzle swizzle, int box_rows, int box_cols, int first_col) {
  constexpr int kRows = 70;
  constexpr int kCols = 80;
  constexpr int kBoxes = 5;
  Stream stream;
  const auto values = numbered(kRows * kCols);
  const auto in = upload(stream, values);
  const int elements = box_rows * box_cols;
  auto out = poisoned<std::uint16_t>(stream, static_cast<std::size_t>(kBoxes * elements));
  TensorMapSpec spec;
  spec.data = in.data();
  spec.rows = kRows;
  spec.cols = kCols;
  spec.box_rows = box_rows;
  spec.box_cols = box_cols;
  spec.swizzle = swizzle;
  launch(copy_boxes, {1, 128, 16384}, stream, make_tensor_map(spec), out.as<std::uint16_t>(),
         kBoxes, elements, box_rows, first_col);
  const auto got = download<std::uint16_t>(stream, out);
  const int bits = (1 << static_cast<int>(swizzle)) - 1;
  for (int i = 0; i < kBoxes * elements; ++i) {
    const int byte = i % elements * 2;
    const int origin = byte ^ (byte / 128 & bits) << 4;  // the permutation is its own inverse
    const int r = i / elements * box_rows + origin / 2 / box_cols;
    const int c = first_col + origin / 2 % box_cols;
    ASSERT_EQ(got[static_cast<std::size_t>(i)], element(values, kRows, kCols, r, c)) << i;
  }
}

TEST_F(Sm90, BoxesWithEachSwizzleAndZerosOutside) {
  check_boxes(Swizzle::kNone, 16, 64, 16);
  check_boxes(Swizzle::kNone, 8, 24, 0);
  check_boxes(Swizzle::k32B, 16, 16, 8);
  check_boxes(Swizzle::k64B, 16, 32, 56);
  check_boxes(Swizzle::k128B, 16, 64, 0);
  check_boxes(Swizzle::k128B, 32, 64, -8);
}

__global__ void bulk_copies(const unsigned char* in, unsigned char* out, unsigned bytes) {
#if MILLRACE_SM90
  MILLRACE_DYNAMIC_SMEM(smem);
  __shared__ std::uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
    mbarrier_expect_tx(&full, bytes);
    bulk_load(smem, in, bytes / 2, &full);
    bulk_load(smem + bytes / 2, in + bytes / 2, bytes / 2, &full, CachePolicy::kEvictLast);
    mbarrier_arrive(&full);
  }
  __syncthreads();
  while (!mbarrier_try_wait(&full, 0)) {
  }
  for (unsigned i = threadIdx.x; i < bytes; i += 64) out[i] = smem[i];
#endif
}

TEST_F(Sm90, BulkCopiesCountBytes) {
  Stream stream;
  std::vector<unsigned char> bytes(4096);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 31 / 7);
  const auto in = upload(stream, bytes);
  auto out = poisoned<unsigned char>(stream, bytes.size());
  launch(bulk_copies, {1, 64, 4096}, stream, in.as<unsigned char>(), out.as<unsigned char>(),
         4096U);
  EXPECT_EQ(download<unsigned char>(stream, out), bytes);
}

// A ring of three slots: one warp fills, another empties, with a barrier each way.
__global__ void ring(int* out, int items) {
#if MILLRACE_SM90
  __shared__ int slots[3][32];
  __shared__ std::uint64_t full[3];
  __shared__ std::uint64_t empty[3];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 3; ++s) {
      mbarrier_init(&full[s], 32);
      mbarrier_init(&empty[s], 32);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  for (int i = 0; i < items; ++i) {
    const int s = i % 3;
    const auto round = static_cast<std::uint32_t>(i / 3 % 2);
    if (threadIdx.x < 32) {
      mbarrier_wait(&empty[s], round ^ 1U);  // passes at once in the first round
      slots[s][lane] = i * 100 + lane;
      mbarrier_arrive(&full[s]);
    } else {
      mbarrier_wait(&full[s], round);
      out[i * 32 + lane] = slots[s][31 - lane];
      mbarrier_arrive(&empty[s]);
    }
  }
#endif
}

TEST_F(Sm90, PhasesOfARing) {
  Stream stream;
  constexpr int kItems = 14;
  auto out = poisoned<int>(stream, kItems * 32);
  launch(ring, {1, 64}, stream, out.as<int>(), kItems);
  const auto got = download<int>(stream, out);
  for (int i = 0; i < kItems * 32; ++i) {
    ASSERT_EQ(got[static_cast<std::size_t>(i)], i / 32 * 100 + 31 - i % 32);
  }
}

// ---- wgmma ------------------------------------------------------------------------------------

// How an operand [rows, 64] (K contiguous) or [64, rows] (K over rows) lies in shared memory.
struct Operand {
  bool k_contiguous;
  Swizzle swizzle;
};

[[maybe_unused]] __device__ int row_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 16 : 16 << static_cast<int>(swizzle);
}

// Byte of element (row, k), before the swizzle: tiles of one row length side by side, each of all
// its rows.
[[maybe_unused]] __device__ int tile_byte(Operand op, int rows, int row, int k) {
  const int length = row_bytes(op.swizzle);
  const int fast = (op.k_contiguous ? k : row) * 2;
  const int slow = op.k_contiguous ? row : k;
  const int slow_count = op.k_contiguous ? rows : 64;
  const int byte = fast / length * (slow_count * length) + slow * length + fast % length;
  const int bits = (1 << static_cast<int>(op.swizzle)) - 1;
  return byte ^ (byte / 128 & bits) << 4;
}

// Descriptor of the 16 values of K from `k` on.
[[maybe_unused]] __device__ std::uint64_t describe(Operand op, const unsigned char* tile, int rows,
                                                   int k) {
  const int length = row_bytes(op.swizzle);
  if (op.k_contiguous) {
    const auto column = static_cast<std::uint32_t>(rows * length);
    const auto group = static_cast<std::uint32_t>(8 * length);
    const int byte = k * 2 / length * static_cast<int>(column) + k * 2 % length;
    return wgmma_descriptor(tile + byte, column, group, op.swizzle);
  }
  const auto along_rows = static_cast<std::uint32_t>(64 * length);
  const auto along_k = static_cast<std::uint32_t>(8 * length);
  const bool plain = op.swizzle == Swizzle::kNone;
  return wgmma_descriptor(tile + k * length, plain ? along_k : along_rows,
                          plain ? along_rows : along_k, op.swizzle);
}

// out [64, N] = a [64, 64] * b [N, 64]^T, all row-major in global memory.
template <int N, bool TransA, bool TransB, bool ARegisters>
__global__ void __launch_bounds__(128, 1)
    multiply(const std::uint16_t* a, const std::uint16_t* b, float* out, Operand oa, Operand ob) {
#if MILLRACE_SM90A
  MILLRACE_DYNAMIC_SMEM(smem);
  unsigned char* tile_b = smem + 64 * 128;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < 64 * 64; i += 128) {
    *reinterpret_cast<std::uint16_t*>(smem + tile_byte(oa, 64, i / 64, i % 64)) = a[i];
  }
  for (int i = thread; i < N * 64; i += 128) {
    *reinterpret_cast<std::uint16_t*>(tile_b + tile_byte(ob, N, i / 64, i % 64)) = b[i];
  }
  fence_proxy_async();
  __syncthreads();
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = 1000.0F;  // the first product overwrites it
  const int row = thread / 32 * 16 + thread % 32 / 4;
  const int q = thread % 4;
  std::uint32_t fragments[4][4] = {};
  if constexpr (ARegisters) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const int i = j % 4;
      const std::uint16_t* at = a + (row + 8 * (i % 2)) * 64 + j / 4 * 16 + 2 * q + 8 * (i / 2);
      fragments[j / 4][i] = at[0] | static_cast<std::uint32_t>(at[1]) << 16;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_fence_registers(fragments[k]);
  }
  wgmma_fence_registers(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 64; k += 16) {
    if constexpr (ARegisters) {
      wgmma_m64k16_bf16<N, TransB>(d, fragments[k / 16], describe(ob, tile_b, N, k), k > 0);
    } else {
      wgmma_m64k16_bf16<N, TransA, TransB>(d, describe(oa, smem, 64, k), describe(ob, tile_b, N, k),
                                           k > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_fence_registers(d);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    out[(row + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * q + i % 2] = d[i];
  }
#endif
}

template <int N, bool TransA, bool TransB, bool ARegisters>
void check_product(Swizzle swizzle_a, Swizzle swizzle_b) {
  SCOPED_TRACE(testing::Message() << "N " << N << ", transposed " << TransA << TransB
                                  << ", swizzles " << static_cast<int>(swizzle_a)
                                  << static_cast<int>(swizzle_b));
  Stream stream;
  const auto a = whole_bf16(64 * 64, 3);
  const auto b = whole_bf16(N * 64, 4);
  const auto da = upload(stream, a);
  const auto db = upload(stream, b);
  auto out = poisoned<float>(stream, 64 * N);
  launch(multiply<N, TransA, TransB, ARegisters>, {1, 128, 64 * 128 + N * 128}, stream,
         da.as<std::uint16_t>(), db.template as<std::uint16_t>(), out.template as<float>(),
         Operand{!TransA, swizzle_a}, Operand{!TransB, swizzle_b});
  const auto got = download<float>(stream, out);
  for (std::size_t m = 0; m < 64; ++m) {
    for (std::size_t n = 0; n < N; ++n) {
      float want = 0.0F;
      for (std::size_t k = 0; k < 64; ++k) {
        want += bf16_to_f32(a[m * 64 + k]) * bf16_to_f32(b[n * 64 + k]);
      }
      ASSERT_EQ(got[m * N + n], want) << m << ' ' << n;
    }
  }
}

constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k32B, Swizzle::k64B, Swizzle::k128B};

TEST_F(Sm90, WgmmaOfEachWidth) {
  check_product<8, false, false, false>(Swizzle::k128B, Swizzle::k128B);
  check_product<16, false, false, false>(Swizzle::k128B, Swizzle::k128B);
  check_product<32, false, false, false>(Swizzle::k128B, Swizzle::k128B);
  check_product<64, false, false, false>(Swizzle::k128B, Swizzle::k128B);
  check_product<128, false, false, false>(Swizzle::k128B, Swizzle::k128B);
  check_product<256, false, false, false>(Swizzle::k128B, Swizzle::k128B);
}

TEST_F(Sm90, WgmmaWithEachSwizzle) {
  for (const Swizzle sa : kSwizzles) {
    for (const Swizzle sb : kSwizzles) check_product<64, false, false, false>(sa, sb);
  }
}

TEST_F(Sm90, WgmmaWithTransposedOperands) {
  for (const Swizzle s : kSwizzles) {
    check_product<64, false, true, false>(Swizzle::k128B, s);
    check_product<128, false, true, false>(Swizzle::k128B, s);
    check_product<64, true, false, false>(s, Swizzle::k64B);
    check_product<64, true, true, false>(s, s);
  }
}

TEST_F(Sm90, WgmmaWithAInRegisters) {
  check_product<8, false, false, true>(Swizzle::k128B, Swizzle::k128B);
  check_product<64, false, false, true>(Swizzle::k128B, Swizzle::k128B);
  check_product<64, false, true, true>(Swizzle::k128B, Swizzle::k128B);
  check_product<96, false, false, true>(Swizzle::k128B, Swizzle::k128B);
  check_product<256, false, false, true>(Swizzle::k128B, Swizzle::k64B);
}

TEST_F(Sm90, TensorMapsAreChecked) {
  DeviceBuffer buffer(64 * 64 * 2);
  TensorMapSpec good{buffer.data(), 2, 64, 64, 0, 16, 64, Swizzle::k128B};
  EXPECT_NO_THROW(make_tensor_map(good));
  TensorMapSpec spec = good;
  spec.box_cols = 32;  // 64 bytes under a swizzle of 128
  EXPECT_THROW(make_tensor_map(spec), CudaError);
  spec = good;
  spec.row_stride = 68;  // 136 bytes
  EXPECT_THROW(make_tensor_map(spec), CudaError);
  spec = good;
  spec.data = buffer.data() + 2;
  EXPECT_THROW(make_tensor_map(spec), CudaError);
  spec = good;
  spec.box_rows = 257;
  EXPECT_THROW(make_tensor_map(spec), CudaError);
}

}  // namespace
}  // namespace millrace::kernels::cuda
