// Dispatch and combine, to the bit, against a plain loop over all tokens that knows no lanes.
#include "parallel/expert_parallel.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels/table.h"
#include "tests/support/comm_alloc_counter.h"
#include "tests/support/comm_cluster.h"

namespace millrace::parallel {
namespace {

using kernels::Accumulate;
using kernels::matrix;

constexpr DispatchPath kPaths[] = {DispatchPath::kAllToAllFixed, DispatchPath::kAllToAllExact,
                                   DispatchPath::kAllGather};

kernels::CombineOp* combine_op() { return kernels::cpu_table(kernels::best_isa()).combine; }

// The tokens of one lane.
struct LaneTokens {
  std::int64_t count = 0;
  std::vector<float> x;           // [T, D]
  std::vector<std::int32_t> ids;  // [T, K]
  std::vector<float> weights;     // [T, K]
  std::vector<float> residual;    // [T, D]
};

struct Case {
  std::int64_t hidden = 7, top_k = 4, experts = 10;
  std::vector<LaneTokens> lanes;

  std::int64_t max_tokens() const {
    std::int64_t most = 1;
    for (const LaneTokens& lane : lanes) most = std::max(most, lane.count);
    return most;
  }
};

// `hot` > 0: all tokens choose among the first `hot` experts.
Case make_case(std::vector<std::int64_t> tokens, int hot = 0, unsigned seed = 1) {
  Case c;
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> value(-2, 2), weight(0, 1);
  for (const std::int64_t count : tokens) {
    LaneTokens& lane = c.lanes.emplace_back();
    lane.count = count;
    for (std::int64_t t = 0; t < count; ++t) {
      std::vector<std::int32_t> all(hot > 0 ? hot : c.experts);
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + c.top_k);
      lane.ids.insert(lane.ids.end(), all.begin(), all.begin() + c.top_k);
      for (std::int64_t k = 0; k < c.top_k; ++k) lane.weights.push_back(weight(random));
      for (std::int64_t d = 0; d < c.hidden; ++d) {
        lane.x.push_back(value(random));
        lane.residual.push_back(value(random));
      }
    }
  }
  return c;
}

using ExpertFn = float (*)(std::int32_t expert, float x);

float scaled(std::int32_t expert, float x) { return x * (1.0f / (expert + 3)) + 0.1f * expert; }
float identity(std::int32_t, float x) { return x; }

// out[t, d] by the definition in kernels/combine.h.
std::vector<float> expected(const Case& c, const LaneTokens& lane, ExpertFn expert, bool add) {
  const bool fused = kernels::best_isa() != kernels::Isa::kPortable;
  std::vector<float> out(lane.count * c.hidden);
  for (std::int64_t t = 0; t < lane.count; ++t) {
    for (std::int64_t d = 0; d < c.hidden; ++d) {
      float sum = 0;
      for (std::int64_t k = 0; k < c.top_k; ++k) {
        const float y = expert(lane.ids[t * c.top_k + k], lane.x[t * c.hidden + d]);
        const float w = lane.weights[t * c.top_k + k];
        sum = fused ? std::fma(w, y, sum) : w * y + sum;
      }
      const std::int64_t i = t * c.hidden + d;
      out[i] = add ? lane.residual[i] + sum : sum;
    }
  }
  return out;
}

ExchangeShape shape_of(const Case& c, const ExpertPlacement& placement, int lanes) {
  return {.max_tokens = c.max_tokens() + 2,
          .hidden = c.hidden,
          .top_k = c.top_k,
          .experts = c.experts,
          .slots = placement.slots_per_lane(),
          .lanes = lanes};
}

// The grouped GEMMs' stand-in: applies `expert` to the received rows, slot by slot.
void apply_experts(const ExpertExchange::Received& received, std::span<const std::int32_t> local,
                   ExpertFn expert, std::int64_t hidden, std::vector<float>& y) {
  ASSERT_EQ(received.offsets.size(), local.size() + 1);
  ASSERT_EQ(received.offsets.back(), received.rows());
  y.resize(received.rows() * hidden);
  for (std::size_t slot = 0; slot < local.size(); ++slot) {
    for (std::int64_t r = received.offsets[slot]; r < received.offsets[slot + 1]; ++r) {
      const float* x = received.x.row(received.x_rows[r]);
      for (std::int64_t d = 0; d < hidden; ++d) y[r * hidden + d] = expert(local[slot], x[d]);
    }
  }
}

// One MoE layer of one lane; returns out [T, D].
std::vector<float> run_layer(ExpertExchange& exchange, const ExpertPlacement& placement,
                             const Case& c, int rank, DispatchPath path, ExpertFn expert,
                             bool add) {
  const LaneTokens& lane = c.lanes[rank];
  const auto received =
      exchange.dispatch(path, placement.layer(0), matrix(lane.x.data(), lane.count, c.hidden),
                        matrix(lane.ids.data(), lane.count, c.top_k), c.max_tokens());
  std::vector<float> y, out = lane.residual;
  apply_experts(received, placement.local_experts(0, rank), expert, c.hidden, y);
  exchange.combine({}, matrix<const float>(y.data(), received.rows(), c.hidden),
                   matrix(lane.weights.data(), lane.count, c.top_k),
                   add ? Accumulate::kAdd : Accumulate::kStore,
                   matrix(out.data(), lane.count, c.hidden));
  return out;
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want,
                      const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
        << what << " at " << i << ": " << got[i] << " for " << want[i];
  }
}

