// What ExpertExchange sends: tokens out (three paths), expert outputs back (two).
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "parallel/expert_buffers.h"
#include "parallel/expert_parallel.h"

namespace millrace::parallel {

namespace {

constexpr std::int32_t kNoId = -1;  // first id of a fixed slot's record that holds no token

}  // namespace

// Where my pairs go, how many records each lane gets, and where their outputs will come back:
// rows_in holds the outputs by expert lane, inside a lane in the order of the pairs.
void ExpertExchange::plan_routes(std::span<const ExpertHome> homes,
                                 kernels::MatrixView<const std::int32_t> ids) {
  std::fill(b_->pairs_out.begin(), b_->pairs_out.end(), 0);
  std::fill(b_->out_counts.begin(), b_->out_counts.end(), 0);
  std::fill(b_->cursors.begin(), b_->cursors.end(), -1);  // last token seen per lane
  const std::int64_t top_k = shape_.top_k;
  for (std::int64_t t = 0; t < ids.rows(); ++t) {
    for (std::int64_t k = 0; k < top_k; ++k) {
      const std::int32_t lane = homes[ids.row(t)[k]].lane;
      b_->pair_lane[t * top_k + k] = lane;
      ++b_->pairs_out[lane];
      if (b_->cursors[lane] != t) ++b_->out_counts[lane];
      b_->cursors[lane] = t;
    }
  }
  std::int64_t begin = 0;
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    b_->cursors[lane] = begin;
    begin += b_->pairs_out[lane];
  }
  for (std::int64_t pair = 0; pair < ids.rows() * top_k; ++pair) {
    const bool gathered = b_->path == DispatchPath::kAllGather;
    b_->rows_of[pair] =
        static_cast<std::int32_t>(gathered ? pair : b_->cursors[b_->pair_lane[pair]]++);
  }
}

void ExpertExchange::write_record(std::byte* record, const float* x,
                                  const std::int32_t* ids) const {
  std::memcpy(record, x, record_.ids_offset);
  std::memcpy(record + record_.ids_offset, ids, shape_.top_k * sizeof(std::int32_t));
}

// Writes my tokens to out_ranges; my own lane's records go straight to where they would arrive.
void ExpertExchange::pack_per_lane(kernels::MatrixView<const float> x,
                                   kernels::MatrixView<const std::int32_t> ids) {
  const int me = stage_->rank();
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    std::byte* next = lane == me ? b_->records_in.data() + b_->in_ranges[me].offset
                                 : b_->records_out.data() + b_->out_ranges[lane].offset;
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      const std::int32_t* lanes = &b_->pair_lane[t * shape_.top_k];
      if (std::find(lanes, lanes + shape_.top_k, lane) == lanes + shape_.top_k) continue;
      write_record(next, x.row(t), ids.row(t));
      next += record_.bytes;
    }
    const bool fixed = b_->path == DispatchPath::kAllToAllFixed;
    if (fixed && static_cast<std::int64_t>(b_->out_counts[lane]) < b_->bucket) {
      std::memcpy(next + record_.ids_offset, &kNoId, sizeof(kNoId));
    }
  }
  b_->out_ranges[me].bytes = b_->in_ranges[me].bytes = 0;
}

// Records of a fixed slot that starts at `offset`: up to the first that holds no token.
std::uint64_t ExpertExchange::count_records(std::size_t offset) {
  std::int64_t count = 0;
  for (; count < b_->bucket; ++count) {
    std::int32_t first = 0;
    const std::size_t record = offset + count * record_.bytes;
    std::memcpy(&first, b_->records_in.data() + record + record_.ids_offset, sizeof(first));
    if (first == kNoId) break;
  }
  return count;
}

void ExpertExchange::exchange_fixed(kernels::MatrixView<const float> x,
                                    kernels::MatrixView<const std::int32_t> ids,
                                    std::int64_t bucket) {
  const std::size_t slot_bytes = bucket * record_.bytes;
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    b_->out_ranges[lane] = b_->in_ranges[lane] = {lane * slot_bytes, slot_bytes};
  }
  pack_per_lane(x, ids);
  stage_->all_to_all_v(b_->records_out.span(), b_->out_ranges, b_->records_in.span(),
                       b_->in_ranges);
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    b_->in_counts[lane] = count_records(lane * slot_bytes);
  }
}

