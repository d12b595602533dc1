// ldmatrix, mma and wgmma. Products are exact in f32 and summed in f32 in ascending k; the
// hardware's order inside an instruction is its own.
#include <fmt/format.h>

#include <cstring>
#include <memory>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/stream_ref.h"
#include "kernels/dtype.h"
#include "tests/cuda_emulator/scheduler.h"
#include "tests/cuda_emulator/tensor_map.h"

namespace millrace::cuda_emulator {

using kernels::bf16_to_f32;
using kernels::cuda::Swizzle;

namespace {

constexpr std::uint32_t kAllLanes = 0xffffffffU;

void check_whole_warp(Scheduler& s, const char* what) {
  if (s.live_lanes(s.thread().warp) != kAllLanes) {
    s.fail(fmt::format("{} in a warp of which threads have ended or do not exist", what));
  }
}

// ---- ldmatrix ---------------------------------------------------------------------------------

struct LoadRecord {
  const unsigned char* row;
  std::uint32_t* registers;
  int matrices;
  bool transposed;
};

std::uint32_t load_pair(const LoadRecord* const* lanes, int matrix, int row, int col,
                        bool transposed) {
  std::uint16_t halves[2];
  for (int i = 0; i < 2; ++i) {
    const int r = transposed ? col + i : row;
    const int c = transposed ? row : col + i;
    std::memcpy(&halves[i], lanes[8 * matrix + r]->row + 2 * c, 2);
  }
  return halves[0] | static_cast<std::uint32_t>(halves[1]) << 16;
}

void combine_load(Scheduler& s, void* const* records) {
  const LoadRecord* lanes[32];
  for (int l = 0; l < 32; ++l) {
    lanes[l] = static_cast<const LoadRecord*>(records[l]);
    s.check(
        lanes[l]->matrices == lanes[0]->matrices && lanes[l]->transposed == lanes[0]->transposed,
        "lanes of a warp load different kinds of matrices");
  }
  for (int m = 0; m < lanes[0]->matrices; ++m) {
    for (int r = 0; r < 8; ++r) {
      s.check(reinterpret_cast<std::uintptr_t>(lanes[8 * m + r]->row) % 16 == 0,
              "ldmatrix: a row is not aligned to 16 bytes");
    }
    for (int l = 0; l < 32; ++l) {
      lanes[l]->registers[m] = load_pair(lanes, m, l / 4, 2 * (l % 4), lanes[0]->transposed);
    }
  }
}

// ---- mma --------------------------------------------------------------------------------------

using Value = float (*)(std::uint16_t);
float bf16_value(std::uint16_t bits) { return bf16_to_f32(bits); }

struct MmaRecord {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// Rows g and g + 8 of a warp's A fragment, k of 2q, 2q+1 and 2q+8, 2q+9, into a[16][16].
template <Value value>
void unpack_a(const std::uint32_t* fragment, int lane, float (*a)[16]) {
  const int g = lane / 4;
  const int q = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i % 2);
    const int col = 2 * q + 8 * (i / 2);
    a[row][col] = value(static_cast<std::uint16_t>(fragment[i]));
    a[row][col + 1] = value(static_cast<std::uint16_t>(fragment[i] >> 16));
  }
}

template <Value value>
void combine_mma(Scheduler&, void* const* records) {
  float a[16][16];
  float b[16][8];
  float d[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto* r = static_cast<const MmaRecord*>(records[l]);
    const int g = l / 4;
    const int q = l % 4;
    unpack_a<value>(r->a, l, a);
    for (int i = 0; i < 2; ++i) {
      b[2 * q + 8 * i][g] = value(static_cast<std::uint16_t>(r->b[i]));
      b[2 * q + 8 * i + 1][g] = value(static_cast<std::uint16_t>(r->b[i] >> 16));
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * q + i % 2] = r->d[i];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int l = 0; l < 32; ++l) {
    const auto* r = static_cast<const MmaRecord*>(records[l]);
    for (int i = 0; i < 4; ++i) r->d[i] = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
  }
}

// ---- wgmma ------------------------------------------------------------------------------------

struct Descriptor {
  std::uint32_t start, column_offset, group_offset;
  Swizzle swizzle;

