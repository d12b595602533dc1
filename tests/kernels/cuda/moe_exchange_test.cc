// Whole exchanges between lanes of one process: route, pack, a collective made of copies, permute,
// stand-in experts, pack, the collective back, combine. Every layout, any number of lanes and any
// placement must give the bits that one lane gives without an exchange.
#include "kernels/cuda/moe_exchange.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/cuda/combine.h"
#include "kernels/cuda/moe_permute.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

struct Cluster {
  std::int32_t lanes = 0, experts = 0;
  std::int64_t d = 0, k = 0, bucket = 0;
  std::vector<std::int32_t> lane_of, slot_of;  // by expert
  std::int32_t slots = 0;                      // per lane

  RecordLayout layout() const { return {d, k}; }
  // [E]: slots on `lane`, -1 elsewhere.
  std::vector<std::int32_t> local_slots(std::int32_t lane) const {
    std::vector<std::int32_t> out(static_cast<std::size_t>(experts), -1);
    for (std::size_t e = 0; e < out.size(); ++e) {
      if (lane_of[e] == lane) out[e] = slot_of[e];
    }
    return out;
  }
};

struct LaneInput {
  std::int64_t tokens = 0;
  std::vector<float> x, hidden, weights;
  std::vector<std::int32_t> ids;
};

// Expert e of one token: exact in bf16, and no two experts agree.
float expert_value(std::int32_t e, float x) {
  return round_bf16(x * static_cast<float>(e + 1) - static_cast<float>(e % 3));
}

using Bytes = std::vector<std::uint8_t>;

// One lane's tensors on the device.
struct Lane {
  Lane(const Cluster& c, const LaneInput& in)
      : ids(in.ids),
        x(to_bf16(in.x)),
        weights(in.weights),
        hidden(in.hidden),
        rows(in.ids.size(), -55),
        tokens(in.tokens) {
    (void)c;
  }
  DeviceArray<std::int32_t> ids;
  DeviceArray<BFloat16> x;
  DeviceArray<float> weights, hidden;
  DeviceArray<std::int32_t> rows;
  std::int64_t tokens;
};

MatrixView<const std::int32_t> id_view(const Cluster& c, const Lane& lane) {
  return matrix<const std::int32_t>(lane.ids.data(), lane.tokens, c.k);
}

struct Sent {
  Bytes records;  // as packed
  std::vector<LaneCounts> counts;
};

Sent send_tokens(const Cluster& c, ExchangeLayout layout, const Lane& lane) {
  const bool exact = layout == ExchangeLayout::kExact;
  const bool gather = layout == ExchangeLayout::kGather;
  const std::int64_t capacity = exact    ? lane.tokens * std::min<std::int64_t>(c.k, c.lanes)
                                : gather ? c.bucket
                                         : c.lanes * c.bucket;
  const DeviceArray<std::int32_t> lane_of(c.lane_of);
  const DeviceArray<std::int32_t> record_tokens(static_cast<std::size_t>(capacity), -77);
  const DeviceArray<LaneCounts> counts(static_cast<std::size_t>(c.lanes), LaneCounts{-9, -9});
  route_tokens(default_stream(), {.layout = layout,
                                  .ids = id_view(c, lane),
                                  .lane_of_expert = lane_of.data(),
                                  .experts = c.experts,
                                  .lanes = c.lanes,
                                  .bucket = c.bucket,
                                  .record_tokens = gather ? nullptr : record_tokens.data(),
                                  .counts = exact ? counts.data() : nullptr,
                                  .rows = matrix(lane.rows.data(), lane.tokens, c.k)});
  const DeviceArray<std::uint8_t> records(static_cast<std::size_t>(capacity * c.layout().bytes()),
                                          0xAB);
  pack_records(default_stream(), {.layout = c.layout(),
                                  .x = matrix<const BFloat16>(lane.x.data(), lane.tokens, c.d),
                                  .ids = id_view(c, lane),
                                  .record_tokens = gather ? nullptr : record_tokens.data(),
                                  .count = capacity,
                                  .records = records.data()});
  return {records.read(), counts.read()};
}

