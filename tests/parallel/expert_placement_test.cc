#include "parallel/expert_placement.h"

#include <gtest/gtest.h>

#include <numeric>

namespace millrace::parallel {
namespace {

TEST(ExpertPlacement, ContiguousRunsDifferByAtMostOne) {
  const auto placement = ExpertPlacement::contiguous(2, 10, 4);
  EXPECT_EQ(placement.slots_per_lane(), 3);
  const std::vector<std::vector<std::int32_t>> expected = {
      {0, 1, 2}, {3, 4, 5}, {6, 7, -1}, {8, 9, -1}};
  for (int layer = 0; layer < 2; ++layer) {
    for (int lane = 0; lane < 4; ++lane) {
      const auto local = placement.local_experts(layer, lane);
      EXPECT_EQ(std::vector(local.begin(), local.end()), expected[lane]);
    }
    EXPECT_EQ(placement.layer(layer)[5], (ExpertHome{1, 2}));
    EXPECT_EQ(placement.layer(layer)[8], (ExpertHome{3, 0}));
  }
}

TEST(ExpertPlacement, MoreLanesThanExpertsLeavesLanesEmpty) {
  const auto placement = ExpertPlacement::contiguous(1, 2, 3);
  EXPECT_EQ(placement.slots_per_lane(), 1);
  EXPECT_EQ(placement.local_experts(0, 2)[0], ExpertPlacement::kEmptySlot);
}

TEST(ExpertPlacement, TablesGoRoundTrip) {
  const std::vector<std::vector<ExpertHome>> tables = {{{1, 1}, {0, 0}, {1, 0}},
                                                       {{0, 1}, {1, 1}, {0, 0}}};
  auto placement = ExpertPlacement::from_tables(tables, 2, 2);
  ASSERT_TRUE(placement.has_value());
  EXPECT_EQ(placement->to_tables(), tables);
  EXPECT_EQ(placement->local_experts(0, 1)[1], 0);
  EXPECT_EQ(placement->local_experts(0, 0)[1], ExpertPlacement::kEmptySlot);
  ASSERT_TRUE(placement->set_layer(1, tables[0]).has_value());
  EXPECT_EQ(placement->local_experts(1, 1)[1], 0);
  EXPECT_EQ(placement->local_experts(1, 0)[1],
            ExpertPlacement::kEmptySlot);  // its old slot is free
}

TEST(ExpertPlacement, ErrorsNameLayerAndExpert) {
  const auto error_of = [](std::vector<std::vector<ExpertHome>> tables) {
    return ExpertPlacement::from_tables(tables, 2, 2).error().field;
  };
  EXPECT_EQ(error_of({{{0, 0}, {2, 0}}}), "placement[0][1]");                     // no such lane
  EXPECT_EQ(error_of({{{0, 0}, {1, 0}}, {{0, -1}, {0, 0}}}), "placement[1][0]");  // no such slot
  EXPECT_EQ(error_of({{{1, 1}, {1, 1}}}), "placement[0][1]");                     // slot taken
  EXPECT_EQ(error_of({{{0, 0}, {0, 1}}, {{0, 0}}}), "placement[1]");              // ragged
  EXPECT_EQ(ExpertPlacement::from_tables({}, 0, 1).error().field, "placement.lanes");
  EXPECT_EQ(ExpertPlacement::from_tables({}, 1, 0).error().field, "placement.slots_per_lane");

  auto placement = ExpertPlacement::contiguous(1, 4, 2);
  const auto before = placement.to_tables();
  const std::vector<ExpertHome> clash(4, ExpertHome{0, 0});
  EXPECT_FALSE(placement.set_layer(0, clash).has_value());
  EXPECT_EQ(placement.set_layer(1, before[0]).error().field, "placement[1]");
  EXPECT_EQ(placement.to_tables(), before);  // nothing changed
}

}  // namespace
}  // namespace millrace::parallel