  explicit Descriptor(std::uint64_t bits)
      : start(static_cast<std::uint32_t>(bits & 0x3fffU) << 4),
        column_offset(static_cast<std::uint32_t>(bits >> 16 & 0x3fffU) << 4),
        group_offset(static_cast<std::uint32_t>(bits >> 32 & 0x3fffU) << 4),
        swizzle(static_cast<Swizzle>((4U - static_cast<std::uint32_t>(bits >> 62)) & 3U)) {}

  // Address of element (row, k) of an operand whose rows are outputs, 2 bytes each.
  std::uint32_t address(std::uint32_t row, std::uint32_t k, bool transposed) const {
    const std::uint32_t row_bytes =
        swizzle == Swizzle::kNone ? 16 : 16U << static_cast<unsigned>(swizzle);
    std::uint32_t a = start;
    if (!transposed) {
      a += row / 8 * group_offset + row % 8 * row_bytes;
      a += swizzle == Swizzle::kNone ? k / 8 * column_offset + k % 8 * 2 : k * 2;
    } else {
      const std::uint32_t span = row_bytes / 2;
      const bool plain = swizzle == Swizzle::kNone;
      a += row / span * (plain ? group_offset : column_offset) + row % span * 2;
      a += k / 8 * (plain ? column_offset : group_offset) + k % 8 * row_bytes;
    }
    return swizzle_address(a, swizzle);
  }
};

void load_operand(Scheduler& s, std::uint64_t bits, int rows, bool transposed, float* out,
                  int row_stride, int k_stride) {
  const Descriptor descriptor(bits);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < 16; ++k) {
      const std::uint32_t address = descriptor.address(static_cast<std::uint32_t>(r),
                                                       static_cast<std::uint32_t>(k), transposed);
      s.check(address + 2 <= s.dynamic_smem_bytes(),
              "a wgmma operand reaches beyond dynamic shared memory");
      std::uint16_t v;
      std::memcpy(&v, s.dynamic_smem() + address, 2);
      out[r * row_stride + k * k_stride] = bf16_to_f32(v);
    }
  }
}

float* accumulator(const WgmmaOperation& op, int thread, int j, int h, float* d) {
  const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * h;
  return d + row * op.n + 8 * j + 2 * (thread % 4);
}

void multiply(Scheduler& s, const WgmmaOperation* const* threads) {
  const WgmmaOperation& op = *threads[0];
  static thread_local float a[64][16];
  static thread_local float b[16 * 256];
  static thread_local float d[64 * 256];
  if (op.a_in_registers) {
    for (int t = 0; t < 128; ++t)
      unpack_a<bf16_value>(threads[t]->a_registers, t % 32, a + t / 32 * 16);
  } else {
    load_operand(s, op.a, 64, op.trans_a, a[0], 16, 1);
  }
  load_operand(s, op.b, op.n, op.trans_b, b, 1, op.n);
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < op.n / 2; ++i) {
      accumulator(op, t, i / 4, i / 2 % 2, d)[i % 2] = op.accumulate ? threads[t]->d[i] : 0.0F;
    }
  }
  for (int m = 0; m < 64; ++m) {
    for (int k = 0; k < 16; ++k) {
      const float factor = a[m][k];
      for (int n = 0; n < op.n; ++n) d[m * op.n + n] += factor * b[k * op.n + n];
    }
  }
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < op.n / 2; ++i) {
      threads[t]->d[i] = accumulator(op, t, i / 4, i / 2 % 2, d)[i % 2];
    }
  }
}

bool same(const WgmmaOperation& x, const WgmmaOperation& y) {
  return x.n == y.n && x.trans_a == y.trans_a && x.trans_b == y.trans_b &&
         x.accumulate == y.accumulate && x.a_in_registers == y.a_in_registers && x.a == y.a &&
         x.b == y.b;
}

struct WaitRecord {
  Pending<WgmmaOperation>* products;
  int pending;
};

