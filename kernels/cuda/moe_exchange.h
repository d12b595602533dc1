// The device's half of the exchange between the lanes of a stage (parallel/expert_parallel.h): what
// a lane writes before a collective and what it makes of what arrives. The collectives themselves
// are the communicator's.
//
//   source lane                                      expert lane
//   route_tokens: which record, which return row
//   pack_records: token -> record             --->   moe_permute over the records' ids
//                                                    grouped GEMMs over the records' hidden rows
//   combine over the returned rows            <---   pack_returns: expert outputs -> return rows
//
// A record is a token's copy: its hidden row in bf16 and its K expert ids, so a token travels at
// most once to a lane. Expert outputs come back unweighted and unsummed; combine adds them in
// ascending k. Hence every path gives the same bits for any number of lanes and any placement
// (contract C1).
//
// Three layouts of messages:
//   kFixed   decode: a slot of `bucket` records for every lane, the unused ones with ids kNoExpert;
//            outputs return in slots of bucket * K rows, row (record, k). No counts, nothing to
//            read on the host, capturable.
//   kExact   prefill: records lie one behind the other, by lane; counts[lane] tells how many, and
//   how
//            many output rows come back. Return rows are by expert lane, inside a lane in the order
//            of (token, k).
//   kGather  all lanes see the `bucket` records of every lane (all-gather); return row (lane,
//   token, k)
//            is the expert's output on the one lane that has it and -0.0 on the others, the only
//            value that changes no bit of a sum (reduce-scatter).
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// D bf16 values, K ids, zeros up to a multiple of 16 bytes.
struct RecordLayout {
  std::int64_t hidden = 0;  // D, a multiple of 8
  std::int64_t top_k = 0;   // K, at most kMaxExchangeTopK

  constexpr std::int64_t ids_offset() const { return hidden * 2; }
  constexpr std::int64_t bytes() const { return (hidden * 2 + top_k * 4 + 15) / 16 * 16; }

  // Records as the ops of the expert lane read them.
  MatrixView<const BFloat16> hidden_rows(const void* records, std::int64_t count) const {
    return matrix(static_cast<const BFloat16*>(records), count, hidden, bytes() / 2);
  }
  MatrixView<const std::int32_t> id_rows(const void* records, std::int64_t count) const {
    const auto* first = static_cast<const std::byte*>(records) + ids_offset();
    return matrix(reinterpret_cast<const std::int32_t*>(first), count, top_k, bytes() / 4);
  }
};

inline constexpr std::int64_t kMaxExchangeTopK = 8;

enum class ExchangeLayout : std::uint8_t { kFixed, kExact, kGather };

// What one lane sends another, in kExact: exchanged first, one entry per lane.
struct LaneCounts {
  std::int32_t records = 0;
  std::int32_t rows = 0;  // of expert outputs that come back
};

// In record_tokens: a record that holds no token; and a place beyond the last record, kExact only.
inline constexpr std::int32_t kEmptyRecord = -1;
inline constexpr std::int32_t kNoRecord = -2;

// All pointers are device memory.
struct RouteTokensArgs {
  ExchangeLayout layout = ExchangeLayout::kFixed;
  MatrixView<const std::int32_t> ids;            // [T, K]: distinct; negative in padding
  const std::int32_t* lane_of_expert = nullptr;  // [E], each in [0, lanes)
  std::int32_t experts = 0;
  std::int32_t lanes = 0;
  std::int64_t bucket = 0;  // kFixed, kGather: at least T
  // kFixed [lanes * bucket], kExact [T * min(K, lanes)], not for kGather: token of each record.
  std::int32_t* record_tokens = nullptr;
  LaneCounts* counts = nullptr;   // [lanes], kExact only
  MatrixView<std::int32_t> rows;  // [T, K] contiguous: return row of each pair, -1 in padding
};
// Records of a lane are in the order of tokens. Ids at or above E count as padding.
void route_tokens(StreamRef stream, const RouteTokensArgs& args);

struct PackRecordsArgs {
  RecordLayout layout;
  MatrixView<const BFloat16> x;        // [T, D], rows aligned to 16 bytes
  MatrixView<const std::int32_t> ids;  // [T, K]
  // [count], or null: record i is token i, and empty from T on (kGather).
  const std::int32_t* record_tokens = nullptr;
  std::int64_t count = 0;   // records in `records`
  void* records = nullptr;  // count * layout.bytes(), 16-byte aligned
};
// An empty record gets ids only; what its hidden row held before stays.
void pack_records(StreamRef stream, const PackRecordsArgs& args);

struct PackReturnsArgs {
  MatrixView<const BFloat16> y;  // [R, D]: expert outputs, rows aligned to 16 bytes
  // [N, K] contiguous: row of y for the k-th id of each of N records, negative where another lane
  // has the expert: moe_permute's `rows`.
  MatrixView<const std::int32_t> rows;
  // [N, K] contiguous, or null for return row = record * K + k (kFixed, kGather). In kExact: the
  // `rows` of a second moe_permute with a single slot for all experts of this lane, which numbers
  // the pairs in the order of (source lane, token, k).
  const std::int32_t* places = nullptr;
  bool fill_missing = false;  // kGather: -0.0 where another lane has the expert
  MatrixView<BFloat16> out;   // [return rows, D], rows aligned to 16 bytes
};
void pack_returns(StreamRef stream, const PackReturnsArgs& args);

}  // namespace millrace::kernels::cuda
