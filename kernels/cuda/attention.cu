#include "kernels/cuda/attention.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/attention_block.cuh"
#include "kernels/cuda/check.h"

namespace millrace::kernels::cuda {
namespace {

// ---- prefill: a block for each tile of a chunk and KV head ------------------------------------

inline constexpr int kPrefillWarps = 4;
inline constexpr int kPrefillBlocksPerSm = 2;

template <class F>
using PrefillBlock =
    AttentionBlock<F, prefill_rows(F::kHeadDim) / (16 * kPrefillWarps), 2, kPrefillWarps>;

// Two blocks on a multiprocessor: one's softmax runs beside the other's products.
template <class F>
__global__ void __launch_bounds__(32 * kPrefillWarps, kPrefillBlocksPerSm)
    attention_prefill_kernel(const __grid_constant__ AttentionParams p) {
  await_previous_kernel();
  MILLRACE_DYNAMIC_SMEM(smem);
  const int index = static_cast<int>(blockIdx.x) / p.source.kv_heads;
  if (index >= p.lists.counts->prefill) return;
  const AttentionItem item = p.lists.prefill[index];
  PrefillBlock<F> block(p, smem);
  block.run(item, static_cast<int>(blockIdx.x) % p.source.kv_heads, false);
}

// ---- decode: a warp for each row group, range and KV head -------------------------------------

template <class F>
using DecodeBlock = AttentionBlock<F, 1, 1, 1>;
static_assert(DecodeBlock<KvFormat<64, KvType::kBf16>>::kWarpRows == kDecodeRows);

// Decode blocks that fit a multiprocessor's shared memory (228 KiB on Hopper and Blackwell, of
// which the system takes 1 KiB for each block) and its registers: two warps on each of the four
// schedulers may have 255 for a thread.
template <class F>
constexpr int decode_blocks_per_sm() {
  constexpr int kFit = 228 * 1024 / (DecodeBlock<F>::kSmemBytes + 1024);
  return kFit < 8 ? kFit : 8;
}

__device__ void write_zeros(const AttentionParams& p, const AttentionItem& item, int g,
                            int head_dim) {
  const int length = (head_dim << p.group_shift) / 4;  // of a token, in units of 8 bytes
  __nv_bfloat16* const first = p.out + (static_cast<std::int64_t>(g) << p.group_shift) * head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < item.tokens * length; i += 32) {
    __nv_bfloat16* const out = first + (item.row + i / length) * p.out_stride;
    reinterpret_cast<uint2*>(out)[i % length] = make_uint2(0, 0);
  }
}

// True for the last of an item's ranges to arrive; the others' results can be read from then on.
__device__ bool arrives_last(const AttentionParams& p, const AttentionItem& item, int g) {
  std::uint32_t* const ticket = p.lists.tickets + item.ticket * p.source.kv_heads + g;
  std::uint32_t arrived = 0;
  __syncwarp();
  if (threadIdx.x == 0) {
    arrived = atomic_ticket(ticket) + 1;
    if (arrived == static_cast<std::uint32_t>(item.ranges)) *ticket = 0;
  }
  arrived = __shfl_sync(kAllLanes, arrived, 0);
  __syncwarp();
  return arrived == static_cast<std::uint32_t>(item.ranges);
}

// Eight components of one row, folded over the ranges so far.
struct RowFold {
  MaxSum total;
  float values[8];

  // `part`: the values of the next range, and after them, at `state`, its maximum and sum.
  __device__ __forceinline__ void add(const float* part, const float* state, bool first,
                                      float scale) {
    const float4 a = reinterpret_cast<const float4*>(part)[0];
    const float4 b = reinterpret_cast<const float4*>(part)[1];
    const float next[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    const MaxSum range = {state[0], state[1]};
    FoldWeights w{};
    if (first) {
      total = range;
    } else {
      w = fold(total, range, scale);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] = first ? next[e] : fold_value(values[e], next[e], w);
  }

  __device__ __forceinline__ void store(__nv_bfloat16* out, float v_scale) const {
    const float inverse = __fdiv_rn(v_scale, total.sum);
    std::uint32_t pairs[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      pairs[e] = f32x2_to_bf16x2(finish_value(values[2 * e], inverse),
                                 finish_value(values[2 * e + 1], inverse));
    }
    reinterpret_cast<uint2*>(out)[0] = make_uint2(pairs[0], pairs[1]);
    reinterpret_cast<uint2*>(out)[1] = make_uint2(pairs[2], pairs[3]);
  }
};

// An item's ranges in ascending order, as many at a time as shared memory holds: they come from L2,
// and one by one their latency would add up.
template <class F>
struct RangeMerge {
  static constexpr int kRowFloats = partial_floats(F::kHeadDim);
  static constexpr int kRowPieces = F::kHeadDim / 8;  // of 8 components
  static constexpr int kPieces = kDecodeRows * kRowPieces / 32;
  static constexpr int kFit = DecodeBlock<F>::kSmemBytes / (kDecodeRows * kRowFloats * 4);