void combine_wgmma(Scheduler& s, void* const* records) {
  const auto* first = static_cast<const WaitRecord*>(records[0]);
  const std::size_t due = first->products->due(first->pending);
  for (int t = 0; t < 128; ++t) {
    const auto* r = static_cast<const WaitRecord*>(records[t]);
    s.check(r->pending == first->pending && r->products->due(r->pending) == due,
            "threads of a warpgroup wait for different wgmma groups");
  }
  for (std::size_t i = 0; i < due; ++i) {
    const WgmmaOperation* threads[128];
    for (int t = 0; t < 128; ++t) {
      threads[t] = &static_cast<const WaitRecord*>(records[t])->products->operations[i];
      s.check(same(*threads[t], *threads[0]),
              "threads of a warpgroup gave different descriptors to one wgmma");
    }
    multiply(s, threads);
  }
  for (int t = 0; t < 128; ++t) {
    static_cast<const WaitRecord*>(records[t])->products->retire(first->pending);
  }
}

}  // namespace

void load_matrix(std::uint32_t* registers, int matrices, bool transposed, const void* row,
                 Where where) {
  Scheduler& s = Scheduler::of_this_thread();
  check_whole_warp(s, "ldmatrix");
  LoadRecord record{static_cast<const unsigned char*>(row), registers, matrices, transposed};
  s.meet_warp(kAllLanes, "ldmatrix", &record, combine_load, where);
}

void issue_wgmma(const Wgmma& wgmma) {
  Scheduler& s = Scheduler::of_this_thread();
  Thread& t = s.thread();
  if (kernels::cuda::current_cc() != 90) s.fail("wgmma needs compute capability 9.0");
  s.check(t.wgmma_fenced, "wgmma without a wgmma_fence since the last wait");
  WgmmaOperation op{wgmma.n,
                    wgmma.trans_a,
                    wgmma.trans_b,
                    wgmma.accumulate,
                    wgmma.a_registers != nullptr,
                    wgmma.a,
                    wgmma.b,
                    {},
                    wgmma.d};
  if (op.a_in_registers) std::memcpy(op.a_registers, wgmma.a_registers, sizeof op.a_registers);
  t.products.operations.push_back(op);
}

void wait_wgmma(int pending, Where where) {
  Scheduler& s = Scheduler::of_this_thread();
  Thread& t = s.thread();
  t.wgmma_fenced = false;
  WaitRecord record{&t.products, pending};
  s.meet_warpgroup("wgmma_wait", &record, combine_wgmma, where);
}

}  // namespace millrace::cuda_emulator

namespace millrace::kernels::cuda {

using cuda_emulator::Scheduler;

void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                       cuda_emulator::Where where) {
  Scheduler& s = Scheduler::of_this_thread();
  cuda_emulator::check_whole_warp(s, "mma");
  cuda_emulator::MmaRecord record{d, a, b};
  s.meet_warp(cuda_emulator::kAllLanes, "mma of bf16", &record,
              cuda_emulator::combine_mma<cuda_emulator::bf16_value>, where);
}
void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                      cuda_emulator::Where where) {
  Scheduler& s = Scheduler::of_this_thread();
  cuda_emulator::check_whole_warp(s, "mma");
  cuda_emulator::MmaRecord record{d, a, b};
  s.meet_warp(cuda_emulator::kAllLanes, "mma of f16", &record,
              cuda_emulator::combine_mma<f16_to_f32>, where);
}

std::uint64_t wgmma_descriptor(const void* smem, std::uint32_t column_offset,
                               std::uint32_t group_offset, Swizzle swizzle) {
  Scheduler::of_this_thread().check(
      column_offset % 16 == 0 && group_offset % 16 == 0 && smem_address(smem) % 16 == 0,
      "a wgmma descriptor counts in 16 bytes");
  const std::uint64_t layout = (4U - static_cast<std::uint32_t>(swizzle)) & 3U;
  return static_cast<std::uint64_t>((smem_address(smem) & 0x3ffffU) >> 4) |
         static_cast<std::uint64_t>((column_offset & 0x3ffffU) >> 4) << 16 |
         static_cast<std::uint64_t>((group_offset & 0x3ffffU) >> 4) << 32 | layout << 62;
}

void wgmma_fence() { Scheduler::of_this_thread().thread().wgmma_fenced = true; }
void wgmma_commit() { Scheduler::of_this_thread().thread().products.commit(); }

}  // namespace millrace::kernels::cuda
