// Dispatch and combine: tokens travel to the lanes that own their experts, and the outputs back.
//
//   received = exchange.dispatch(path, homes, x, ids, bucket);     // one call out
//   y = grouped GEMMs over received (kernels/grouped_gemm.h)
//   exchange.combine(context, y, weights, accumulate, out);        // one call back
//
// Every lane of the stage makes the same calls with the same path, homes and bucket (the step plan
// says so); T may differ per lane and may be 0. A token travels at most once to a lane; each
// (token, expert) output row travels back unweighted and unsummed, because the sum must have one
// order whatever the placement: k ascending, which is ascending expert id (kernels/combine.h, used
// here). Hence all paths, any number of lanes and any placement give the same bits (contract C1).
// Rows of one expert are ordered by (source lane, token).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/combine.h"
#include "kernels/tensor_view.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"

namespace millrace::parallel {

enum class DispatchPath : std::uint8_t {
  kLocal,          // one lane: no message and no copy
  kAllToAllFixed,  // decode: a slot of `bucket` records per peer; no counts
  kAllToAllExact,  // prefill: counts first, then exactly the records
  kAllGather,      // every lane sees every token; outputs come back by reduce-scatter
};

// Capacities, fixed at start.
struct ExchangeShape {
  std::int64_t max_tokens = 0;  // per lane and step; also the largest bucket
  std::int64_t hidden = 0;      // D
  std::int64_t top_k = 0;       // K
  std::int64_t experts = 0;     // E
  std::int64_t slots = 0;       // expert slots per lane (ExpertPlacement::slots_per_lane)
  int lanes = 1;
  bool all_gather = true;  // whether kAllGather may be used; it needs the largest buffers
};

class ExpertExchange {
 public:
  // What this lane's experts work on, in the form of kernels::GroupedGemmArgs: grouped row r is row
  // x_rows[r] of x, and slot s has the grouped rows [offsets[s], offsets[s + 1]). Valid until
  // combine returns; x is the exchange's memory, except that kLocal gives the caller's own x.
  struct Received {
    kernels::MatrixView<const float> x;     // [rows, D], strided
    std::span<const std::int32_t> x_rows;   // [R]
    std::span<const std::int64_t> offsets;  // [slots + 1]

    std::int64_t rows() const { return static_cast<std::int64_t>(x_rows.size()); }  // R
  };

  // `stage` has shape.lanes ranks (rank = lane) and must outlive this. combine_op: of the kernel
  // set in use (kernels/table.h). Allocates everything here.
  ExpertExchange(Communicator& stage, const ExchangeShape& shape, kernels::CombineOp* combine_op);
  ~ExpertExchange();

  // Bytes that the constructor reserves, and the communicator for kAllGather; pages that are never
  // used do not become resident.
  static std::size_t planned_bytes(const ExchangeShape& shape);
  // The largest R that dispatch can return: all tokens of all lanes choose this lane's experts.
  static std::int64_t max_rows(const ExchangeShape& shape);

  // x: [T, D]. ids: [T, K], ascending and distinct per token, in [0, E). homes: [E], the layer's
  // table. bucket: at least every lane's T, at most max_tokens; only kAllToAllFixed and kAllGather
  // read it. Throws CommError, also for a message that contradicts all this.
  Received dispatch(DispatchPath path, std::span<const ExpertHome> homes,
                    kernels::MatrixView<const float> x, kernels::MatrixView<const std::int32_t> ids,
                    std::int64_t bucket);

  // y: [R, D], row r the output of grouped row r. weights: [T, K] of this lane's tokens. out: [T,
  // D], not overlapping y. One combine follows each dispatch. Throws CommError.
  void combine(const kernels::Context& context, kernels::MatrixView<const float> y,
               kernels::MatrixView<const float> weights, kernels::Accumulate accumulate,
               kernels::MatrixView<float> out);

 private:
  struct Buffers;
  // A token's copy in a message: D floats, K ids, padding to 16 bytes.
  struct RecordLayout {
    std::size_t ids_offset;
    std::size_t bytes;
  };

  static RecordLayout record_layout(const ExchangeShape& shape);
  void check_arguments(DispatchPath path, std::span<const ExpertHome> homes,
                       kernels::MatrixView<const float> x,
                       kernels::MatrixView<const std::int32_t> ids, std::int64_t bucket) const;
  void plan_routes(std::span<const ExpertHome> homes, kernels::MatrixView<const std::int32_t> ids);
  void write_record(std::byte* record, const float* x, const std::int32_t* ids) const;
  void pack_per_lane(kernels::MatrixView<const float> x,
                     kernels::MatrixView<const std::int32_t> ids);
  std::uint64_t count_records(std::size_t offset);
  void exchange_fixed(kernels::MatrixView<const float> x,
                      kernels::MatrixView<const std::int32_t> ids, std::int64_t bucket);
  void exchange_exact(kernels::MatrixView<const float> x,
                      kernels::MatrixView<const std::int32_t> ids);
  void gather_all(kernels::MatrixView<const float> x, kernels::MatrixView<const std::int32_t> ids,
                  std::int64_t bucket);
  void index_local(std::span<const ExpertHome> homes, kernels::MatrixView<const std::int32_t> ids);
  void index_received(std::span<const ExpertHome> homes);
  void count_record(int source, std::int64_t row, const std::int32_t* ids,
                    std::span<const ExpertHome> homes);
  void group_rows();
  void return_rows(kernels::MatrixView<const float> y);
  void return_by_reduce_scatter(kernels::MatrixView<const float> y);

  Communicator* stage_;
  ExchangeShape shape_;
  kernels::CombineOp* combine_;
  RecordLayout record_;
  std::unique_ptr<Buffers> b_;
};

}  // namespace millrace::parallel
