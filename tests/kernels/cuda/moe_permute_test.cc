#include "kernels/cuda/moe_permute.h"

#include <algorithm>
#include <numeric>

#include "kernels/moe_permute.h"
#include "tests/kernels/cuda/op_support.h"

namespace millrace::kernels::cuda::testing {
namespace {

struct Permuted {
  std::vector<std::int32_t> offsets, rows, tokens;
  bool operator==(const Permuted&) const = default;
};

constexpr std::int32_t kPoison = -123456;

Permuted run(const std::vector<std::int32_t>& ids, std::int64_t k, std::int32_t experts,
             const std::vector<std::int32_t>& slot_of, std::int32_t slots) {
  const auto tokens = static_cast<std::int64_t>(ids.size()) / k;
  const DeviceArray<std::int32_t> device_ids(ids), device_slots(slot_of);
  const DeviceArray<std::int32_t> offsets(static_cast<std::size_t>(slots) + 1, kPoison);
  const DeviceArray<std::int32_t> rows(ids.size(), kPoison), grouped(ids.size(), kPoison);
  moe_permute(default_stream(), {.ids = matrix<const std::int32_t>(device_ids.data(), tokens, k),
                                 .slot_of_expert = slot_of.empty() ? nullptr : device_slots.data(),
                                 .experts = experts,
                                 .slots = slots,
                                 .offsets = offsets.data(),
                                 .rows = matrix(rows.data(), tokens, k),
                                 .tokens = grouped.data()});
  return {offsets.read(), rows.read(), grouped.read()};
}

// The CPU's op on slots; grouped tokens beyond the last row stay poison.
Permuted reference(const std::vector<std::int32_t>& ids, std::int64_t k,
                   const std::vector<std::int32_t>& slot_of, std::int32_t slots) {
  std::vector<std::int32_t> by_slot;
  for (const std::int32_t id : ids) {
    const std::int32_t slot = id < 0            ? -1
                              : slot_of.empty() ? id
                                                : slot_of[static_cast<std::size_t>(id)];
    by_slot.push_back(slot < 0 ? kNoExpert : slot);
  }
  const auto tokens = static_cast<std::int64_t>(ids.size()) / k;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(slots) + 1);
  Permuted out{
      {}, std::vector<std::int32_t>(ids.size()), std::vector<std::int32_t>(ids.size(), kPoison)};
  reference_table().moe_permute({}, {.ids = matrix<const std::int32_t>(by_slot.data(), tokens, k),
                                     .offsets = offsets,
                                     .rows = matrix(out.rows.data(), tokens, k),
                                     .tokens = out.tokens});
  out.offsets.assign(offsets.begin(), offsets.end());
  return out;
}

std::vector<std::int32_t> random_ids(std::int64_t tokens, std::int64_t k, std::int32_t experts,
                                     std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<std::int32_t> ids, all(static_cast<std::size_t>(experts));
  std::iota(all.begin(), all.end(), 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), rng);
    std::sort(all.begin(), all.begin() + k);
    ids.insert(ids.end(), all.begin(), all.begin() + k);
    if (rng() % 6 == 0) std::fill(ids.end() - k, ids.end(), kNoExpert);
  }
  return ids;
}

TEST(CudaMoePermuteTest, AgreesWithTheReference) {
  for (const std::int64_t tokens : {1, 2, 31, 33, 512, 513, 3000}) {
    for (const auto& [experts, k] : {std::pair(64, 4), std::pair(5, 3), std::pair(32, 8)}) {
      const auto ids = random_ids(tokens, k, experts, static_cast<std::uint32_t>(tokens + k));
      EXPECT_EQ(run(ids, k, experts, {}, experts), reference(ids, k, {}, experts))
          << tokens << " " << experts;
    }
  }
}

TEST(CudaMoePermuteTest, TakesOnlyTheExpertsOfThisLane) {
  const std::int32_t experts = 16;
  std::vector<std::int32_t> slot_of(16, -1);
  slot_of[3] = 1;
  slot_of[11] = 0;
  slot_of[12] = 4;  // slots 2 and 3 are empty
  const auto ids = random_ids(700, 4, experts, 9);
  const Permuted got = run(ids, 4, experts, slot_of, 5);
  EXPECT_EQ(got, reference(ids, 4, slot_of, 5));
  EXPECT_EQ(got.offsets[2], got.offsets[3]);
}

TEST(CudaMoePermuteTest, OneExpertTakesAll) {
  const std::vector<std::int32_t> ids(5000, 6);
  const Permuted got = run(ids, 1, 8, {}, 8);
  EXPECT_EQ(got, reference(ids, 1, {}, 8));
  EXPECT_EQ(got.tokens[4999], 4999);
}

TEST(CudaMoePermuteTest, NothingToDo) {
  const std::vector<std::int32_t> padding(64, kNoExpert);
  const Permuted got = run(padding, 4, 8, {}, 8);
  EXPECT_EQ(got.offsets, std::vector<std::int32_t>(9, 0));
  EXPECT_EQ(got.rows, std::vector<std::int32_t>(64, -1));
  EXPECT_EQ(got.tokens, std::vector<std::int32_t>(64, kPoison));
  EXPECT_EQ(run({}, 4, 8, {}, 8).offsets, std::vector<std::int32_t>(9, 0));
}

TEST(CudaMoePermuteTest, IdsBeyondTheTableCountAsNone) {
  const Permuted got = run({0, 9, -3, 1 << 30}, 1, 9, {}, 9);
  EXPECT_EQ(got.rows, (std::vector<std::int32_t>{0, -1, -1, -1}));
}

TEST(CudaMoePermuteTest, LargestPrefill) {
  const auto ids = random_ids(32768, 4, 64, 1);
  std::vector<std::int32_t> slot_of(64, -1);
  for (std::size_t e = 0; e < 8; ++e) slot_of[8 * e + 3] = static_cast<std::int32_t>(e);
  EXPECT_EQ(run(ids, 4, 64, slot_of, 8), reference(ids, 4, slot_of, 8));
}

}  // namespace
}  // namespace millrace::kernels::cuda::testing