// What one lane's experts make of the records that arrived: permuted, computed, packed to return.
std::vector<float> compute(const Cluster& c, ExchangeLayout layout, std::int32_t lane,
                           const Bytes& records, std::int64_t return_rows) {
  const auto count = static_cast<std::int64_t>(records.size()) / c.layout().bytes();
  const auto pairs = static_cast<std::size_t>(count * c.k);
  const DeviceArray<std::uint8_t> device_records(records);
  const auto ids = c.layout().id_rows(device_records.data(), count);
  const std::vector<std::int32_t> local = c.local_slots(lane);
  const DeviceArray<std::int32_t> slot_of(local);
  const DeviceArray<std::int32_t> offsets(static_cast<std::size_t>(c.slots) + 1, -5);
  const DeviceArray<std::int32_t> rows(pairs, -55), tokens(pairs, -55), places(pairs, -55);
  MoePermuteArgs permute{.ids = ids,
                         .slot_of_expert = slot_of.data(),
                         .experts = c.experts,
                         .slots = c.slots,
                         .offsets = offsets.data(),
                         .rows = matrix(rows.data(), count, c.k),
                         .tokens = tokens.data()};
  moe_permute(default_stream(), permute);
  const std::vector<std::int32_t> ends = offsets.read();
  const std::vector<std::int32_t> token_of = tokens.read();

  std::vector<float> y(static_cast<std::size_t>(ends.back() * c.d));
  for (std::int32_t slot = 0; slot < c.slots; ++slot) {
    const auto expert =
        std::find(local.begin(), local.end(), slot) - local.begin();  // E where the slot is empty
    for (std::int32_t r = ends[static_cast<std::size_t>(slot)];
         r < ends[static_cast<std::size_t>(slot) + 1]; ++r) {
      const std::uint8_t* record = &records[static_cast<std::size_t>(
          token_of[static_cast<std::size_t>(r)] * c.layout().bytes())];
      for (std::int64_t i = 0; i < c.d; ++i) {
        BFloat16 value;
        std::memcpy(&value, record + i * 2, 2);
        y[static_cast<std::size_t>(r * c.d + i)] =
            expert_value(static_cast<std::int32_t>(expert), cuda::to_f32(value));
      }
    }
  }
  const DeviceArray<BFloat16> device_y(to_bf16(y));
  const bool exact = layout == ExchangeLayout::kExact;
  if (exact) {
    std::vector<std::int32_t> one_slot = local;
    for (std::int32_t& slot : one_slot) slot = slot < 0 ? -1 : 0;
    const DeviceArray<std::int32_t> device_one(one_slot), end(2, -5), unused(pairs, -55);
    permute.slot_of_expert = device_one.data();
    permute.slots = 1;
    permute.offsets = end.data();
    permute.rows = matrix(places.data(), count, c.k);
    permute.tokens = unused.data();
    moe_permute(default_stream(), permute);
  }
  const DeviceArray<BFloat16> out(static_cast<std::size_t>(return_rows * c.d), kBf16Nan);
  pack_returns(default_stream(), {.y = matrix<const BFloat16>(device_y.data(), ends.back(), c.d),
                                  .rows = matrix<const std::int32_t>(rows.data(), count, c.k),
                                  .places = exact ? places.data() : nullptr,
                                  .fill_missing = layout == ExchangeLayout::kGather,
                                  .out = matrix(out.data(), return_rows, c.d)});
  return to_f32(out.read());
}

std::vector<float> finish(const Cluster& c, const Lane& lane, const std::vector<float>& returned) {
  const DeviceArray<BFloat16> y(to_bf16(returned));
  combine(default_stream(), {.y = matrix<const BFloat16>(
                                 y.data(), static_cast<std::int64_t>(returned.size()) / c.d, c.d),
                             .rows = matrix<const std::int32_t>(lane.rows.data(), lane.tokens, c.k),
                             .weights = matrix<const float>(lane.weights.data(), lane.tokens, c.k),
                             .hidden = matrix(lane.hidden.data(), lane.tokens, c.d)});
  return lane.hidden.read();
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from, std::int64_t begin,
            std::int64_t count) {
  to.insert(to.end(), from.begin() + begin, from.begin() + begin + count);
}

