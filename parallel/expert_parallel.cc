#include "parallel/expert_parallel.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/check.h"
#include "parallel/expert_buffers.h"

namespace millrace::parallel {

namespace {

struct PlannedBytes {
  std::size_t records_out, records_in, rows_out, rows_in, scratch;
};

PlannedBytes plan_bytes(const ExchangeShape& s, std::size_t record_bytes) {
  if (s.lanes == 1) return {};
  const std::size_t records = s.lanes * s.max_tokens * record_bytes;
  const std::size_t row = s.hidden * sizeof(float);
  const std::size_t gathered = s.all_gather ? s.lanes * s.max_tokens * s.top_k * row : 0;
  return {records, records, std::max(ExpertExchange::max_rows(s) * row, gathered),
          s.max_tokens * s.top_k * row, gathered};
}

}  // namespace

ExpertExchange::RecordLayout ExpertExchange::record_layout(const ExchangeShape& shape) {
  const std::size_t ids_offset = shape.hidden * sizeof(float);
  const std::size_t bytes = ids_offset + shape.top_k * sizeof(std::int32_t);
  return {ids_offset, (bytes + 15) / 16 * 16};
}

std::int64_t ExpertExchange::max_rows(const ExchangeShape& shape) {
  return shape.lanes * shape.max_tokens * std::min(shape.top_k, shape.slots);
}

std::size_t ExpertExchange::planned_bytes(const ExchangeShape& shape) {
  const PlannedBytes plan = plan_bytes(shape, record_layout(shape).bytes);
  const std::size_t indices = max_rows(shape) * 5 * sizeof(std::int32_t) +
                              shape.max_tokens * shape.top_k * 2 * sizeof(std::int32_t) +
                              (2 * shape.slots + 1 + 8 * shape.lanes) * sizeof(std::int64_t);
  return plan.records_out + plan.records_in + plan.rows_out + plan.rows_in + plan.scratch + indices;
}

ExpertExchange::ExpertExchange(Communicator& stage, const ExchangeShape& shape,
                               kernels::CombineOp* combine_op)
    : stage_(&stage), shape_(shape), combine_(combine_op), record_(record_layout(shape)) {
  CHECK(shape.lanes == stage.size() && shape.max_tokens > 0 && shape.hidden > 0 &&
            shape.top_k > 0 && shape.top_k <= shape.experts && shape.slots > 0 &&
            shape.slots * shape.lanes >= shape.experts && combine_op != nullptr,
        "lanes={} of {} max_tokens={} D={} K={} E={} slots={}", shape.lanes, stage.size(),
        shape.max_tokens, shape.hidden, shape.top_k, shape.experts, shape.slots);
  CHECK(shape.lanes * shape.max_tokens * shape.top_k <= INT32_MAX, "lanes={} max_tokens={} K={}",
        shape.lanes, shape.max_tokens, shape.top_k);
  const PlannedBytes plan = plan_bytes(shape, record_.bytes);
  const std::size_t lanes = shape.lanes, rows = max_rows(shape);
  b_ = std::make_unique<Buffers>();
  b_->records_out = LazyBuffer(plan.records_out);
  b_->records_in = LazyBuffer(plan.records_in);
  b_->rows_out = LazyBuffer(plan.rows_out);
  b_->rows_in = LazyBuffer(plan.rows_in);
  b_->out_ranges.resize(lanes);
  b_->in_ranges.resize(lanes);
  b_->out_counts.resize(lanes);
  b_->in_counts.resize(lanes);
  b_->pairs_out.resize(lanes);
  b_->pairs_in.resize(lanes);
  b_->pair_lane.resize(shape.max_tokens * shape.top_k);
  b_->rows_of.resize(shape.max_tokens * shape.top_k);
  for (auto* index :
       {&b_->pair_record, &b_->pair_slot, &b_->pair_output, &b_->pair_row, &b_->x_rows}) {
    index->resize(rows);
  }
  b_->offsets.resize(shape.slots + 1);
  b_->cursors.resize(std::max<std::size_t>(shape.slots, lanes));
}

ExpertExchange::~ExpertExchange() = default;

void ExpertExchange::check_arguments(DispatchPath path, std::span<const ExpertHome> homes,
                                     kernels::MatrixView<const float> x,
                                     kernels::MatrixView<const std::int32_t> ids,
                                     std::int64_t bucket) const {
  CHECK(!b_->dispatched, "dispatch twice without combine");
  CHECK(path != DispatchPath::kLocal || shape_.lanes == 1, "kLocal with {} lanes", shape_.lanes);
  CHECK(path != DispatchPath::kAllGather || shape_.all_gather, "no buffers for kAllGather");
  CHECK(static_cast<std::int64_t>(homes.size()) == shape_.experts, "{} homes, E={}", homes.size(),
        shape_.experts);
  CHECK(x.cols() == shape_.hidden && ids.cols() == shape_.top_k && ids.rows() == x.rows() &&
            x.rows() <= shape_.max_tokens,
        "x=[{}, {}] ids=[{}, {}] max_tokens={} D={} K={}", x.rows(), x.cols(), ids.rows(),
        ids.cols(), shape_.max_tokens, shape_.hidden, shape_.top_k);
  const bool uses_bucket = path == DispatchPath::kAllToAllFixed || path == DispatchPath::kAllGather;
  CHECK(!uses_bucket || (x.rows() <= bucket && bucket <= shape_.max_tokens),
        "T={} bucket={} max_tokens={}", x.rows(), bucket, shape_.max_tokens);
  for (std::int64_t t = 0; t < ids.rows(); ++t) {
    const std::int32_t* row = ids.row(t);
    for (std::int64_t k = 0; k < shape_.top_k; ++k) {
      CHECK(row[k] > (k == 0 ? -1 : row[k - 1]) && row[k] < shape_.experts,
            "ids[{}, {}]={} E={}: ids are ascending", t, k, row[k], shape_.experts);
    }
  }
}

ExpertExchange::Received ExpertExchange::dispatch(DispatchPath path,
                                                  std::span<const ExpertHome> homes,
                                                  kernels::MatrixView<const float> x,
                                                  kernels::MatrixView<const std::int32_t> ids,
                                                  std::int64_t bucket) {
  check_arguments(path, homes, x, ids, bucket);
  b_->path = path;
  b_->tokens = x.rows();
  b_->bucket = bucket;
  b_->pairs = 0;
  std::fill(b_->pairs_in.begin(), b_->pairs_in.end(), 0);
  std::fill(b_->offsets.begin(), b_->offsets.end(), 0);
  if (shape_.lanes == 1) {
    index_local(homes, ids);
  } else {
    plan_routes(homes, ids);
    if (path == DispatchPath::kAllToAllFixed) exchange_fixed(x, ids, bucket);
    if (path == DispatchPath::kAllToAllExact) exchange_exact(x, ids);
    if (path == DispatchPath::kAllGather) gather_all(x, ids, bucket);
    index_received(homes);
  }
  group_rows();
  b_->dispatched = true;
  const std::span<const std::int32_t> x_rows(b_->x_rows.data(), b_->pairs);
  if (shape_.lanes == 1) return {x, x_rows, b_->offsets};
  const auto stride = static_cast<std::int64_t>(record_.bytes / sizeof(float));
  return {kernels::matrix<const float>(b_->records_in.floats(), shape_.lanes * shape_.max_tokens,
                                       shape_.hidden, stride),
          x_rows, b_->offsets};
}

void ExpertExchange::index_local(std::span<const ExpertHome> homes,
                                 kernels::MatrixView<const std::int32_t> ids) {
  for (std::int64_t t = 0; t < ids.rows(); ++t) count_record(0, t, ids.row(t), homes);
}

void ExpertExchange::index_received(std::span<const ExpertHome> homes) {
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    const std::size_t first = b_->in_ranges[lane].offset / record_.bytes;
    for (std::size_t i = 0; i < b_->in_counts[lane]; ++i) {
      const std::byte* record = b_->records_in.data() + (first + i) * record_.bytes;
      const auto* ids = reinterpret_cast<const std::int32_t*>(record + record_.ids_offset);
      for (std::int64_t k = 0; k < shape_.top_k; ++k) {
        if (ids[k] <= (k == 0 ? -1 : ids[k - 1]) || ids[k] >= shape_.experts) {
          throw CommError("dispatch", lane, stage_->options().deadline,
                          fmt::format("token {} names expert {} of {}", i, ids[k], shape_.experts));
        }
      }
      count_record(lane, static_cast<std::int64_t>(first + i), ids, homes);
    }
  }
}

