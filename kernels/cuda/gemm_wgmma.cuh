// The GEMM kernel of compute capability 9.0: a warp or warpgroup keeps a ring of steps in shared
// memory full, one warpgroup for each 64 rows of weights multiplies. The ring runs on from unit to
// unit, so the loads of the next tile are on their way while this one is stored.
//
// Weights come by bulk copies (a record, or a piece of one, is consecutive bytes) and go to
// registers, where fp8 is widened; they are wgmma's A. x comes by cp.async, since its rows may be
// scattered, into the 128-byte swizzle, and is wgmma's B. wgmma wants 64 rows and all four warps
// see the same B: in a narrow tile each warp multiplies its chunk of 16 rows by the columns of all
// four chunks, of which its own quarter counts.
#pragma once

#include "kernels/cuda/gemm_epilogue.cuh"

namespace millrace::kernels::cuda {

template <class T_>
struct WgmmaConfig {
  using T = T_;
  static constexpr int Consumers = 128 * T::Records;
  static constexpr int Producers = T::Rows <= 64 ? 32 : 128;
  static constexpr int Threads = Consumers + Producers;
  // Small tiles: several blocks a multiprocessor, so that the start and end of one are hidden
  // behind the others. Wide tiles need the registers of a whole one. 227 KiB of shared memory are
  // shared, less 1 KiB a block for the system and what WgmmaShared takes.
  static constexpr int BlocksPerSm = T::XRows <= 32 ? 3 : (T::XRows <= 64 ? 2 : 1);
  static constexpr int SmemBudget = 227 * 1024 / BlocksPerSm - 10 * 1024;
  static constexpr int FitStages = SmemBudget / T::StepBytes;
  static constexpr int Stages = FitStages > 8 ? 8 : FitStages;
  static_assert(Stages >= 4);
  // A step's x is declared ready when this many more steps were begun.
  static constexpr int Lag = Stages >= 6 ? 3 : 2;
  static constexpr int SmemBytes = Stages * T::StepBytes;
  // setmaxnreg: the wide kernels start with 168 registers a thread, 64,512 in all.
  static constexpr bool MovesRegisters = T::Rows > 64;
};

template <class C>
struct WgmmaShared {
  std::uint64_t full[C::Stages];   // arrivals: every producer, and the bytes of the weights
  std::uint64_t empty[C::Stages];  // arrivals: every consumer warp
  TileTable table;
  alignas(16) float stage[C::Consumers / 32][kStageFloats];
  alignas(16) float merge[C::T::Narrow ? C::T::XRows * 16 : 1];
  int last;
};

// Slots are used in order; the parity of a slot's barriers changes with every round of the ring.
template <class C>
struct RingPosition {
  int slot = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == C::Stages) {
      slot = 0;
      parity ^= 1U;
    }
  }
};

// The dynamic shared memory: x first, whose swizzle needs 1024-byte alignment.
template <class C>
__device__ __forceinline__ unsigned char* x_slot(unsigned char* smem, int slot) {
  return smem + slot * C::T::XBytes;
}
template <class C>
__device__ __forceinline__ unsigned char* w_slot(unsigned char* smem, int slot) {
  return smem + C::Stages * C::T::XBytes + slot * C::T::WeightBytes;
}

template <class C>
class Producer {
 public:
  using T = typename C::T;

  __device__ Producer(const GemmParams& p, WgmmaShared<C>& shared, unsigned char* smem)
      : p_(p), shared_(shared), smem_(smem) {}

