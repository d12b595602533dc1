// The mixture of experts: router, grouping, the grouped products, the sum, and a lane's half of the
// exchange.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/cuda/combine.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/moe_exchange.h"
#include "kernels/cuda/moe_permute.h"
#include "kernels/cuda/router.h"
#include "tests/kernels/cuda/bench/bench.h"

namespace millrace::kernels::cuda::bench {

namespace {

// K distinct experts for each token, all alike likely, ascending.
std::vector<std::int32_t> choose_experts(const Shapes& m, std::int64_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> experts(static_cast<std::size_t>(m.experts));
  std::iota(experts.begin(), experts.end(), 0);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int32_t k = 0; k < m.top_k; ++k) {
      std::swap(
          experts[static_cast<std::size_t>(k)],
          experts[static_cast<std::size_t>(k) + random() % static_cast<unsigned>(m.experts - k)]);
    }
    std::vector<std::int32_t> mine(experts.begin(), experts.begin() + m.top_k);
    std::sort(mine.begin(), mine.end());
    ids.insert(ids.end(), mine.begin(), mine.end());
  }
  return ids;
}

// Tokens of one step, grouped by expert; several sets with other choices.
class Routed {
 public:
  Routed(Bench& bench, const Shapes& m, std::int64_t tokens, int sets)
      : m_(m), tokens_(tokens), pairs_(tokens * m.top_k) {
    const StreamRef stream = bench.stream();
    for (int set = 0; set < sets; ++set) {
      const std::vector<std::int32_t> ids =
          choose_experts(m, tokens, static_cast<unsigned>(set) + 1);
      const std::vector<std::int32_t> used = [&ids] {
        std::vector<std::int32_t> sorted = ids;
        std::sort(sorted.begin(), sorted.end());
        sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
        return sorted;
      }();
      distinct_ += static_cast<double>(used.size()) / sets;
      ids_.push_back(to_device(stream, ids));
      offsets_.emplace_back(static_cast<std::size_t>(m.experts + 4) * 4);
      rows_.emplace_back(static_cast<std::size_t>(pairs_) * 4);
      order_.emplace_back(static_cast<std::size_t>(pairs_) * 4);
      permute(stream, set);
    }
    synchronize(stream, kNoDeadline);
  }

  void permute(StreamRef stream, int set) const {
    const auto at = static_cast<std::size_t>(set);
    MoePermuteArgs args;
    args.ids = ids(set);
    args.experts = m_.experts;
    args.slots = m_.experts;
    args.offsets = offsets_[at].as<std::int32_t>();
    args.rows = matrix(rows_[at].as<std::int32_t>(), tokens_, std::int64_t{m_.top_k});
    args.tokens = order_[at].as<std::int32_t>();
    moe_permute(stream, args);
  }

  double distinct() const { return distinct_; }  // experts with tokens, on average
  std::int64_t pairs() const { return pairs_; }
  MatrixView<const std::int32_t> ids(int set) const {
    return matrix<const std::int32_t>(ids_[static_cast<std::size_t>(set)].as<std::int32_t>(),
                                      tokens_, m_.top_k);
  }
  MatrixView<const std::int32_t> rows(int set) const {
    return matrix<const std::int32_t>(rows_[static_cast<std::size_t>(set)].as<std::int32_t>(),
                                      tokens_, m_.top_k);
  }
  const std::int32_t* offsets(int set) const {
    return offsets_[static_cast<std::size_t>(set)].as<std::int32_t>();
  }
  const std::int32_t* order(int set) const {
    return order_[static_cast<std::size_t>(set)].as<std::int32_t>();
  }

 private:
  const Shapes& m_;
  std::int64_t tokens_;
  std::int64_t pairs_;
  double distinct_ = 0;
  std::vector<DeviceBuffer> ids_, offsets_, rows_, order_;
};

double per_weight(WeightFormat format) { return format == WeightFormat::kBf16 ? 2 : 1 + 1.0 / 64; }