// Notes the pairs of one record that this lane's experts compute.
void ExpertExchange::count_record(int source, std::int64_t row, const std::int32_t* ids,
                                  std::span<const ExpertHome> homes) {
  const std::int64_t first_row = b_->in_ranges[source].offset / record_.bytes;
  for (std::int64_t k = 0; k < shape_.top_k; ++k) {
    const ExpertHome home = homes[ids[k]];
    if (home.lane != stage_->rank()) continue;
    const std::int64_t pair = b_->pairs++;
    b_->pair_record[pair] = static_cast<std::int32_t>(row);
    b_->pair_slot[pair] = home.slot;
    b_->pair_output[pair] =
        static_cast<std::int32_t>((source * b_->bucket + row - first_row) * shape_.top_k + k);
    ++b_->pairs_in[source];
    ++b_->offsets[home.slot + 1];
  }
}

// A stable counting sort by slot, so rows of one expert keep the order (source lane, token).
void ExpertExchange::group_rows() {
  for (std::int64_t slot = 0; slot < shape_.slots; ++slot) {
    b_->offsets[slot + 1] += b_->offsets[slot];
    b_->cursors[slot] = b_->offsets[slot];
  }
  for (std::int64_t pair = 0; pair < b_->pairs; ++pair) {
    const std::int64_t row = b_->cursors[b_->pair_slot[pair]]++;
    b_->pair_row[pair] = static_cast<std::int32_t>(row);
    b_->x_rows[row] = b_->pair_record[pair];
  }
}

