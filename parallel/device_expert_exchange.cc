#include "parallel/device_expert_exchange.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/check.h"
#include "kernels/cuda/combine.h"
#include "kernels/cuda/moe_permute.h"

namespace millrace::parallel {

namespace cuda = kernels::cuda;

using cuda::BFloat16;
using cuda::ExchangeLayout;
using cuda::LaneCounts;

// Device memory; the same parts are used by every layer.
struct DeviceExpertExchange::Buffers {
  std::int32_t* slot_of_expert = nullptr;  // [layers, E]: on this lane, -1 elsewhere
  std::int32_t* lane_of_expert = nullptr;  // [layers, E]
  std::int32_t* one_slot = nullptr;        // [layers, E]: 0 on this lane, -1 elsewhere
  std::int32_t* rows = nullptr;            // [T, K]: where combine finds a pair's output
  std::int32_t* x_rows = nullptr;          // [R]
  std::int32_t* record_tokens = nullptr;   // [records out]
  std::int32_t* grouped_rows = nullptr;    // [records in, K]
  std::int32_t* places = nullptr;          // [records in, K]
  std::int32_t* place_offsets = nullptr;   // [2]
  std::int32_t* place_tokens = nullptr;    // [R]
  std::byte* records_out = nullptr;
  std::byte* records_in = nullptr;
  BFloat16* returns_out = nullptr;  // expert outputs on their way back
  BFloat16* returns_in = nullptr;
  LaneCounts* counts = nullptr;  // [2, lanes]: out, in
};

// The sizes of the exact path's messages.
struct DeviceExpertExchange::Counts {
  explicit Counts(std::size_t lanes)
      : pinned(2 * lanes * sizeof(LaneCounts)),
        records_out(lanes),
        records_in(lanes),
        rows_out(lanes),
        rows_in(lanes) {}

  cuda::PinnedBuffer pinned;
  std::vector<ByteRange> records_out, records_in, rows_out, rows_in;
};

namespace {

constexpr std::size_t kAlignment = 256;

// What the largest step of each path needs, in elements.
struct Capacity {
  explicit Capacity(const DeviceExchangeShape& s) {
    if (s.lanes == 1) return;
    const std::int64_t fixed = s.lanes * s.fixed_bucket;
    const std::int64_t all = s.lanes * s.max_tokens;
    records_out = fixed;
    records_in = fixed;
    returns_out = fixed * s.top_k;
    returns_in = fixed * s.top_k;
    if (s.exact) {
      records_out = std::max(records_out, s.max_tokens * std::min<std::int64_t>(s.top_k, s.lanes));
      records_in = std::max(records_in, all);
      returns_out = std::max(returns_out, all * std::min(s.top_k, s.slots));
      returns_in = std::max(returns_in, s.max_tokens * s.top_k);
    }
    if (s.all_gather) {
      records_out = std::max(records_out, s.max_tokens);
      records_in = std::max(records_in, all);
      returns_out = std::max(returns_out, all * s.top_k);
      returns_in = std::max(returns_in, s.max_tokens * s.top_k);
    }
  }