  const AttentionParams& p;
  const AttentionItem& item;
  int g;
  float* smem;  // [ranges, rows, kRowFloats]
  int rows;

  __device__ std::int64_t head_of(int row) const {
    return (g << p.group_shift) + (row & ((1 << p.group_shift) - 1));
  }

  __device__ void copy(int begin, int count) const {
    constexpr int kChunks = kRowFloats / 4;
    for (int i = static_cast<int>(threadIdx.x); i < count * rows * kChunks; i += 32) {
      const int range_row = i / kChunks;
      const int row = range_row % rows;
      const int range = begin + range_row / rows;
      const std::int64_t unit = item.unit + range * item.tokens + (row >> p.group_shift);
      cp_async_16(smem + i * 4, p.lists.partials + (unit * p.heads + head_of(row)) * kRowFloats +
                                    i % kChunks * 4);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
  }

  __device__ void run() const {
    RowFold folds[kPieces];
#pragma unroll 1
    for (int begin = 0; begin < item.ranges; begin += kFit) {
      const int count = min(kFit, item.ranges - begin);
      copy(begin, count);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int piece = i * 32 + static_cast<int>(threadIdx.x);
        const int row = piece / kRowPieces;
        if (row >= rows) continue;
        const float* at = smem + row * kRowFloats;
#pragma unroll 2
        for (int r = 0; r < count; ++r, at += rows * kRowFloats) {
          folds[i].add(at + piece % kRowPieces * 8, at + F::kHeadDim, begin + r == 0, p.scale);
        }
      }
      __syncwarp();  // read, before the next ones come
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * 32 + static_cast<int>(threadIdx.x);
      const int row = piece / kRowPieces;
      if (row >= rows) continue;
      folds[i].store(p.out + (item.row + (row >> p.group_shift)) * p.out_stride +
                         head_of(row) * F::kHeadDim + piece % kRowPieces * 8,
                     p.v_scale);
    }
  }
};

template <class F>
__global__ void __launch_bounds__(32, decode_blocks_per_sm<F>())
    attention_decode_kernel(const __grid_constant__ AttentionParams p) {
  await_previous_kernel();
  MILLRACE_DYNAMIC_SMEM(smem);
  const int count = p.lists.counts->decode * p.source.kv_heads;
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    const AttentionItem item = p.lists.decode[i / p.source.kv_heads];
    const int g = i % p.source.kv_heads;
    if (item.sequence < 0) {
      write_zeros(p, item, g, F::kHeadDim);
      continue;
    }
    const bool split = item.range != kAllRanges;
    DecodeBlock<F> block(p, smem);
    block.run(item, g, split);
    if (split && arrives_last(p, item, g)) {
      RangeMerge<F>{p, item, g, reinterpret_cast<float*>(smem), item.tokens << p.group_shift}.run();
    }
  }
}

// ---- launch -----------------------------------------------------------------------------------

template <class F>
void start(StreamRef stream, const AttentionWorkspace& w, const AttentionTokens& tokens,
           const AttentionParams& p) {
  const int g = w.shape.kv_heads;
  if (tokens.batch == AttentionBatch::kMixed) {
    const auto blocks = static_cast<unsigned>(max_prefill_items(w, tokens.rows) * g);
    launch(attention_prefill_kernel<F>,
           {dim3(blocks), dim3(PrefillBlock<F>::kThreads), PrefillBlock<F>::kSmemBytes,
            kPrefillBlocksPerSm},
           stream, p);
  }
  const int blocks = std::min(max_decode_items(w, tokens.rows) * g,
                              current_sm_count() * decode_blocks_per_sm<F>());
  launch(attention_decode_kernel<F>,
         {dim3(static_cast<unsigned>(blocks)), dim3(32), DecodeBlock<F>::kSmemBytes,
          decode_blocks_per_sm<F>()},
         stream, p);
}

template <int kHeadDim>
void start(StreamRef stream, const AttentionWorkspace& w, const AttentionTokens& tokens,
           KvType type, const AttentionParams& p) {
  if (type == KvType::kBf16) {
    start<KvFormat<kHeadDim, KvType::kBf16>>(stream, w, tokens, p);
  } else {
    start<KvFormat<kHeadDim, KvType::kFp8E4M3>>(stream, w, tokens, p);
  }
}

void check_args(const AttentionWorkspace& w, const AttentionTokens& tokens,
                const AttentionArgs& a) {
  const auto wrong = [&](const auto& t) {
    return t.shape[0] != tokens.rows || t.shape[1] != w.shape.heads ||
           t.shape[2] != w.shape.head_dim || t.row_stride % 4 != 0 ||
           reinterpret_cast<std::uintptr_t>(t.data) % 8 != 0;
  };
  CHECK(!wrong(a.q) && !wrong(a.out),
        "q=[{}, {}, {}] stride {} out=[{}, {}, {}] stride {} rows={} H={} head_dim={}",
        a.q.shape[0], a.q.shape[1], a.q.shape[2], a.q.row_stride, a.out.shape[0], a.out.shape[1],
        a.out.shape[2], a.out.row_stride, tokens.rows, w.shape.heads, w.shape.head_dim);
  const std::int64_t page_rows =
      std::int64_t{a.pages.num_blocks} * a.pages.kv_heads * a.pages.block_size;
  CHECK(a.pages.kv_heads == w.shape.kv_heads && a.pages.head_dim == w.shape.head_dim &&
            a.pages.block_size > 0 && a.pages.block_size % kPageGroup == 0 &&
            page_rows < std::int64_t{1} << 31,
        "pages: G={} head_dim={} block_size={} num_blocks={}, wanted G={} head_dim={}",
        a.pages.kv_heads, a.pages.head_dim, a.pages.block_size, a.pages.num_blocks,
        w.shape.kv_heads, w.shape.head_dim);
  CHECK(w.data != nullptr && a.scale > 0 && a.pages.k_scale > 0 && a.max_blocks > 0,
        "scale={} k_scale={} max_blocks={}", a.scale, a.pages.k_scale, a.max_blocks);
}

}  // namespace