void run_grouped(Bench& bench, const Shapes& m, std::int64_t t, WeightFormat format) {
  const auto name = [&](const char* what) {
    return fmt::format("{} experts {} T={} {}", m.name, what, t, name_of(format));
  };
  if (!bench.wants(name("gate+up")) && !bench.wants(name("down"))) return;
  const StreamRef stream = bench.stream();
  const std::int64_t d = m.hidden;
  // Few tokens read few experts: launches choose others, out of all of them.
  const int sets = bench.options().smoke ? 2 : t <= 32 ? 16 : t <= 1024 ? 4 : 2;
  const Routed routed(bench, m, t, sets);
  const Weights w13(stream, format, 2 * m.expert, d, m.experts);
  const Weights w2(stream, format, d, m.expert, m.experts);
  const DeviceBuffer x = random_bf16(stream, t * d, 1);
  const DeviceBuffer gate = random_bf16(stream, routed.pairs() * m.expert, 2);
  const DeviceBuffer y(static_cast<std::size_t>(routed.pairs() * d) * sizeof(BFloat16));
  const Workspace workspace(
      stream,
      max_workspace(grouped_gemm_workspace(format, routed.pairs(), m.experts, 2 * m.expert, d),
                    grouped_gemm_workspace(format, routed.pairs(), m.experts, d, m.expert)));
  const auto pairs = static_cast<double>(routed.pairs());
  const auto width = static_cast<double>(m.expert);
  const auto hidden = static_cast<double>(d);

  GroupedGemmArgs base;
  base.experts = m.experts;
  base.max_rows = routed.pairs();
  base.workspace = workspace.view();
  Case up;
  up.name = name("gate+up");
  up.bytes = routed.distinct() * 2 * width * hidden * per_weight(format) +
             static_cast<double>(t) * hidden * 2 + pairs * width * 2;
  up.flop = 2 * pairs * 2 * width * hidden;
  up.sets = sets;
  up.launch = [&](StreamRef s, int set) {
    GroupedGemmArgs args = base;
    args.x = matrix<const BFloat16>(x.as<BFloat16>(), t, d);
    args.x_rows = routed.order(set);
    args.offsets = routed.offsets(set);
    args.w = w13.at(0);
    args.y = GemmOutput::swiglu(matrix(gate.as<BFloat16>(), routed.pairs(), m.expert));
    grouped_gemm(s, args);
  };
  bench.run(up);
  Case down;
  down.name = name("down");
  down.bytes =
      routed.distinct() * width * hidden * per_weight(format) + pairs * (width * 2 + hidden * 2);
  down.flop = 2 * pairs * width * hidden;
  down.sets = sets;
  down.launch = [&](StreamRef s, int set) {
    GroupedGemmArgs args = base;
    args.x = matrix<const BFloat16>(gate.as<BFloat16>(), routed.pairs(), m.expert);
    args.offsets = routed.offsets(set);
    args.w = w2.at(0);
    args.y = GemmOutput::store(matrix(y.as<BFloat16>(), routed.pairs(), d));
    grouped_gemm(s, args);
  };
  bench.run(down);
}

void run_routing(Bench& bench, const Shapes& m, std::int64_t t) {
  const auto name = [&](const char* what) { return fmt::format("{} {} T={}", m.name, what, t); };
  const StreamRef stream = bench.stream();
  const int sets = bench.options().smoke ? 2 : 8;
  const Routed routed(bench, m, t, sets);
  const DeviceBuffer logits = random_f32(stream, sets * t * m.experts, 1);
  const DeviceBuffer bias = random_f32(stream, m.experts, 2);
  const DeviceBuffer ids(static_cast<std::size_t>(t * m.top_k) * 4);
  const DeviceBuffer weights(static_cast<std::size_t>(t * m.top_k) * 4);
  const auto tokens = static_cast<double>(t);
  Case route;
  route.name = name("router");
  route.bytes = tokens * (4 * m.experts + 8 * m.top_k);
  route.sets = sets;
  route.launch = [&](StreamRef s, int set) {
    RouterArgs args;
    args.logits = matrix<const float>(logits.as<float>() + set * t * m.experts, t, m.experts);
    args.bias = bias.as<float>();
    args.ids = matrix(ids.as<std::int32_t>(), t, std::int64_t{m.top_k});
    args.weights = matrix(weights.as<float>(), t, std::int64_t{m.top_k});
    router(s, args);
  };
  bench.run(route);
  Case permute;
  permute.name = name("moe_permute");
  permute.bytes = tokens * m.top_k * 12;
  permute.sets = sets;
  permute.launch = [&](StreamRef s, int set) { routed.permute(s, set); };
  bench.run(permute);

  const std::int64_t d = m.hidden;
  const DeviceBuffer y = random_bf16(stream, sets * routed.pairs() * d, 3);
  const DeviceBuffer hidden = random_f32(stream, t * d, 4);
  const DeviceBuffer w = random_f32(stream, t * m.top_k, 5);
  Case sum;
  sum.name = name("combine");
  sum.bytes = tokens * static_cast<double>(d) * (2.0 * m.top_k + 8);
  sum.sets = sets;
  sum.launch = [&](StreamRef s, int set) {
    CombineArgs args;
    args.y = matrix<const BFloat16>(y.as<BFloat16>() + set * routed.pairs() * d, routed.pairs(), d);
    args.rows = routed.rows(set);
    args.weights = matrix<const float>(w.as<float>(), t, m.top_k);
    args.hidden = matrix(hidden.as<float>(), t, d);
    combine(s, args);
  };
  bench.run(sum);
}