// Experts dealt round robin, slots from the back, and one slot more than needed.
ExpertPlacement scattered(int experts, int lanes) {
  const int slots = (experts + lanes - 1) / lanes + 1;
  std::vector<ExpertHome> table;
  for (int e = 0; e < experts; ++e) table.push_back({(e * 7 + 1) % lanes, -1});
  std::vector<int> next(lanes, slots - 1);
  for (ExpertHome& home : table) {
    while (next[home.lane] < 0) home.lane = (home.lane + 1) % lanes;
    home.slot = next[home.lane]--;
  }
  return ExpertPlacement::from_tables(std::vector<std::vector<ExpertHome>>{table}, lanes, slots)
      .value();
}

class ExpertExchangeTest : public testing::TestWithParam<int> {
 protected:
  int lanes() const { return GetParam(); }

  // All paths (and kLocal on one lane) over both placements give the definition's bits.
  void check(const Case& c, ExpertFn expert) {
    for (const auto& placement :
         {ExpertPlacement::contiguous(1, c.experts, lanes()), scattered(c.experts, lanes())}) {
      test::run_ranks(lanes(), [&](Communicator& comm) {
        ExpertExchange exchange(comm, shape_of(c, placement, lanes()), combine_op());
        std::vector<DispatchPath> paths(std::begin(kPaths), std::end(kPaths));
        if (lanes() == 1) paths = {DispatchPath::kLocal, DispatchPath::kAllToAllFixed};
        for (const DispatchPath path : paths) {
          for (const bool add : {false, true}) {
            const auto got = run_layer(exchange, placement, c, comm.rank(), path, expert, add);
            const std::string what =
                fmt::format("lane {} path {} add {}", comm.rank(), static_cast<int>(path), add);
            expect_same_bits(got, expected(c, c.lanes[comm.rank()], expert, add), what.c_str());
          }
        }
      });
    }
  }

  // Lane e has `first` + e tokens.
  std::vector<std::int64_t> uneven(std::int64_t first) const {
    std::vector<std::int64_t> tokens(lanes());
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
  }
};

INSTANTIATE_TEST_SUITE_P(Lanes, ExpertExchangeTest, testing::ValuesIn(test::cluster_sizes()),
                         testing::PrintToStringParamName());

TEST_P(ExpertExchangeTest, SameBitsAsOneLane) {
  for (unsigned seed = 1; seed <= 3; ++seed) check(make_case(uneven(5), 0, seed), scaled);
}

TEST_P(ExpertExchangeTest, OneTokenPerLane) {
  check(make_case(std::vector<std::int64_t>(lanes(), 1)), scaled);
}

TEST_P(ExpertExchangeTest, EmptyLanes) {
  auto tokens = uneven(0);  // lane 0 has none
  check(make_case(tokens), scaled);
  std::fill(tokens.begin(), tokens.end(), 0);
  check(make_case(tokens), scaled);
}

TEST_P(ExpertExchangeTest, AllTokensOnOneLane) {
  std::vector<std::int64_t> tokens(lanes(), 0);
  tokens.back() = 19;
  check(make_case(tokens), scaled);
}

TEST_P(ExpertExchangeTest, FewExpertsTakeAll) { check(make_case(uneven(3), 4), scaled); }

TEST_P(ExpertExchangeTest, OneExpertTakesAll) {
  Case c = make_case(uneven(4));
  c.top_k = 1;
  for (LaneTokens& lane : c.lanes) {
    lane.ids.assign(lane.count, 6);
    lane.weights.resize(lane.count);
  }
  check(c, scaled);
}

TEST_P(ExpertExchangeTest, FewerExpertsThanLanes) {
  Case c = make_case(uneven(2), 5);
  c.experts = 5;  // with eight lanes, three own none
  check(c, scaled);
}

