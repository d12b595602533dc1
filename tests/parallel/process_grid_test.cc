#include "parallel/process_grid.h"

#include <gtest/gtest.h>

#include "tests/support/comm_cluster.h"

namespace millrace::parallel {
namespace {

TEST(ProcessGrid, RanksAndPositionsAreInverse) {
  const ProcessGrid grid = ProcessGrid::make(3, 4, 13).value();
  EXPECT_FALSE(grid.position_of(0).has_value());
  for (int rank = 1; rank < 13; ++rank) EXPECT_EQ(grid.rank_of(*grid.position_of(rank)), rank);
  EXPECT_EQ(grid.position_of(1), (GridPosition{0, 0}));
  EXPECT_EQ(grid.position_of(4), (GridPosition{0, 3}));
  EXPECT_EQ(grid.position_of(5), (GridPosition{1, 0}));
  EXPECT_EQ(grid.position_of(12), (GridPosition{2, 3}));
}

TEST(ProcessGrid, NeighboursStayInTheLane) {
  const ProcessGrid grid = ProcessGrid::make(3, 2, 7).value();
  EXPECT_EQ(grid.previous_rank({0, 1}), std::nullopt);
  EXPECT_EQ(grid.next_rank({0, 1}), 4);
  EXPECT_EQ(grid.previous_rank({2, 0}), 3);
  EXPECT_EQ(grid.next_rank({2, 0}), std::nullopt);
  EXPECT_TRUE(grid.first_stage({0, 0}));
  EXPECT_FALSE(grid.last_stage({1, 0}));
  EXPECT_TRUE(grid.last_stage({2, 1}));
}

TEST(ProcessGrid, ErrorsNameTheField) {
  EXPECT_EQ(ProcessGrid::make(0, 1, 1).error().field, "grid.stages");
  EXPECT_EQ(ProcessGrid::make(1, -2, 1).error().field, "grid.lanes");
  const auto misfit = ProcessGrid::make(2, 2, 4);
  ASSERT_FALSE(misfit.has_value());
  EXPECT_EQ(misfit.error().field, "grid.stages");
  EXPECT_NE(misfit.error().message.find("need 5 ranks"), std::string::npos);
  EXPECT_FALSE(ProcessGrid::make(1 << 30, 1 << 30, 1).has_value());  // no overflow into a fit
}

class CellCommsTest : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(Ranks, CellCommsTest, testing::ValuesIn(test::cluster_sizes()),
                         testing::PrintToStringParamName());

TEST_P(CellCommsTest, BundleMatchesTheGrid) {
  const int workers = GetParam() - 1;
  for (int stages = 1; stages <= workers; ++stages) {
    if (workers % stages != 0) continue;
    const ProcessGrid grid = ProcessGrid::make(stages, workers / stages, GetParam()).value();
    test::run_ranks(GetParam(), [&](Communicator& world) {
      const CellComms comms = make_cell_comms(world, grid);
      EXPECT_EQ(comms.world, &world);
      EXPECT_EQ(comms.position.has_value(), world.rank() != 0);
      if (!comms.position) {
        EXPECT_EQ(comms.stage, nullptr);
        EXPECT_EQ(comms.column, nullptr);
        return;
      }
      ASSERT_EQ(comms.stage->size(), grid.lanes());
      ASSERT_EQ(comms.column->size(), grid.stages());
      EXPECT_EQ(comms.stage->rank(), comms.position->lane);
      EXPECT_EQ(comms.column->rank(), comms.position->stage);
      EXPECT_EQ(comms.local_index, world.rank() - 1) << "all ranks of this test share a machine";
      EXPECT_EQ(comms.local_workers, grid.workers());
      const int mine = world.rank();
      std::vector<int> lanes(grid.lanes()), column(grid.stages());
      const auto me = std::as_bytes(std::span(&mine, 1));
      comms.stage->all_gather(me, std::as_writable_bytes(std::span(lanes)));
      comms.column->all_gather(me, std::as_writable_bytes(std::span(column)));
      for (int e = 0; e < grid.lanes(); ++e) {
        EXPECT_EQ(lanes[e], grid.rank_of({comms.position->stage, e}));
      }
      for (int p = 0; p < grid.stages(); ++p) {
        EXPECT_EQ(column[p], grid.rank_of({p, comms.position->lane}));
      }
    });
  }
}

}  // namespace
}  // namespace millrace::parallel