// What one of four lanes does around a fixed-size all-to-all.
void run_exchange(Bench& bench, const Shapes& m, std::int64_t t) {
  constexpr std::int32_t kLanes = 4;
  const auto name = [&](const char* what) {
    return fmt::format("{} exchange {} of 4 lanes T={}", m.name, what, t);
  };
  const StreamRef stream = bench.stream();
  const std::int64_t d = m.hidden;
  const RecordLayout layout{d, m.top_k};
  const std::int64_t records = kLanes * t;
  std::vector<std::int32_t> homes;
  for (std::int32_t e = 0; e < m.experts; ++e) homes.push_back(e * kLanes / m.experts);
  const DeviceBuffer lane_of = to_device(stream, homes);
  const DeviceBuffer ids = to_device(stream, choose_experts(m, t, 1));
  const DeviceBuffer tokens(static_cast<std::size_t>(records) * 4);
  const DeviceBuffer rows(static_cast<std::size_t>(t * m.top_k) * 4);
  const DeviceBuffer x = random_bf16(stream, t * d, 2);
  const DeviceBuffer out(static_cast<std::size_t>(records * layout.bytes()));
  const DeviceBuffer y = random_bf16(stream, t * m.top_k * d, 3);
  const DeviceBuffer returns(static_cast<std::size_t>(records * m.top_k * d) * sizeof(BFloat16));
  const auto id_matrix = matrix<const std::int32_t>(ids.as<std::int32_t>(), t, m.top_k);
  const int sets = bench.options().smoke ? 2 : 16;

  Case route;
  route.name = name("route_tokens");
  route.sets = sets;
  route.launch = [&](StreamRef s, int) {
    RouteTokensArgs args;
    args.ids = id_matrix;
    args.lane_of_expert = lane_of.as<std::int32_t>();
    args.experts = m.experts;
    args.lanes = kLanes;
    args.bucket = t;
    args.record_tokens = tokens.as<std::int32_t>();
    args.rows = matrix(rows.as<std::int32_t>(), t, std::int64_t{m.top_k});
    route_tokens(s, args);
  };
  bench.run(route);
  route.launch(stream, 0);
  Case pack;
  pack.name = name("pack_records");
  pack.bytes = 2.0 * static_cast<double>(records * layout.bytes()) * 0.68;  // 1 - (3/4)^4 travel
  pack.sets = sets;
  pack.launch = [&](StreamRef s, int) {
    PackRecordsArgs args;
    args.layout = layout;
    args.x = matrix<const BFloat16>(x.as<BFloat16>(), t, d);
    args.ids = id_matrix;
    args.record_tokens = tokens.as<std::int32_t>();
    args.count = records;
    args.records = out.data();
    pack_records(s, args);
  };
  bench.run(pack);
  // As many rows as tokens have come here, each with one expert of this lane.
  std::vector<std::int32_t> places(static_cast<std::size_t>(records * m.top_k), -1);
  for (std::int64_t i = 0; i < t * m.top_k; ++i) {
    places[static_cast<std::size_t>(i * kLanes)] = static_cast<std::int32_t>(i);
  }
  const DeviceBuffer device_places = to_device(stream, places);
  Case back;
  back.name = name("pack_returns");
  back.bytes = 4.0 * static_cast<double>(t * m.top_k * d);
  back.sets = sets;
  back.launch = [&](StreamRef s, int) {
    PackReturnsArgs args;
    args.y = matrix<const BFloat16>(y.as<BFloat16>(), t * m.top_k, d);
    args.rows = matrix<const std::int32_t>(device_places.as<std::int32_t>(), records, m.top_k);
    args.out = matrix(returns.as<BFloat16>(), records * m.top_k, d);
    pack_returns(s, args);
  };
  bench.run(back);
}

}  // namespace

void run_experts(Bench& bench, const Shapes& m) {
  std::vector<std::int64_t> tokens = m.decode;
  tokens.push_back(m.prefill);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8E4M3}) {
    for (const std::int64_t t : tokens) run_grouped(bench, m, t, format);
  }
  for (const std::int64_t t : tokens) run_routing(bench, m, t);
  for (const std::int64_t t : m.decode) run_exchange(bench, m, t);
}

}  // namespace millrace::kernels::cuda::bench