void attention(StreamRef stream, const AttentionWorkspace& w, const AttentionTokens& tokens,
               const AttentionArgs& a) {
  check_workspace(w, tokens);
  if (tokens.rows == 0) return;
  check_args(w, tokens, a);
  constexpr float kLog2E = 1.44269504F;
  AttentionParams p{};
  p.source = {static_cast<const unsigned char*>(a.pages.k),
              static_cast<const unsigned char*>(a.pages.v),
              a.block_tables,
              a.max_blocks,
              a.pages.block_size,
              a.pages.kv_heads};
  p.lists = attention_lists(w);
  p.q = device_cast(a.q.data);
  p.q_stride = a.q.row_stride;
  p.out = device_cast(a.out.data);
  p.out_stride = a.out.row_stride;
  p.heads = w.shape.heads;
  p.group_shift = std::countr_zero(static_cast<unsigned>(w.shape.heads / w.shape.kv_heads));
  const bool fp8 = a.pages.type == KvType::kFp8E4M3;
  p.scale = a.scale * (fp8 ? a.pages.k_scale : 1.0F) * kLog2E;
  p.v_scale = fp8 ? a.pages.v_scale : 1.0F;
  if (w.shape.head_dim == 32) return start<32>(stream, w, tokens, a.pages.type, p);
  if (w.shape.head_dim == 64) return start<64>(stream, w, tokens, a.pages.type, p);
  start<128>(stream, w, tokens, a.pages.type, p);
}

}  // namespace millrace::kernels::cuda
