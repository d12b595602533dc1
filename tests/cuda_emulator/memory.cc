// Copies into shared memory: cp.async, mbarriers, the copy engine; and the plain accesses of
// ptx.cuh.
#include <cuda_bf16.h>
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/dtype.h"
#include "tests/cuda_emulator/scheduler.h"
#include "tests/cuda_emulator/tensor_map.h"

namespace millrace::cuda_emulator {
namespace {

constexpr std::uint64_t kInitialised = 0x6d62617272696572;  // what an mbarrier's memory holds

Scheduler& scheduler() { return Scheduler::of_this_thread(); }

bool aligned(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

// Dynamic shared memory must hold all bytes; other memory is taken for static shared memory.
void check_shared(const void* p, std::size_t bytes, std::size_t alignment) {
  Scheduler& s = scheduler();
  s.check(aligned(p, alignment), "a shared address is not aligned as the instruction wants it");
  const auto* begin = static_cast<const unsigned char*>(p);
  const unsigned char* smem = s.dynamic_smem();
  const unsigned char* end = smem + s.dynamic_smem_bytes();
  s.check(begin + bytes <= smem || begin > end || (begin >= smem && begin + bytes <= end),
          "reaches beyond dynamic shared memory");
}

void check_hopper(const char* what) {
  if (kernels::cuda::current_cc() < 90) {
    scheduler().fail(fmt::format("{} needs compute capability 9.0", what));
  }
}

}  // namespace

MBarrier& Scheduler::new_mbarrier(std::uint64_t* address) {
  for (MBarrier& b : mbarriers_) {
    if (b.address == address) return b = MBarrier{address};
  }
  return mbarriers_.emplace_back(MBarrier{address});
}

MBarrier& Scheduler::mbarrier(std::uint64_t* address) {
  for (MBarrier& b : mbarriers_) {
    if (b.address != address) continue;
    check(*address == kInitialised, "the memory of an mbarrier was overwritten");
    return b;
  }
  fail("uses an mbarrier that was not initialised");
}

void Scheduler::settle(MBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  wake_all(barrier.waiting);
  progress();
}

void wait_copies(int pending) {
  auto& copies = scheduler().thread().copies;
  const std::size_t due = copies.due(pending);
  for (std::size_t i = 0; i < due; ++i) {
    const CopyOperation& copy = copies.operations[i];
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, 16);
    } else {
      std::memcpy(copy.to, copy.from, 16);
    }
  }
  copies.retire(pending);
}

}  // namespace millrace::cuda_emulator