void ExpertExchange::exchange_exact(kernels::MatrixView<const float> x,
                                    kernels::MatrixView<const std::int32_t> ids) {
  stage_->exchange_counts(b_->out_counts, b_->in_counts);
  std::size_t out = 0, in = 0;
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    if (b_->in_counts[lane] > static_cast<std::uint64_t>(shape_.max_tokens)) {
      throw CommError("dispatch", lane, stage_->options().deadline,
                      fmt::format("{} tokens announced, at most {} fit", b_->in_counts[lane],
                                  shape_.max_tokens));
    }
    b_->out_ranges[lane] = {out, b_->out_counts[lane] * record_.bytes};
    b_->in_ranges[lane] = {in, b_->in_counts[lane] * record_.bytes};
    out += b_->out_ranges[lane].bytes;
    in += b_->in_ranges[lane].bytes;
  }
  pack_per_lane(x, ids);
  stage_->all_to_all_v(b_->records_out.span(), b_->out_ranges, b_->records_in.span(),
                       b_->in_ranges);
}

void ExpertExchange::gather_all(kernels::MatrixView<const float> x,
                                kernels::MatrixView<const std::int32_t> ids, std::int64_t bucket) {
  const std::size_t block = bucket * record_.bytes;
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    write_record(b_->records_out.data() + t * record_.bytes, x.row(t), ids.row(t));
  }
  if (x.rows() < bucket) {
    std::memcpy(b_->records_out.data() + x.rows() * record_.bytes + record_.ids_offset, &kNoId,
                sizeof(kNoId));
  }
  stage_->all_gather(b_->records_out.span().first(block), b_->records_in.span());
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    b_->in_ranges[lane].offset = lane * block;
    b_->in_counts[lane] = count_records(lane * block);
  }
}

// Both sides know the sizes: I know which pairs I sent where, and which I was sent.
void ExpertExchange::return_rows(kernels::MatrixView<const float> y) {
  const int me = stage_->rank();
  const std::size_t row_bytes = shape_.hidden * sizeof(float);
  std::size_t out = 0, in = 0;
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    b_->out_ranges[lane] = {out, b_->pairs_in[lane] * row_bytes};
    b_->in_ranges[lane] = {in, b_->pairs_out[lane] * row_bytes};
    out += b_->out_ranges[lane].bytes;
    in += b_->in_ranges[lane].bytes;
  }
  std::int64_t pair = 0;
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    std::byte* next = lane == me ? b_->rows_in.data() + b_->in_ranges[me].offset
                                 : b_->rows_out.data() + b_->out_ranges[lane].offset;
    for (std::int64_t i = 0; i < b_->pairs_in[lane]; ++i, ++pair, next += row_bytes) {
      std::memcpy(next, y.row(b_->pair_row[pair]), row_bytes);
    }
  }
  b_->out_ranges[me].bytes = b_->in_ranges[me].bytes = 0;
  stage_->all_to_all_v(b_->rows_out.span(), b_->out_ranges, b_->rows_in.span(), b_->in_ranges);
}

// Each pair is computed on exactly one lane; the others add -0.0, the only value that changes no
// bit of any float when added (+0.0 would turn an output of -0.0 into +0.0).
void ExpertExchange::return_by_reduce_scatter(kernels::MatrixView<const float> y) {
  const std::size_t block = b_->bucket * shape_.top_k * shape_.hidden;
  const std::span<float> all(b_->rows_out.floats(), block * shape_.lanes);
  std::fill(all.begin(), all.end(), -0.0f);
  for (std::int64_t pair = 0; pair < b_->pairs; ++pair) {
    std::memcpy(&all[static_cast<std::size_t>(b_->pair_output[pair]) * shape_.hidden],
                y.row(b_->pair_row[pair]), shape_.hidden * sizeof(float));
  }
  stage_->reduce_scatter_sum(all, {b_->rows_in.floats(), block});
}

}  // namespace millrace::parallel