// Fixed slots: record slot [lane] of one is slot [source] of the other, there and back.
void exchange_fixed(const Cluster& c, const std::vector<Lane>& lanes,
                    std::vector<std::vector<float>>& returned) {
  const std::int64_t slot_bytes = c.bucket * c.layout().bytes();
  const std::int64_t slot_values = c.bucket * c.k * c.d;
  std::vector<Sent> sent;
  for (const Lane& lane : lanes) sent.push_back(send_tokens(c, ExchangeLayout::kFixed, lane));
  for (std::int32_t to = 0; to < c.lanes; ++to) {
    Bytes arrived;
    for (const Sent& s : sent) append(arrived, s.records, to * slot_bytes, slot_bytes);
    const auto out = compute(c, ExchangeLayout::kFixed, to, arrived, c.lanes * c.bucket * c.k);
    for (std::size_t from = 0; from < lanes.size(); ++from) {
      append(returned[from], out, static_cast<std::int64_t>(from) * slot_values, slot_values);
    }
  }
}

void exchange_exact(const Cluster& c, const std::vector<Lane>& lanes,
                    std::vector<std::vector<float>>& returned) {
  std::vector<Sent> sent;
  for (const Lane& lane : lanes) sent.push_back(send_tokens(c, ExchangeLayout::kExact, lane));
  for (std::size_t to = 0; to < lanes.size(); ++to) {
    Bytes arrived;
    std::int64_t rows = 0;
    for (const Sent& s : sent) {
      std::int64_t before = 0;
      for (std::size_t i = 0; i < to; ++i) before += s.counts[i].records;
      append(arrived, s.records, before * c.layout().bytes(),
             s.counts[to].records * c.layout().bytes());
      rows += s.counts[to].rows;
    }
    const auto out =
        compute(c, ExchangeLayout::kExact, static_cast<std::int32_t>(to), arrived, rows);
    std::int64_t begin = 0;
    for (std::size_t from = 0; from < lanes.size(); ++from) {
      append(returned[from], out, begin * c.d, sent[from].counts[to].rows * c.d);
      begin += sent[from].counts[to].rows;
    }
  }
}

void exchange_gather(const Cluster& c, const std::vector<Lane>& lanes,
                     std::vector<std::vector<float>>& returned) {
  Bytes all;
  for (const Lane& lane : lanes) {
    const Sent sent = send_tokens(c, ExchangeLayout::kGather, lane);
    append(all, sent.records, 0, static_cast<std::int64_t>(sent.records.size()));
  }
  const std::int64_t rows = c.lanes * c.bucket * c.k;
  std::vector<float> sum(static_cast<std::size_t>(rows * c.d), -0.0F);
  for (std::int32_t lane = 0; lane < c.lanes; ++lane) {
    const auto out = compute(c, ExchangeLayout::kGather, lane, all, rows);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = round_bf16(sum[i] + out[i]);
  }
  for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
    const std::int64_t block = c.bucket * c.k * c.d;
    append(returned[lane], sum, static_cast<std::int64_t>(lane) * block, block);
  }
}

// Combine in plain words: the same fma order on the host.
std::vector<float> without_exchange(const Cluster& c, const LaneInput& in) {
  std::vector<float> hidden = in.hidden;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    if (in.ids[static_cast<std::size_t>(t * c.k)] < 0) continue;
    for (std::int64_t i = 0; i < c.d; ++i) {
      float sum = 0;
      for (std::int64_t k = 0; k < c.k; ++k) {
        const auto pair = static_cast<std::size_t>(t * c.k + k);
        const float x = in.x[static_cast<std::size_t>(t * c.d + i)];
        sum = std::fma(in.weights[pair], expert_value(in.ids[pair], x), sum);
      }
      hidden[static_cast<std::size_t>(t * c.d + i)] += sum;
    }
  }
  return hidden;
}

LaneInput make_input(const Cluster& c, std::int64_t tokens, std::uint32_t seed, bool one_expert) {
  LaneInput in{tokens,
               random_bf16(tokens * c.d, seed),
               random_values(tokens * c.d, seed + 1),
               random_values(tokens * c.k, seed + 2),
               {}};
  std::mt19937 rng(seed);
  std::vector<std::int32_t> all(static_cast<std::size_t>(c.experts));
  std::iota(all.begin(), all.end(), 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (!one_expert) std::shuffle(all.begin(), all.end(), rng);
    std::sort(all.begin(), all.begin() + c.k);
    append(in.ids, all, 0, c.k);
    if (rng() % 7 == 0) std::fill(in.ids.end() - c.k, in.ids.end(), -1);  // padding
  }
  return in;
}