namespace millrace::kernels::cuda {

using cuda_emulator::kPoison;
using cuda_emulator::MBarrier;
using cuda_emulator::Scheduler;
using cuda_emulator::TensorMapFields;
using cuda_emulator::Where;

std::uint32_t smem_address(const void* smem) {
  Scheduler& s = cuda_emulator::scheduler();
  s.thread();
  const auto* p = static_cast<const unsigned char*>(smem);
  s.check(p >= s.dynamic_smem() && p <= s.dynamic_smem() + s.dynamic_smem_bytes(),
          "the emulator knows addresses of dynamic shared memory only");
  return static_cast<std::uint32_t>(p - s.dynamic_smem());
}

// ---- global memory ----------------------------------------------------------------------------

uint4 ld_nc_16(const void* p) {
  cuda_emulator::scheduler().check(cuda_emulator::aligned(p, 16), "ld_nc_16: not aligned");
  uint4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
uint2 ld_nc_8(const void* p) {
  cuda_emulator::scheduler().check(cuda_emulator::aligned(p, 8), "ld_nc_8: not aligned");
  uint2 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void st_no_allocate_16(void* p, uint4 v) {
  cuda_emulator::scheduler().check(cuda_emulator::aligned(p, 16), "st_no_allocate_16: not aligned");
  std::memcpy(p, &v, sizeof v);
}
std::uint32_t atomic_ticket(std::uint32_t* counter) { return atomicAdd(counter, 1U); }

// ---- cp.async ---------------------------------------------------------------------------------

void cp_async_16(void* smem, const void* global, bool valid) {
  cuda_emulator::check_shared(smem, 16, 16);
  Scheduler& s = cuda_emulator::scheduler();
  s.check(cuda_emulator::aligned(global, 16), "cp_async_16: the global address is not aligned");
  std::memset(smem, kPoison, 16);
  s.thread().copies.operations.push_back({smem, valid ? global : nullptr});
}
void cp_async_commit() { cuda_emulator::scheduler().thread().copies.commit(); }

// ---- conversions ------------------------------------------------------------------------------

std::uint32_t f32x2_to_bf16x2(float lo, float hi) {
  return f32_to_bf16(lo) | static_cast<std::uint32_t>(f32_to_bf16(hi)) << 16;
}
float2 bf16x2_to_f32x2(std::uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U)};
}
std::uint32_t f32x2_to_half2(float lo, float hi) {
  return f32_to_f16(lo) | static_cast<std::uint32_t>(f32_to_f16(hi)) << 16;
}
float ex2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126F ? 0.0F : y;  // NaN passes
}
std::uint16_t f32x2_to_e4m3x2(float lo, float hi) {
  return static_cast<std::uint16_t>(to_e4m3(lo).bits | to_e4m3(hi).bits << 8);
}
std::uint16_t bf16x2_to_e4m3x2(std::uint32_t pair) {
  const float2 v = bf16x2_to_f32x2(pair);
  return f32x2_to_e4m3x2(v.x, v.y);
}
float2 e4m3x2_to_f32x2(std::uint16_t pair) {
  return {to_f32(Fp8E4M3{static_cast<std::uint8_t>(pair)}),
          to_f32(Fp8E4M3{static_cast<std::uint8_t>(pair >> 8)})};
}
std::uint32_t e4m3x2_to_half2(std::uint16_t pair) {
  const float2 v = e4m3x2_to_f32x2(pair);
  return f32_to_f16(v.x) | static_cast<std::uint32_t>(f32_to_f16(v.y)) << 16;
}
std::uint32_t e4m3x2_to_bf16x2(std::uint16_t pair) {
  const float2 v = e4m3x2_to_f32x2(pair);
  return f32x2_to_bf16x2(v.x, v.y);
}

// ---- barriers ---------------------------------------------------------------------------------

void named_barrier_sync(int barrier, int threads, Where where) {
  cuda_emulator::scheduler().named_barrier(barrier, threads, true, where);
}
void named_barrier_arrive(int barrier, int threads, Where where) {
  cuda_emulator::scheduler().named_barrier(barrier, threads, false, where);
}

void mbarrier_init(std::uint64_t* bar, std::uint32_t count) {
  cuda_emulator::check_shared(bar, 8, 8);
  Scheduler& s = cuda_emulator::scheduler();
  s.check(count >= 1 && count < (1U << 20), "an mbarrier counts 1 to 2^20 - 1 arrivals");
  MBarrier& b = s.new_mbarrier(bar);
  b.count = b.pending = count;
  *bar = cuda_emulator::kInitialised;
}

void mbarrier_arrive(std::uint64_t* bar) {
  Scheduler& s = cuda_emulator::scheduler();
  MBarrier& b = s.mbarrier(bar);
  s.check(b.pending > 0, "arrives at an mbarrier more often than it counts");
  --b.pending;
  s.settle(b);
}

void mbarrier_expect_tx(std::uint64_t* bar, std::uint32_t bytes) {
  cuda_emulator::check_hopper("mbarrier_expect_tx");
  Scheduler& s = cuda_emulator::scheduler();
  MBarrier& b = s.mbarrier(bar);
  b.bytes += bytes;
  s.check(b.bytes < (1 << 20), "an mbarrier expects at most 2^20 - 1 bytes");
}

void mbarrier_arrive_expect_tx(std::uint64_t* bar, std::uint32_t bytes) {
  mbarrier_expect_tx(bar, bytes);
  mbarrier_arrive(bar);
}

