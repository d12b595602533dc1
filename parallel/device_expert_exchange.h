// Dispatch and combine on devices (parallel/expert_parallel.h has the idea, the paths and the
// order): tokens in bf16 travel to the lanes that own their experts, and each (token, expert)
// output row back, unweighted and unsummed. Hence all paths and any number of lanes give the same
// bits.
//
// Everything is in the order of one stream. kLocal, kAllToAllFixed and kAllGather only enqueue (as
// far as the communicator does) and depend on no count known to the host, so they can be captured;
// kAllToAllExact waits for the stream in dispatch, because the sizes of its messages are counts.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/moe_exchange.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"
#include "parallel/device_communicator.h"
#include "parallel/expert_parallel.h"
#include "parallel/expert_placement.h"

namespace millrace::parallel {

struct DeviceExchangeShape {
  std::int64_t max_tokens = 0;  // per lane and step, padding included; also the largest bucket
  std::int64_t hidden = 0;      // D, a multiple of 8
  std::int64_t top_k = 0;       // K
  std::int64_t experts = 0;     // E
  std::int64_t slots = 0;       // expert slots per lane
  int lanes = 1;
  std::int64_t fixed_bucket = 0;  // the largest bucket of kAllToAllFixed, at most max_tokens
  // Which other paths may be used with several lanes.
  bool exact = true;
  bool all_gather = true;
};

// Device memory and what a StagedCommunicator must hold.
struct DeviceExchangeBytes {
  std::size_t device = 0;
  std::size_t collective = 0;
};

class DeviceExpertExchange {
 public:
  using BFloat16 = kernels::cuda::BFloat16;

  // What this lane's experts work on, as kernels::cuda::GroupedGemmArgs takes it. Valid until the
  // next dispatch. All pointers are device memory.
  struct Received {
    kernels::MatrixView<const BFloat16> x;  // [rows, D]
    const std::int32_t* x_rows = nullptr;   // row of x of each grouped row
    const std::int32_t* offsets = nullptr;  // [slots + 1]
    std::int64_t max_rows = 0;              // offsets[slots] never exceeds it
  };

  // `stage`: the lanes, rank = lane; null with one lane. `homes[i]`: [E] of the stage's MoE layer
  // i. Allocates everything here.
  DeviceExpertExchange(DeviceCommunicator* stage, const DeviceExchangeShape& shape,
                       std::span<const std::span<const ExpertHome>> homes);
  ~DeviceExpertExchange();

  static DeviceExchangeBytes planned_bytes(const DeviceExchangeShape& shape, std::int64_t layers);
  // The largest number of grouped rows of a step of `tokens` rows on each lane.
  static std::int64_t max_rows(const DeviceExchangeShape& shape, std::int64_t tokens);

  struct Tokens {
    std::size_t layer = 0;                     // MoE layer of the stage
    DispatchPath path = DispatchPath::kLocal;  // the same on all lanes
    // The same on all lanes, at least every lane's T; 0 when no lane has any. kAllToAllExact does
    // not read it.
    std::int64_t bucket = 0;
    kernels::MatrixView<const BFloat16> x;  // [T, D]
    // [T, K] contiguous, ascending per row; negative in padding.
    kernels::MatrixView<const std::int32_t> ids;
    std::int32_t* offsets = nullptr;  // [slots + 1]: written, for Received
  };
  // Collective over the lanes, also with T = 0. Throws CommError, CudaError.
  Received dispatch(StreamRef stream, const Tokens& tokens);

  // y: [R, D], row r the output of grouped row r. hidden[t] += sum over k of weights[t, k] *
  // output. One combine follows each dispatch.
  void combine(StreamRef stream, kernels::MatrixView<const BFloat16> y,
               kernels::MatrixView<const float> weights, kernels::MatrixView<float> hidden);

 private:
  struct Buffers;
  struct Counts;

  static Buffers lay_out(const DeviceExchangeShape& shape, std::int64_t layers, std::byte* base,
                         std::size_t& bytes);
  void permute(StreamRef stream, const Tokens& tokens, kernels::MatrixView<const std::int32_t> ids);
  void route(StreamRef stream, const Tokens& tokens, kernels::cuda::ExchangeLayout layout);
  void pack(StreamRef stream, const Tokens& tokens, std::int64_t count, bool routed);
  Received received(const Tokens& tokens, std::int64_t records, std::int64_t rows) const;
  Received dispatch_fixed(StreamRef stream, const Tokens& tokens);
  Received dispatch_exact(StreamRef stream, const Tokens& tokens);
  Received dispatch_gather(StreamRef stream, const Tokens& tokens);
  void exchange_counts(StreamRef stream);
  void number_returns(StreamRef stream, kernels::MatrixView<const std::int32_t> ids,
                      std::size_t layer);
  void return_rows(StreamRef stream, kernels::MatrixView<const BFloat16> y);
  std::int64_t layer_offset(std::size_t layer) const;

  DeviceCommunicator* stage_;
  DeviceExchangeShape shape_;
  kernels::cuda::RecordLayout record_;
  kernels::cuda::DeviceBuffer memory_;
  std::unique_ptr<Buffers> b_;
  std::unique_ptr<Counts> counts_;  // of the exact path, on the host

  // Between dispatch and combine.
  DispatchPath path_ = DispatchPath::kLocal;
  std::int64_t bucket_ = 0;
  std::int64_t records_ = 0;  // that arrived
};

}  // namespace millrace::parallel