void ExpertExchange::combine(const kernels::Context& context, kernels::MatrixView<const float> y,
                             kernels::MatrixView<const float> weights,
                             kernels::Accumulate accumulate, kernels::MatrixView<float> out) {
  CHECK(b_->dispatched, "combine without dispatch");
  CHECK(y.rows() == b_->pairs && y.cols() == shape_.hidden && out.rows() == b_->tokens &&
            weights.rows() == b_->tokens && weights.cols() == shape_.top_k,
        "y=[{}, {}] R={} out={} weights=[{}, {}] T={}", y.rows(), y.cols(), b_->pairs, out.rows(),
        weights.rows(), weights.cols(), b_->tokens);
  b_->dispatched = false;
  kernels::MatrixView<const float> rows = y;
  const std::int32_t* rows_of = b_->rows_of.data();
  if (shape_.lanes == 1) {
    rows_of = b_->pair_row.data();  // pairs are in (token, k) order and none is missing
  } else {
    if (b_->path == DispatchPath::kAllGather) {
      return_by_reduce_scatter(y);
    } else {
      return_rows(y);
    }
    rows = kernels::matrix<const float>(b_->rows_in.floats(), shape_.max_tokens * shape_.top_k,
                                        shape_.hidden);
  }
  combine_(context, {.y = rows,
                     .rows = kernels::matrix(rows_of, b_->tokens, shape_.top_k),
                     .weights = weights,
                     .accumulate = accumulate,
                     .out = out});
}

}  // namespace millrace::parallel