  // Early: await_previous_kernel() is still to come. Weights are nobody's output, so a ring full of
  // them is asked for before it.
  __device__ void run(int units, bool early) {
    if (early) {
      const int first = static_cast<int>(blockIdx.x);
      if (first < units) ask_for_weights(decode_unit<T::Tokens>(shared_.table, p_, first));
      await_previous_kernel();
    }
    for (int index = static_cast<int>(blockIdx.x); index < units;
         index += static_cast<int>(gridDim.x)) {
      load_unit(decode_unit<T::Tokens>(shared_.table, p_, index));
    }
    cp_async_wait<0>();
    while (pending_ > 0) declare_ready();
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x) - C::Consumers; }

  // Of the first steps of the block's first unit, as many as the ring holds.
  __device__ void ask_for_weights(const GemmUnit& unit) {
    const unsigned char* weights = unit_weights<T>(p_, unit);
    const GemmSteps<T> steps(p_, unit);
    asked_ = min(C::Stages, steps.end - steps.begin);
    if (thread() != 0) return;
    for (int i = 0; i < asked_; ++i) load_weights(unit, weights, steps.record(steps.begin + i), i);
  }

  __device__ void load_unit(const GemmUnit& unit) {
    const unsigned char* weights = unit_weights<T>(p_, unit);
    x_.start(p_, unit, thread());
    const GemmSteps<T> steps(p_, unit);
    for (int step = steps.begin; step < steps.end; ++step) {
      const int record = steps.record(step);
      // Of a fresh barrier the phase before the first counts as complete.
      mbarrier_wait(&shared_.empty[next_.slot], next_.parity ^ 1U);
      if (asked_ > 0) {
        --asked_;
      } else if (thread() == 0) {
        load_weights(unit, weights, record, next_.slot);
      }
      x_.load(p_, x_slot<C>(smem_, next_.slot), record);
      cp_async_commit();
      next_.advance();
      if (++pending_ > C::Lag) {
        cp_async_wait<C::Lag>();
        declare_ready();
      }
    }
  }

  // One bulk copy for each record or piece that exists.
  __device__ __forceinline__ void load_weights(const GemmUnit& unit, const unsigned char* weights,
                                               int record, int slot) {
    constexpr int kRecord = record_bytes(T::Format);
    constexpr int kBytes = T::Narrow ? piece_bytes(T::Format) : kRecord;
    constexpr int kMost = T::Narrow ? T::Span : T::Records;
    const int records = static_cast<int>(gemm_records(T::Format, p_.k));
    const int exist = T::Narrow ? (records - record + T::PerChunk - 1) / T::PerChunk
                                : static_cast<int>(gemm_tiles(p_.n)) - unit.row_tile * T::Records;
    const int count = min(kMost, exist);
    const std::int64_t apart =
        static_cast<std::int64_t>(T::Narrow ? T::PerChunk : records) * kRecord;
    const CachePolicy policy = p_.weights_once ? CachePolicy::kEvictFirst : CachePolicy::kNormal;
    std::uint64_t* full = &shared_.full[slot];
    mbarrier_arrive_expect_tx(full, static_cast<std::uint32_t>(count * kBytes));
    for (int i = 0; i < count; ++i) {
      bulk_load(w_slot<C>(smem_, slot) + i * kBytes,
                weights + static_cast<std::int64_t>(record) * kRecord + i * apart, kBytes, full,
                policy);
    }
  }

  // The oldest step's copies of this thread have come; wgmma reads them through another proxy.
  __device__ __forceinline__ void declare_ready() {
    fence_proxy_async();
    mbarrier_arrive(&shared_.full[ready_.slot]);
    ready_.advance();
    --pending_;
  }

  const GemmParams& p_;
  WgmmaShared<C>& shared_;
  unsigned char* smem_;
  ActivationLoader<T, C::Producers> x_;
  RingPosition<C> next_;
  RingPosition<C> ready_;
  int pending_ = 0;
  int asked_ = 0;  // steps to come whose weights are on their way
};

template <class C>
class Consumer {
 public:
  using T = typename C::T;
  static constexpr int kTiles = T::Tokens / 8;

  __device__ Consumer(const GemmParams& p, WgmmaShared<C>& shared, unsigned char* smem)
      : p_(p), shared_(shared), smem_(smem) {}

  __device__ void run(int units) {
    for (int index = static_cast<int>(blockIdx.x); index < units;
         index += static_cast<int>(gridDim.x)) {
      const GemmUnit unit = decode_unit<T::Tokens>(shared_.table, p_, index);
      if constexpr (T::Narrow) {
        narrow_unit(unit);
      } else {
        wide_unit(unit);
      }
    }
  }

 private:
  static constexpr int kHalves = record_cols(T::Format) / 64;
  static constexpr int kAccumulators = T::XRows / 2;
  struct Sync {
    __device__ void operator()() const { named_barrier_sync(1, C::Consumers); }
  };