bool mbarrier_try_wait(std::uint64_t* bar, std::uint32_t parity, Where where) {
  cuda_emulator::check_hopper("mbarrier_try_wait");
  Scheduler& s = cuda_emulator::scheduler();
  s.check(parity <= 1, "a parity is 0 or 1");
  if ((s.mbarrier(bar).phase & 1U) == parity) s.poll("an mbarrier", where);
  const bool complete = (s.mbarrier(bar).phase & 1U) != parity;
  if (complete) s.progress();
  return complete;
}

void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity, Where where) {
  cuda_emulator::check_hopper("mbarrier_wait");
  Scheduler& s = cuda_emulator::scheduler();
  s.check(parity <= 1, "a parity is 0 or 1");
  while ((s.mbarrier(bar).phase & 1U) == parity) {
    s.mbarrier(bar).waiting.push_back(&s.thread());
    s.wait("an mbarrier", where);
  }
}

// ---- copy engine ------------------------------------------------------------------------------

namespace {

// Where byte `offset` of a tile goes: the hardware permutes address bits, not positions in the
// tile.
unsigned char* swizzled(Scheduler& s, unsigned char* tile, std::size_t offset, Swizzle swizzle) {
  if (swizzle == Swizzle::kNone) return tile + offset;
  const auto address = static_cast<std::uint32_t>(tile - s.dynamic_smem() + offset);
  return s.dynamic_smem() + cuda_emulator::swizzle_address(address, swizzle);
}

void copy_box(Scheduler& s, unsigned char* tile, const TensorMapFields& map, std::int64_t row,
              std::int64_t col) {
  const std::size_t element = map.element_bytes;
  const std::size_t row_bytes = map.box_cols * element;
  for (std::int64_t r = 0; r < map.box_rows; ++r) {
    for (std::int64_t c = 0; c < map.box_cols; ++c) {
      const auto offset =
          static_cast<std::size_t>(r) * row_bytes + static_cast<std::size_t>(c) * element;
      unsigned char* to = swizzled(s, tile, offset, map.swizzle);
      const bool inside = row + r >= 0 && row + r < map.rows && col + c >= 0 && col + c < map.cols;
      if (inside) {
        const auto* from = map.data + (row + r) * map.row_stride_bytes;
        std::memcpy(to, from + (col + c) * static_cast<std::int64_t>(element), element);
      } else {
        std::memset(to, 0, element);
      }
    }
  }
}

}  // namespace

void tma_load_2d(void* smem, const TensorMap* map, std::uint64_t* bar, std::int32_t row,
                 std::int32_t col, CachePolicy) {
  cuda_emulator::check_hopper("tma_load_2d");
  Scheduler& s = cuda_emulator::scheduler();
  s.mbarrier(bar);
  const TensorMapFields fields = cuda_emulator::unpack(*map);
  s.check(fields.magic == cuda_emulator::kTensorMapMagic, "tma_load_2d: not a tensor map");
  const std::uint32_t bytes = fields.box_rows * fields.box_cols * fields.element_bytes;
  cuda_emulator::check_shared(smem, bytes, 128);
  if (fields.swizzle != Swizzle::kNone) smem_address(smem);  // must be dynamic
  auto* tile = static_cast<unsigned char*>(smem);
  std::memset(tile, kPoison, bytes);
  s.add_bulk_copy(
      {bar, bytes, [&s, tile, fields, row, col] { copy_box(s, tile, fields, row, col); }});
}

void bulk_load(void* smem, const void* global, std::uint32_t bytes, std::uint64_t* bar,
               CachePolicy) {
  cuda_emulator::check_hopper("bulk_load");
  Scheduler& s = cuda_emulator::scheduler();
  s.mbarrier(bar);
  s.check(bytes % 16 == 0 && cuda_emulator::aligned(global, 16), "bulk_load: not aligned");
  cuda_emulator::check_shared(smem, bytes, 16);
  std::memset(smem, kPoison, bytes);
  s.add_bulk_copy({bar, bytes, [=] { std::memcpy(smem, global, bytes); }});
}

}  // namespace millrace::kernels::cuda