  std::int64_t records_out = 0, records_in = 0, returns_out = 0, returns_in = 0;
};

template <class T>
T* take(std::byte* base, std::size_t& used, std::int64_t count) {
  std::byte* at = base == nullptr ? nullptr : base + used;
  used += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  return reinterpret_cast<T*>(at);
}

// Ranges one behind the other.
void set_ranges(std::vector<ByteRange>& ranges, std::span<const LaneCounts> counts,
                std::int32_t LaneCounts::*field, std::int64_t bytes) {
  std::size_t offset = 0;
  for (std::size_t lane = 0; lane < counts.size(); ++lane) {
    ranges[lane] = {offset, static_cast<std::size_t>(counts[lane].*field * bytes)};
    offset += ranges[lane].bytes;
  }
}

std::int64_t sum(std::span<const LaneCounts> counts, std::int32_t LaneCounts::*field) {
  std::int64_t total = 0;
  for (const LaneCounts& c : counts) total += c.*field;
  return total;
}

}  // namespace

std::int64_t DeviceExpertExchange::max_rows(const DeviceExchangeShape& shape, std::int64_t tokens) {
  return shape.lanes * tokens * std::min(shape.top_k, shape.slots);
}

// With `base` null it only counts.
DeviceExpertExchange::Buffers DeviceExpertExchange::lay_out(const DeviceExchangeShape& s,
                                                            std::int64_t layers, std::byte* base,
                                                            std::size_t& used) {
  Buffers b;
  const auto indices = [&](std::int64_t count) { return take<std::int32_t>(base, used, count); };
  b.slot_of_expert = indices(layers * s.experts);
  b.rows = indices(s.max_tokens * s.top_k);
  b.x_rows = indices(max_rows(s, s.max_tokens));
  if (s.lanes == 1) return b;
  const Capacity most(s);
  const std::int64_t record_bytes = cuda::RecordLayout{s.hidden, s.top_k}.bytes();
  b.lane_of_expert = indices(layers * s.experts);
  b.record_tokens = indices(most.records_out);
  b.grouped_rows = indices(most.records_in * s.top_k);
  b.records_out = take<std::byte>(base, used, most.records_out * record_bytes);
  b.records_in = take<std::byte>(base, used, most.records_in * record_bytes);
  b.returns_out = take<BFloat16>(base, used, most.returns_out * s.hidden);
  b.returns_in = take<BFloat16>(base, used, most.returns_in * s.hidden);
  if (s.exact) {
    b.one_slot = indices(layers * s.experts);
    b.places = indices(most.records_in * s.top_k);
    b.place_offsets = indices(2);
    b.place_tokens = indices(max_rows(s, s.max_tokens));
    b.counts = take<LaneCounts>(base, used, 2 * s.lanes);
  }
  return b;
}

DeviceExchangeBytes DeviceExpertExchange::planned_bytes(const DeviceExchangeShape& s,
                                                        std::int64_t layers) {
  DeviceExchangeBytes bytes;
  lay_out(s, layers, nullptr, bytes.device);
  const Capacity most(s);
  const std::int64_t record_bytes = cuda::RecordLayout{s.hidden, s.top_k}.bytes();
  bytes.collective = static_cast<std::size_t>(
      std::max({most.records_out * record_bytes, most.records_in * record_bytes,
                most.returns_out * s.hidden * 2, most.returns_in * s.hidden * 2}));
  return bytes;
}

DeviceExpertExchange::DeviceExpertExchange(DeviceCommunicator* stage,
                                           const DeviceExchangeShape& shape,
                                           std::span<const std::span<const ExpertHome>> homes)
    : stage_(stage), shape_(shape), record_{shape.hidden, shape.top_k} {
  CHECK(shape.lanes == (stage == nullptr ? 1 : stage->size()) && shape.max_tokens > 0 &&
            shape.slots > 0 && shape.fixed_bucket <= shape.max_tokens,
        "lanes={} max_tokens={} slots={} fixed_bucket={}", shape.lanes, shape.max_tokens,
        shape.slots, shape.fixed_bucket);
  const auto layers = static_cast<std::int64_t>(homes.size());
  memory_ = cuda::DeviceBuffer(planned_bytes(shape, layers).device);
  std::size_t used = 0;
  b_ = std::make_unique<Buffers>(lay_out(shape, layers, memory_.data(), used));
  counts_ = std::make_unique<Counts>(static_cast<std::size_t>(shape.lanes));

  const int me = stage == nullptr ? 0 : stage->rank();
  std::vector<std::int32_t> slots, lanes, one;
  for (const auto layer : homes) {
    CHECK(static_cast<std::int64_t>(layer.size()) == shape.experts, "{} homes, E={}", layer.size(),
          shape.experts);
    for (const ExpertHome home : layer) {
      slots.push_back(home.lane == me ? home.slot : -1);
      lanes.push_back(home.lane);
      one.push_back(home.lane == me ? 0 : -1);
    }
  }
  const cuda::Stream stream;
  const auto upload = [&](std::int32_t* to, const std::vector<std::int32_t>& from) {
    if (to == nullptr || from.empty()) return;
    cuda::copy_to_device(stream, to, from.data(), from.size() * sizeof(std::int32_t));
  };
  cuda::fill(stream, memory_.data(), 0, memory_.bytes());
  upload(b_->slot_of_expert, slots);
  upload(b_->lane_of_expert, lanes);
  upload(b_->one_slot, one);
  cuda::synchronize(stream, std::chrono::milliseconds(60'000));
}

DeviceExpertExchange::~DeviceExpertExchange() = default;

std::int64_t DeviceExpertExchange::layer_offset(std::size_t layer) const {
  return static_cast<std::int64_t>(layer) * shape_.experts;
}

// Groups the pairs that this lane's experts compute.
void DeviceExpertExchange::permute(StreamRef stream, const Tokens& t,
                                   kernels::MatrixView<const std::int32_t> ids) {
  cuda::MoePermuteArgs args;
  args.ids = ids;
  args.slot_of_expert = b_->slot_of_expert + layer_offset(t.layer);
  args.experts = static_cast<std::int32_t>(shape_.experts);
  args.slots = static_cast<std::int32_t>(shape_.slots);
  args.offsets = t.offsets;
  args.rows =
      kernels::matrix(shape_.lanes == 1 ? b_->rows : b_->grouped_rows, ids.rows(), shape_.top_k);
  args.tokens = b_->x_rows;
  cuda::moe_permute(stream, args);
}

void DeviceExpertExchange::route(StreamRef stream, const Tokens& t, ExchangeLayout layout) {
  cuda::RouteTokensArgs args;
  args.layout = layout;
  args.ids = t.ids;
  args.lane_of_expert = b_->lane_of_expert + layer_offset(t.layer);
  args.experts = static_cast<std::int32_t>(shape_.experts);
  args.lanes = shape_.lanes;
  args.bucket = t.bucket;
  args.record_tokens = b_->record_tokens;
  args.counts = b_->counts;
  args.rows = kernels::matrix(b_->rows, t.ids.rows(), shape_.top_k);
  cuda::route_tokens(stream, args);
}

void DeviceExpertExchange::pack(StreamRef stream, const Tokens& t, std::int64_t count,
                                bool routed) {
  cuda::PackRecordsArgs args;
  args.layout = record_;
  args.x = t.x;
  args.ids = t.ids;
  args.record_tokens = routed ? b_->record_tokens : nullptr;
  args.count = count;
  args.records = b_->records_out;
  cuda::pack_records(stream, args);
}

DeviceExpertExchange::Received DeviceExpertExchange::received(const Tokens& t, std::int64_t records,
                                                              std::int64_t rows) const {
  return {record_.hidden_rows(b_->records_in, records), b_->x_rows, t.offsets, rows};
}

DeviceExpertExchange::Received DeviceExpertExchange::dispatch(StreamRef stream, const Tokens& t) {
  CHECK(t.x.cols() == shape_.hidden && t.ids.cols() == shape_.top_k && t.ids.rows() == t.x.rows() &&
            t.x.rows() <= shape_.max_tokens,
        "x=[{}, {}] ids=[{}, {}] max_tokens={} D={} K={}", t.x.rows(), t.x.cols(), t.ids.rows(),
        t.ids.cols(), shape_.max_tokens, shape_.hidden, shape_.top_k);
  path_ = t.path;
  bucket_ = t.bucket;
  records_ = 0;
  if (shape_.lanes == 1) {
    permute(stream, t, t.ids);
    return {t.x, b_->x_rows, t.offsets, max_rows(shape_, t.ids.rows())};
  }
  switch (t.path) {
    case DispatchPath::kLocal:
      break;
    case DispatchPath::kAllToAllFixed:
      return dispatch_fixed(stream, t);
    case DispatchPath::kAllToAllExact:
      return dispatch_exact(stream, t);
    case DispatchPath::kAllGather:
      return dispatch_gather(stream, t);
  }
  CHECK(false, "kLocal with {} lanes", shape_.lanes);
  return {};
}

DeviceExpertExchange::Received DeviceExpertExchange::dispatch_fixed(StreamRef stream,
                                                                    const Tokens& t) {
  CHECK(t.x.rows() <= t.bucket && t.bucket <= shape_.fixed_bucket, "T={} bucket={} at most {}",
        t.x.rows(), t.bucket, shape_.fixed_bucket);
  records_ = shape_.lanes * t.bucket;
  if (records_ > 0) {
    route(stream, t, ExchangeLayout::kFixed);
    pack(stream, t, records_, true);
    stage_->all_to_all(b_->records_out, b_->records_in,
                       static_cast<std::size_t>(t.bucket * record_.bytes()), stream);
  }
  permute(stream, t, record_.id_rows(b_->records_in, records_));
  return received(t, records_, max_rows(shape_, t.bucket));
}

DeviceExpertExchange::Received DeviceExpertExchange::dispatch_gather(StreamRef stream,
                                                                     const Tokens& t) {
  CHECK(shape_.all_gather && t.x.rows() <= t.bucket && t.bucket <= shape_.max_tokens,
        "all_gather={} T={} bucket={} at most {}", shape_.all_gather, t.x.rows(), t.bucket,
        shape_.max_tokens);
  records_ = shape_.lanes * t.bucket;
  if (records_ > 0) {
    route(stream, t, ExchangeLayout::kGather);
    pack(stream, t, t.bucket, false);
    stage_->all_gather(b_->records_out, b_->records_in,
                       static_cast<std::size_t>(t.bucket * record_.bytes()), stream);
  }
  permute(stream, t, record_.id_rows(b_->records_in, records_));
  return received(t, records_, max_rows(shape_, t.bucket));
}

// Brings what every lane sends and gets to the host, and checks it.
void DeviceExpertExchange::exchange_counts(StreamRef stream) {
  const auto lanes = static_cast<std::size_t>(shape_.lanes);
  stage_->all_to_all(b_->counts, b_->counts + lanes, sizeof(LaneCounts), stream);
  cuda::copy_to_host(stream, counts_->pinned.data(), b_->counts, counts_->pinned.bytes());
  stage_->wait(stream);
  const std::span<const LaneCounts> all(counts_->pinned.as<LaneCounts>(), 2 * lanes);
  const auto out = all.first(lanes);
  const auto in = all.last(lanes);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    const std::int64_t most_rows = in[lane].records * std::min(shape_.top_k, shape_.slots);
    if (in[lane].records < 0 || in[lane].records > shape_.max_tokens || in[lane].rows < 0 ||
        in[lane].rows > most_rows) {
      throw CommError("dispatch", static_cast<int>(lane), stage_->options().deadline,
                      fmt::format("{} tokens with {} rows announced, at most {} tokens fit",
                                  in[lane].records, in[lane].rows, shape_.max_tokens));
    }
  }
  set_ranges(counts_->records_out, out, &LaneCounts::records, record_.bytes());
  set_ranges(counts_->records_in, in, &LaneCounts::records, record_.bytes());
  // Outputs go the other way.
  set_ranges(counts_->rows_out, in, &LaneCounts::rows, shape_.hidden * 2);
  set_ranges(counts_->rows_in, out, &LaneCounts::rows, shape_.hidden * 2);
}

// The order in which outputs go back: (source lane, token, k), without gaps.
void DeviceExpertExchange::number_returns(StreamRef stream,
                                          kernels::MatrixView<const std::int32_t> ids,
                                          std::size_t layer) {
  cuda::MoePermuteArgs args;
  args.ids = ids;
  args.slot_of_expert = b_->one_slot + layer_offset(layer);
  args.experts = static_cast<std::int32_t>(shape_.experts);
  args.slots = 1;
  args.offsets = b_->place_offsets;
  args.rows = kernels::matrix(b_->places, ids.rows(), shape_.top_k);
  args.tokens = b_->place_tokens;
  cuda::moe_permute(stream, args);
}

DeviceExpertExchange::Received DeviceExpertExchange::dispatch_exact(StreamRef stream,
                                                                    const Tokens& t) {
  CHECK(shape_.exact, "no buffers for kAllToAllExact");
  route(stream, t, ExchangeLayout::kExact);
  // As many as there can be, so that the device has work while the counts are on their way.
  pack(stream, t, t.x.rows() * std::min<std::int64_t>(shape_.top_k, shape_.lanes), true);
  exchange_counts(stream);
  stage_->all_to_all_v(b_->records_out, counts_->records_out, b_->records_in, counts_->records_in,
                       stream);
  const std::span<const LaneCounts> in(counts_->pinned.as<LaneCounts>() + shape_.lanes,
                                       static_cast<std::size_t>(shape_.lanes));
  records_ = sum(in, &LaneCounts::records);
  const auto ids = record_.id_rows(b_->records_in, records_);
  permute(stream, t, ids);
  number_returns(stream, ids, t.layer);
  return received(t, records_, sum(in, &LaneCounts::rows));
}

void DeviceExpertExchange::return_rows(StreamRef stream, kernels::MatrixView<const BFloat16> y) {
  const bool exact = path_ == DispatchPath::kAllToAllExact;
  const bool gather = path_ == DispatchPath::kAllGather;
  const std::int64_t pairs = records_ * shape_.top_k;
  if (records_ > 0) {
    cuda::PackReturnsArgs args;
    args.y = y;
    args.rows = kernels::matrix<const std::int32_t>(b_->grouped_rows, records_, shape_.top_k);
    args.places = exact ? b_->places : nullptr;
    args.fill_missing = gather;
    args.out = kernels::matrix(b_->returns_out, exact ? y.rows() : pairs, shape_.hidden);
    cuda::pack_returns(stream, args);
  }
  if (exact) {
    stage_->all_to_all_v(b_->returns_out, counts_->rows_out, b_->returns_in, counts_->rows_in,
                         stream);
    return;
  }
  if (records_ == 0) return;
  const auto bytes = static_cast<std::size_t>(bucket_ * shape_.top_k * shape_.hidden * 2);
  if (gather) {
    stage_->reduce_scatter_bf16(b_->returns_out, b_->returns_in, bytes, stream);
  } else {
    stage_->all_to_all(b_->returns_out, b_->returns_in, bytes, stream);
  }
}

void DeviceExpertExchange::combine(StreamRef stream, kernels::MatrixView<const BFloat16> y,
                                   kernels::MatrixView<const float> weights,
                                   kernels::MatrixView<float> hidden) {
  cuda::CombineArgs args;
  args.y = y;
  if (shape_.lanes > 1) {
    return_rows(stream, y);
    args.y =
        kernels::matrix<const BFloat16>(b_->returns_in, Capacity(shape_).returns_in, shape_.hidden);
  }
  if (hidden.rows() == 0) return;
  args.rows = kernels::matrix<const std::int32_t>(b_->rows, hidden.rows(), shape_.top_k);
  args.weights = weights;
  args.hidden = hidden;
  cuda::combine(stream, args);
}

}  // namespace millrace::parallel