Cluster make_cluster(std::int32_t lanes, std::int32_t experts, std::int64_t d, std::int64_t k,
                     std::uint32_t seed) {
  Cluster c{lanes, experts, d, k, 0, {}, {}, 0};
  c.lane_of.resize(static_cast<std::size_t>(experts));
  c.slot_of.resize(static_cast<std::size_t>(experts));
  std::mt19937 rng(seed);
  std::vector<std::int32_t> used(static_cast<std::size_t>(lanes), 0);
  for (std::size_t e = 0; e < c.lane_of.size(); ++e) {
    c.lane_of[e] = static_cast<std::int32_t>(rng() % static_cast<unsigned>(lanes));
    c.slot_of[e] = used[static_cast<std::size_t>(c.lane_of[e])]++;
  }
  c.slots = *std::max_element(used.begin(), used.end()) + 1;  // one stays empty
  return c;
}

void expect_exchange(Cluster c, const std::vector<std::int64_t>& tokens, bool one_expert,
                     const std::string& what) {
  std::vector<LaneInput> inputs;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    inputs.push_back(make_input(c, tokens[i], static_cast<std::uint32_t>(i * 10 + 1), one_expert));
  }
  c.bucket = *std::max_element(tokens.begin(), tokens.end()) + 2;
  for (const auto layout :
       {ExchangeLayout::kFixed, ExchangeLayout::kExact, ExchangeLayout::kGather}) {
    std::vector<Lane> lanes;
    for (const LaneInput& in : inputs) lanes.emplace_back(c, in);
    std::vector<std::vector<float>> returned(inputs.size());
    if (layout == ExchangeLayout::kFixed) exchange_fixed(c, lanes, returned);
    if (layout == ExchangeLayout::kExact) exchange_exact(c, lanes, returned);
    if (layout == ExchangeLayout::kGather) exchange_gather(c, lanes, returned);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      expect_same_bits(finish(c, lanes[i], returned[i]), without_exchange(c, inputs[i]),
                       what + " layout " + std::to_string(static_cast<int>(layout)) + " lane " +
                           std::to_string(i));
    }
  }
}

TEST(CudaMoeExchangeTest, AnyLanesAndPlacementGiveTheSameBits) {
  expect_exchange(make_cluster(1, 8, 64, 4, 1), {17}, false, "one lane");
  expect_exchange(make_cluster(2, 64, 256, 4, 2), {33, 5}, false, "two lanes");
  expect_exchange(make_cluster(4, 8, 32, 2, 3), {7, 0, 40, 1}, false, "a lane without tokens");
  expect_exchange(make_cluster(3, 5, 8, 3, 4), {70, 65, 64}, false, "few experts");
  expect_exchange(make_cluster(8, 64, 64, 8, 5), {1, 1, 1, 1, 1, 1, 1, 1}, false, "one token each");
  expect_exchange(make_cluster(4, 9, 24, 1, 6), {30, 30, 30, 30}, false, "one expert a token");
}

TEST(CudaMoeExchangeTest, OneExpertTakesAll) {
  expect_exchange(make_cluster(4, 16, 32, 4, 7), {20, 21, 0, 3}, true, "the same four");
}

TEST(CudaMoeExchangeTest, ManyTokens) {
  expect_exchange(make_cluster(2, 16, 8, 4, 8), {1100, 513}, false, "prefill");
}

TEST(CudaMoeExchangeTest, EmptyRecordsSayTheyAreEmpty) {
  Cluster c = make_cluster(2, 4, 16, 3, 9);
  c.lane_of = {0, 0, 0, 1};
  c.bucket = 4;
  LaneInput in = make_input(c, 2, 1, true);
  in.ids = {0, 1, 2, -1, -1, -1};
  const Lane lane(c, in);
  const Sent sent = send_tokens(c, ExchangeLayout::kFixed, lane);
  for (std::int64_t record = 0; record < 8; ++record) {
    std::int32_t ids[4];
    std::memcpy(ids, &sent.records[static_cast<std::size_t>(record * c.layout().bytes() + 32)], 16);
    for (int k = 0; k < 3; ++k) EXPECT_EQ(ids[k], record == 0 ? k : -1) << record;
    EXPECT_EQ(ids[3], 0) << "the padding of a record is zero";
  }
  EXPECT_EQ(lane.rows.read(), (std::vector<std::int32_t>{0, 1, 2, -1, -1, -1}));
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