  __device__ void wide_unit(const GemmUnit& unit) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    float sum[1][kTiles][4] = {};
    const GemmSteps<T> steps(p_, unit);
    for (int step = steps.begin; step < steps.end; step += T::PerChunk) {
      float part[kAccumulators];
      multiply_round(min(T::PerChunk, steps.end - step), T::PerChunk, part);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const float four[4] = {part[4 * j], part[4 * j + 1], part[4 * j + 2], part[4 * j + 3]};
        add_to(sum[0][j], four, step == steps.begin);
      }
    }
    const int at[1] = {warp * kTiles * 128};
    if (p_.split && !finish_split(p_, unit, sum, T::Tokens * T::Rows, at, shared_.last, Sync())) {
      return;
    }
    store_block(p_, unit, sum[0], unit.row_tile * T::Rows + warp * 16, 0, shared_.stage[warp]);
  }

  __device__ void narrow_unit(const GemmUnit& unit) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    const int records = static_cast<int>(gemm_records(T::Format, p_.k));
    float sum[1][4] = {};
    const GemmSteps<T> steps(p_, unit);
    for (int step = steps.begin; step < steps.end; step += T::PerChunk) {
      float part[kAccumulators];
      // Pieces of this warp's chunk; beyond K there are none.
      const int pieces = records - steps.record(step) - warp * T::PerChunk;
      multiply_round(min(T::PerChunk, steps.end - step), pieces, part);
      float mine[kTiles][4];
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) {
        float v = part[i];
#pragma unroll
        for (int w = 1; w < 4; ++w) v = warp == w ? part[w * 4 * kTiles + i] : v;
        mine[i / 4][i % 4] = v;
      }
      const int chunks = min(T::Span, p_.chunks - step / T::PerChunk * T::Span);
      merge_round(sum[0], mine, shared_.merge, chunks, step == steps.begin, Sync());
    }
    if (warp >= kTiles) return;
    store_block(p_, unit, sum, unit.row_tile * T::Rows, 8 * warp, shared_.stage[warp]);
  }

  // part = the products of the next `steps` of the ring, with zeros for weights from `pieces` on.
  __device__ __forceinline__ void multiply_round(int steps, int pieces,
                                                 float (&part)[kAccumulators]) {
    // wgmma reads registers while it runs, so the next fragments go to the other set.
    WeightFragments even;
    WeightFragments odd;
    held_ = -1;
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) part[i] = 0;
    wgmma_fence_registers(part);
    // Pairs without a condition between them: the compiler keeps wgmma running over straight code.
    if constexpr (kHalves == 2) {
      for (int i = 0; i < steps; ++i) {
        multiply_half<0>(even, i < pieces, part);
        multiply_half<1>(odd, i < pieces, part);
      }
    } else {
      for (int i = 0; i < steps / 2; ++i) {
        multiply_half<0>(even, 2 * i < pieces, part);
        multiply_half<0>(odd, 2 * i + 1 < pieces, part);
      }
      if (steps % 2 != 0) multiply_half<0>(even, steps - 1 < pieces, part);
    }
    wgmma_wait<0>();
    wgmma_fence_registers(part);
    release(held_);
  }

  // Begins the multiplication of 64 columns; on return the ones before it are done.
  template <int Half>
  __device__ __forceinline__ void multiply_half(WeightFragments& f, bool exists,
                                                float (&part)[kAccumulators]) {
    if constexpr (Half == 0) mbarrier_wait(&shared_.full[next_.slot], next_.parity);
    const int warp = static_cast<int>(threadIdx.x / 32);
    const unsigned char* piece = w_slot<C>(smem_, next_.slot) + warp * piece_bytes(T::Format);
    if constexpr (kHalves == 2 && Half == 0) scales_ = load_scales(piece);
    load_fragments<T::Format>(f, piece, Half, scales_);
    if constexpr (T::Narrow) {
#pragma unroll
      for (int i = 0; i < 16; ++i) f.a[i / 4][i % 4] = exists ? f.a[i / 4][i % 4] : 0U;
    }
    const std::uint64_t x = wgmma_descriptor(x_slot<C>(smem_, next_.slot) + Half * T::XRows * 128,
                                             0, 1024, Swizzle::k128B);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_fence_registers(f.a[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      wgmma_m64k16_bf16<T::XRows>(part, f.a[i], wgmma_advance(x, 32U * i));
    }
    wgmma_commit();
    wgmma_wait<1>();
    if constexpr (Half == 0) {
      if (held_ >= 0) release(held_);
    }
    if constexpr (Half == kHalves - 1) {
      held_ = next_.slot;
      next_.advance();
    }
  }

  // This warp has read all it wants of the slot, and used it: its values went into products that
  // are done, so no load is under way when the bulk copy writes there. (PTX asks for a proxy fence
  // between the two; CUTLASS' mainloop with A from registers has none either.)
  __device__ __forceinline__ void release(int slot) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared_.empty[slot]);
  }

  const GemmParams& p_;
  WgmmaShared<C>& shared_;
  unsigned char* smem_;
  RingPosition<C> next_;
  int held_ = -1;  // the slot whose products may be unfinished
  WeightScales scales_{};
};

template <class C>
__global__ void __launch_bounds__(C::Threads, C::BlocksPerSm)
    gemm_wgmma_kernel(const __grid_constant__ GemmParams p) {
#if MILLRACE_SM90A
  // Which rows an expert has, a kernel in front says; all tiles of a plain product are known.
  const bool early = p.offsets == nullptr;
  if (!early) await_previous_kernel();
  MILLRACE_DYNAMIC_SMEM(smem);
  __shared__ WgmmaShared<C> shared;
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::Stages; ++i) {
      mbarrier_init(&shared.full[i], C::Producers + 1);
      mbarrier_init(&shared.empty[i], C::Consumers / 32);
    }
    mbarrier_init_fence();
  }
  fill_tile_table<C::T::Tokens>(shared.table, p);  // ends in a barrier
  const int units = unit_count(shared.table, p);
  if (threadIdx.x >= C::Consumers) {
    if constexpr (C::MovesRegisters) registers_decrease<88>();
    Producer<C>(p, shared, smem).run(units, early);
  } else {
    if (early) await_previous_kernel();
    if constexpr (C::MovesRegisters) registers_increase<208>();
    Consumer<C>(p, shared, smem).run(units);
  }
#endif
}

}  // namespace millrace::kernels::cuda