// Weights that are powers of two summing to one over equal outputs: there and back is the input.
TEST_P(ExpertExchangeTest, ThereAndBackIsTheIdentity) {
  Case c = make_case(uneven(6));
  for (LaneTokens& lane : c.lanes) {
    for (std::size_t i = 0; i < lane.x.size(); ++i) lane.x[i] = static_cast<float>(i % 97) - 48;
    for (std::size_t i = 0; i < lane.weights.size(); ++i) {
      lane.weights[i] = std::array{0.5f, 0.25f, 0.125f, 0.125f}[i % 4];
    }
  }
  check(c, identity);
  test::run_ranks(lanes(), [&](Communicator& comm) {
    const auto placement = ExpertPlacement::contiguous(1, c.experts, lanes());
    ExpertExchange exchange(comm, shape_of(c, placement, lanes()), combine_op());
    for (const DispatchPath path : kPaths) {
      EXPECT_EQ(run_layer(exchange, placement, c, comm.rank(), path, identity, false),
                c.lanes[comm.rank()].x);
    }
  });
}

// A partial sum that underflows to -0 stays -0 only when the next output keeps its own sign of
// zero.
TEST_P(ExpertExchangeTest, SignsOfZeroSurvive) {
  Case c = make_case(std::vector<std::int64_t>(lanes(), 3));
  for (LaneTokens& lane : c.lanes) {
    std::fill(lane.weights.begin(), lane.weights.end(), 1e-30f);
  }
  check(c, [](std::int32_t expert, float) { return expert % 2 == 0 ? -1e-30f : -0.0f; });
  check(c, [](std::int32_t, float) { return -0.0f; });
}

TEST_P(ExpertExchangeTest, RowsAreGroupedBySlotThenLaneThenToken) {
  Case c = make_case(uneven(4));
  // x says where it comes from.
  for (std::size_t e = 0; e < c.lanes.size(); ++e) {
    for (std::int64_t t = 0; t < c.lanes[e].count; ++t) {
      c.lanes[e].x[t * c.hidden] = static_cast<float>(e);
      c.lanes[e].x[t * c.hidden + 1] = static_cast<float>(t);
    }
  }
  const auto placement = scattered(c.experts, lanes());
  test::run_ranks(lanes(), [&](Communicator& comm) {
    ExpertExchange exchange(comm, shape_of(c, placement, lanes()), combine_op());
    for (const DispatchPath path : kPaths) {
      const LaneTokens& mine = c.lanes[comm.rank()];
      const auto received =
          exchange.dispatch(path, placement.layer(0), matrix(mine.x.data(), mine.count, c.hidden),
                            matrix(mine.ids.data(), mine.count, c.top_k), c.max_tokens());
      const auto local = placement.local_experts(0, comm.rank());
      std::int64_t row = 0;
      for (std::size_t slot = 0; slot < local.size(); ++slot) {
        EXPECT_EQ(received.offsets[slot], row);
        for (std::size_t e = 0; e < c.lanes.size(); ++e) {
          for (std::int64_t t = 0; t < c.lanes[e].count; ++t) {
            const auto ids = std::span(c.lanes[e].ids).subspan(t * c.top_k, c.top_k);
            if (std::find(ids.begin(), ids.end(), local[slot]) == ids.end()) continue;
            const float* x = received.x.row(received.x_rows[row++]);
            EXPECT_EQ(x[0], static_cast<float>(e));
            EXPECT_EQ(x[1], static_cast<float>(t));
          }
        }
      }
      EXPECT_EQ(row, received.rows());
      std::vector<float> y(row * c.hidden), out(mine.count * c.hidden);
      exchange.combine({}, matrix<const float>(y.data(), row, c.hidden),
                       matrix(mine.weights.data(), mine.count, c.top_k), Accumulate::kStore,
                       matrix(out.data(), mine.count, c.hidden));
    }
  });
}

