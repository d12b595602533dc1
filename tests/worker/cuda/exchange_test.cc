// Dispatch and combine between lanes on devices: with experts that are exact in bf16, the answer is
// known to the bit.
#include "parallel/device_expert_exchange.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <ostream>
#include <random>

#include "parallel/staged_communicator.h"
#include "tests/support/comm_cluster.h"

namespace millrace::parallel {
namespace {

namespace cuda = kernels::cuda;
using cuda::BFloat16;

constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kTopK = 3;
constexpr std::int64_t kExperts = 7;
constexpr std::int64_t kMaxTokens = 12;
constexpr std::chrono::milliseconds kLongDeadline{10'000};

// What a lane's tokens are: values and experts that name lane, token and place.
struct LaneTokens {
  std::vector<BFloat16> x;        // [T, D]
  std::vector<std::int32_t> ids;  // [T, K]
  std::vector<float> weights;     // [T, K]
  std::vector<float> hidden;      // [T, D], before
  std::int64_t tokens = 0;
};

enum class Choice { kAny, kOneExpert, kLastExperts };

LaneTokens make_tokens(int lane, std::int64_t tokens, Choice choice, bool padding) {
  std::mt19937 random(static_cast<unsigned>(100 * lane + tokens));
  LaneTokens t;
  t.tokens = tokens;
  for (std::int64_t i = 0; i < tokens; ++i) {
    std::vector<std::int32_t> experts(kExperts);
    std::iota(experts.begin(), experts.end(), 0);
    if (choice == Choice::kAny) std::shuffle(experts.begin(), experts.end(), random);
    if (choice == Choice::kLastExperts) std::reverse(experts.begin(), experts.end());
    std::sort(experts.begin(), experts.begin() + kTopK);
    const bool padded = padding && i % 4 == 3;
    for (std::int64_t k = 0; k < kTopK; ++k) {
      t.ids.push_back(padded ? -1 : experts[static_cast<std::size_t>(k)]);
      t.weights.push_back(padded ? 0.0F : 0.25F * static_cast<float>(k + 1));
    }
    for (std::int64_t d = 0; d < kHidden; ++d) {
      t.x.push_back(cuda::to_bf16(static_cast<float>(random() % 64) - 32));
      t.hidden.push_back(static_cast<float>(random() % 8));
    }
  }
  return t;
}

// Expert e multiplies by e + 1 and subtracts e: exact in bf16 for such values.
float expert(std::int32_t e, float x) {
  return x * static_cast<float>(e + 1) - static_cast<float>(e);
}

std::vector<float> expected(const LaneTokens& t) {
  std::vector<float> out = t.hidden;
  for (std::int64_t i = 0; i < t.tokens; ++i) {
    for (std::int64_t d = 0; d < kHidden; ++d) {
      float sum = 0;
      for (std::int64_t k = 0; k < kTopK; ++k) {
        const std::int32_t e = t.ids[static_cast<std::size_t>(i * kTopK + k)];
        if (e < 0) continue;
        const auto at = static_cast<std::size_t>(i * kHidden + d);
        sum +=
            t.weights[static_cast<std::size_t>(i * kTopK + k)] * expert(e, cuda::to_f32(t.x[at]));
      }
      out[static_cast<std::size_t>(i * kHidden + d)] += sum;
    }
  }
  return out;
}

template <class T>
cuda::DeviceBuffer to_device(cuda::StreamRef stream, const std::vector<T>& values) {
  cuda::DeviceBuffer memory(std::max<std::size_t>(values.size() * sizeof(T), 256));
  if (!values.empty()) {
    cuda::copy_to_device(stream, memory.data(), values.data(), values.size() * sizeof(T));
  }
  cuda::synchronize(stream, kLongDeadline);
  return memory;
}

template <class T>
std::vector<T> to_host(cuda::StreamRef stream, const void* device, std::int64_t count) {
  std::vector<T> out(static_cast<std::size_t>(count));
  if (count > 0) cuda::copy_to_host(stream, out.data(), device, out.size() * sizeof(T));
  cuda::synchronize(stream, kLongDeadline);
  return out;
}

// The experts of one lane, on the host: rows that arrived to rows that go back.
cuda::DeviceBuffer run_experts(cuda::StreamRef stream,
                               const DeviceExpertExchange::Received& received,
                               std::span<const std::int32_t> expert_of_slot) {
  const auto slots = static_cast<std::int64_t>(expert_of_slot.size());
  const auto offsets = to_host<std::int32_t>(stream, received.offsets, slots + 1);
  EXPECT_LE(offsets.back(), received.max_rows);
  const auto x_rows = to_host<std::int32_t>(stream, received.x_rows, offsets.back());
  std::vector<BFloat16> y(static_cast<std::size_t>(offsets.back() * kHidden));
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    for (std::int32_t r = offsets[slot]; r < offsets[slot + 1]; ++r) {
      const auto x = to_host<BFloat16>(stream, received.x.row(x_rows[r]), kHidden);
      for (std::int64_t d = 0; d < kHidden; ++d) {
        y[static_cast<std::size_t>(r * kHidden + d)] =
            cuda::to_bf16(expert(expert_of_slot[slot], cuda::to_f32(x[d])));
      }
    }
  }
  y.resize(std::max(y.size(), static_cast<std::size_t>(received.max_rows * kHidden)));
  return to_device(stream, y);
}

// Two layers with different homes: in order, and scattered.
std::vector<std::vector<ExpertHome>> homes_for(int lanes) {
  const auto slots = static_cast<std::int32_t>((kExperts + lanes - 1) / lanes);
  std::vector<std::vector<ExpertHome>> homes(2);
  for (std::int32_t e = 0; e < kExperts; ++e) {
    homes[0].push_back({e / slots, e % slots});
    const std::int32_t at = e * 5 % static_cast<std::int32_t>(kExperts);
    homes[1].push_back({at % lanes, at / lanes});
  }
  return homes;
}

struct Case {
  const char* name;
  DispatchPath path;
  std::vector<std::int64_t> tokens;  // by lane
  Choice choice = Choice::kAny;
};

// Names tests for ctest.
void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{} {}", c.name, fmt::join(c.tokens, ","));
}

class Exchange : public ::testing::TestWithParam<Case> {};

TEST_P(Exchange, EveryTokenGetsItsExpertsSum) {
  const Case& c = GetParam();
  const int lanes = static_cast<int>(c.tokens.size());
  const auto homes = homes_for(lanes);
  test::run_ranks(lanes, [&](Communicator& host) {
    const int me = host.rank();
    DeviceExchangeShape shape;
    shape.max_tokens = kMaxTokens;
    shape.fixed_bucket = kMaxTokens;
    shape.hidden = kHidden;
    shape.top_k = kTopK;
    shape.experts = kExperts;
    shape.slots = (kExperts + lanes - 1) / lanes;
    shape.lanes = lanes;
    const auto bytes = DeviceExpertExchange::planned_bytes(shape, 2);
    StagedCommunicator comm(host,
                            {.collective_bytes = std::max<std::size_t>(bytes.collective, 16)});
    const std::vector<std::span<const ExpertHome>> tables = {homes[0], homes[1]};
    DeviceExpertExchange exchange(lanes == 1 ? nullptr : &comm, shape, tables);
    const cuda::Stream stream;
    const bool padding = c.path != DispatchPath::kAllToAllExact;

    for (int round = 0; round < 3; ++round) {  // buffers are used again, by other layers
      const auto layer = static_cast<std::size_t>(round % 2);
      std::vector<std::int32_t> expert_of_slot(static_cast<std::size_t>(shape.slots), -1);
      for (std::int32_t e = 0; e < kExperts; ++e) {
        const ExpertHome home = homes[layer][static_cast<std::size_t>(e)];
        if (home.lane == me) expert_of_slot[static_cast<std::size_t>(home.slot)] = e;
      }
      const LaneTokens t =
          make_tokens(me, c.tokens[static_cast<std::size_t>(me)], c.choice, padding);
      const auto x = to_device(stream, t.x);
      const auto ids = to_device(stream, t.ids);
      const auto weights = to_device(stream, t.weights);
      const auto hidden = to_device(stream, t.hidden);
      const cuda::DeviceBuffer offsets((static_cast<std::size_t>(shape.slots) + 1) * 4);

      DeviceExpertExchange::Tokens tokens;
      tokens.layer = layer;
      tokens.path = c.path;
      tokens.bucket = *std::max_element(c.tokens.begin(), c.tokens.end());
      tokens.x = kernels::matrix<const BFloat16>(x.as<BFloat16>(), t.tokens, kHidden);
      tokens.ids = kernels::matrix<const std::int32_t>(ids.as<std::int32_t>(), t.tokens, kTopK);
      tokens.offsets = offsets.as<std::int32_t>();
      const auto received = exchange.dispatch(stream, tokens);
      const auto y = run_experts(stream, received, expert_of_slot);
      exchange.combine(
          stream, kernels::matrix<const BFloat16>(y.as<BFloat16>(), received.max_rows, kHidden),
          kernels::matrix<const float>(weights.as<float>(), t.tokens, kTopK),
          kernels::matrix(hidden.as<float>(), t.tokens, kHidden));
      EXPECT_EQ(to_host<float>(stream, hidden.data(), t.tokens * kHidden), expected(t))
          << "lane " << me << " round " << round;
    }
  });
}

std::vector<Case> cases() {
  std::vector<Case> out = {{"local", DispatchPath::kLocal, {9}},
                           {"local_one_expert", DispatchPath::kLocal, {5}, Choice::kOneExpert},
                           {"local_nothing", DispatchPath::kLocal, {0}}};
  for (const auto& [name, path] : {std::pair("fixed", DispatchPath::kAllToAllFixed),
                                   std::pair("exact", DispatchPath::kAllToAllExact),
                                   std::pair("gather", DispatchPath::kAllGather)}) {
    out.push_back({name, path, {6, 9}});
    out.push_back({name, path, {12, 12, 12}});
    out.push_back({name, path, {5, 0, 3, 1}});
    out.push_back({name, path, {0, 0}});
    out.push_back({name, path, {0, 7}, Choice::kOneExpert});
    out.push_back({name, path, {4, 4, 4}, Choice::kLastExperts});
    out.push_back({name, path, {1, 1, 1, 1, 1, 1, 1, 1}});
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Paths, Exchange, ::testing::ValuesIn(cases()), [](const auto& test) {
  return fmt::format("{}_{}", test.param.name, test.index);
});

}  // namespace
}  // namespace millrace::parallel