TEST_P(ExpertExchangeTest, StepsAllocateNothing) {
  const Case c = make_case(uneven(5));
  const auto placement = ExpertPlacement::contiguous(1, c.experts, lanes());
  test::run_ranks(lanes(), [&](Communicator& comm) {
    ExpertExchange exchange(comm, shape_of(c, placement, lanes()), combine_op());
    const LaneTokens& lane = c.lanes[comm.rank()];
    std::vector<float> y(ExpertExchange::max_rows(shape_of(c, placement, lanes())) * c.hidden);
    std::vector<float> out(lane.count * c.hidden);
    const auto step = [&](DispatchPath path) {
      const auto received =
          exchange.dispatch(path, placement.layer(0), matrix(lane.x.data(), lane.count, c.hidden),
                            matrix(lane.ids.data(), lane.count, c.top_k), c.max_tokens());
      exchange.combine({}, matrix<const float>(y.data(), received.rows(), c.hidden),
                       matrix(lane.weights.data(), lane.count, c.top_k), Accumulate::kStore,
                       matrix(out.data(), lane.count, c.hidden));
    };
    // Warm-up: how many messages wait at once depends on timing, so the mailboxes get many rounds.
    for (int i = 0; i < 50; ++i) {
      for (const DispatchPath path : kPaths) step(path);
    }
    const auto before = test::allocations_of_this_thread();
    for (int i = 0; i < 20; ++i) {
      for (const DispatchPath path : kPaths) step(path);
    }
    EXPECT_EQ(test::allocations_of_this_thread() - before, 0u);
  });
}

TEST_P(ExpertExchangeTest, PeerBeyondTheCapacityIsAnError) {
  if (lanes() == 1) GTEST_SKIP() << "no peer";
  const Case c = make_case(std::vector<std::int64_t>(lanes(), 4));
  const auto placement = ExpertPlacement::contiguous(1, c.experts, lanes());
  test::run_ranks(
      lanes(),
      [&](Communicator& comm) {
        if (comm.rank() == 1) {  // announces more tokens than anybody's buffer holds
          const std::vector<std::uint64_t> counts(lanes(), 1'000'000);
          std::vector<std::uint64_t> from(lanes());
          comm.exchange_counts(counts, from);
          return;
        }
        ExpertExchange exchange(comm, shape_of(c, placement, lanes()), combine_op());
        EXPECT_THROW(run_layer(exchange, placement, c, comm.rank(), DispatchPath::kAllToAllExact,
                               scaled, false),
                     CommError);
      },
      std::chrono::milliseconds(2000));
}

TEST(ExpertExchange, PeerWithUnknownExpertsIsAnError) {
  const Case c = make_case({4, 4});
  Case wrong = c;
  wrong.experts = 12;
  for (std::int64_t t = 0; t < 4; ++t) wrong.lanes[1].ids[t * c.top_k + c.top_k - 1] = 11;
  // Lane 1 believes in two experts more, the last of them at home on lane 0.
  const auto placement = ExpertPlacement::contiguous(1, c.experts, 2);
  std::vector<ExpertHome> wrong_table(12, ExpertHome{0, 0});
  for (std::int64_t e = 0; e < c.experts; ++e) wrong_table[e] = placement.layer(0)[e];
  for (const DispatchPath path : kPaths) {
    test::run_ranks(
        2,
        [&](Communicator& comm) {
          const bool sender = comm.rank() == 1;
          ExchangeShape shape = shape_of(sender ? wrong : c, placement, 2);
          shape.slots = 6;
          ExpertExchange exchange(comm, shape, combine_op());
          const LaneTokens& lane = (sender ? wrong : c).lanes[comm.rank()];
          const auto homes = sender ? std::span<const ExpertHome>(wrong_table) : placement.layer(0);
          const auto dispatch = [&] {
            return exchange.dispatch(path, homes, matrix(lane.x.data(), lane.count, c.hidden),
                                     matrix(lane.ids.data(), lane.count, c.top_k), 4);
          };
          if (sender) {
            dispatch();
            return;
          }
          try {
            dispatch();
            ADD_FAILURE() << "accepted on path " << static_cast<int>(path);
          } catch (const CommError& error) {
            EXPECT_EQ(error.operation(), "dispatch");
            EXPECT_EQ(error.peer(), 1);
            EXPECT_NE(error.detail().find("names expert 11"), std::string::npos) << error.what();
          }
        },
        std::chrono::milliseconds(10'000));
  }
}

TEST(ExpertExchange, PlannedBytesCoverTheModel) {
  // LFM2-24B, four lanes, 512 tokens: records of 8,208 B (D floats and four ids).
  const ExchangeShape shape{.max_tokens = 512,
                            .hidden = 2048,
                            .top_k = 4,
                            .experts = 64,
                            .slots = 16,
                            .lanes = 4,
                            .all_gather = false};
  const std::size_t records = 4 * 512 * 8208, rows = 4 * 512 * 4 * 8192, back = 512 * 4 * 8192;
  EXPECT_EQ(ExpertExchange::max_rows(shape), 4 * 512 * 4);
  const std::size_t planned = ExpertExchange::planned_bytes(shape);
  EXPECT_GE(planned, 2 * records + rows + back);
  EXPECT_LE(planned, 2 * records + rows + back + (1u << 20));
}

}  // namespace
}  // namespace millrace::parallel
