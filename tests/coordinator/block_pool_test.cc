// What the prefix cache is made of: the index of blocks, the pool, snapshots of conv state.
#include "coordinator/block_pool.h"

#include <gtest/gtest.h>

#include "coordinator/prefix_index.h"
#include "coordinator/state_snapshots.h"

namespace millrace {
namespace {

using Tokens = std::vector<std::int32_t>;

TEST(PrefixIndex, FindsABlockByAllTokensUpToItsEnd) {
  PrefixIndex index(4, 2);
  const auto first = index.insert(PrefixIndex::kRoot, Tokens{1, 2}, 3);
  const auto second = index.insert(first, Tokens{3, 4}, 0);
  EXPECT_EQ(index.find(PrefixIndex::kRoot, Tokens{1, 2})->block, 3U);
  EXPECT_EQ(index.find(first, Tokens{3, 4})->node, second);
  EXPECT_FALSE(index.find(PrefixIndex::kRoot, Tokens{3, 4})) << "these tokens, behind others";
  EXPECT_FALSE(index.find(first, Tokens{3, 5}));
  EXPECT_EQ(index.block_of(second), 0U);
  EXPECT_FALSE(index.block_of(PrefixIndex::kRoot));
}

TEST(PrefixIndex, ABlockUsedAgainIsAnotherNode) {
  PrefixIndex index(2, 2);
  const auto old_node = index.insert(PrefixIndex::kRoot, Tokens{1, 2}, 1);
  const auto behind = index.insert(old_node, Tokens{3, 4}, 0);
  index.erase(1);
  EXPECT_FALSE(index.holds(1));
  EXPECT_FALSE(index.find(PrefixIndex::kRoot, Tokens{1, 2}));
  const auto new_node = index.insert(PrefixIndex::kRoot, Tokens{7, 8}, 1);
  EXPECT_NE(new_node, old_node);
  EXPECT_FALSE(index.block_of(old_node)) << "not the block that has its number now";
  EXPECT_FALSE(index.find(new_node, Tokens{3, 4})) << "what was behind the old one";
  index.erase(0);
  EXPECT_FALSE(index.block_of(behind));
}

TEST(BlockPool, AllocatesAllOrNothing) {
  BlockPool pool(3, 4);
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.allocate(2, blocks));
  EXPECT_FALSE(pool.allocate(2, blocks));
  EXPECT_EQ(blocks.size(), 2U);
  EXPECT_EQ(pool.available(), 1U);
  pool.release(blocks);
  EXPECT_EQ(pool.available(), 3U);
  EXPECT_DEATH(pool.release(blocks), "CHECK failed");
}

// Fills `count` blocks behind each other, the i-th with tokens (i, i), and gives them up.
std::vector<BlockPool::Node> leave_chain(BlockPool& pool, std::uint32_t count, std::int32_t first) {
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.allocate(count, blocks));
  std::vector<BlockPool::Node> nodes;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto token = first + static_cast<std::int32_t>(i);
    nodes.push_back(pool.publish(nodes.empty() ? PrefixIndex::kRoot : nodes.back(),
                                 Tokens{token, token}, blocks[i]));
  }
  pool.release(blocks);
  return nodes;
}

TEST(BlockPool, WhatWasUsedLongestAgoGoesFirstAndEndsGoBeforeBeginnings) {
  BlockPool pool(5, 2);
  const auto a = leave_chain(pool, 3, 10);
  const auto b = leave_chain(pool, 2, 20);
  EXPECT_EQ(pool.available(), 5U);
  EXPECT_EQ(pool.idle(), 5U);
  std::vector<BlockId> taken;
  ASSERT_TRUE(pool.allocate(1, taken));
  EXPECT_TRUE(pool.knows(a[1]));
  EXPECT_FALSE(pool.knows(a[2])) << "the end of the older chain";
  pool.touch(a[1]);
  pool.touch(a[0]);
  ASSERT_TRUE(pool.allocate(2, taken));
  EXPECT_FALSE(pool.knows(b[0]) || pool.knows(b[1])) << "older now than what was touched";
  ASSERT_TRUE(pool.allocate(1, taken));
  EXPECT_TRUE(pool.knows(a[0]));
  EXPECT_FALSE(pool.knows(a[1]));
}

TEST(BlockPool, AFoundBlockMayBeHeldByManyAndIsNotTakenMeanwhile) {
  BlockPool pool(2, 2);
  leave_chain(pool, 1, 10);
  const BlockId block = pool.find(PrefixIndex::kRoot, Tokens{10, 10})->block;
  pool.hold(block);
  pool.hold(block);
  EXPECT_EQ(pool.available(), 1U);
  EXPECT_EQ(pool.idle(), 0U);
  std::vector<BlockId> taken;
  EXPECT_FALSE(pool.allocate(2, taken));
  pool.release(std::vector{block});
  EXPECT_EQ(pool.available(), 1U);
  pool.release(std::vector{block});
  EXPECT_EQ(pool.idle(), 1U);
  EXPECT_DEATH(pool.release(std::vector{block}), "CHECK failed");
}

TEST(BlockPool, WhatIsForgottenIsNotFoundAndFreeOnceGivenUp) {
  BlockPool pool(3, 2);
  leave_chain(pool, 2, 10);
  const BlockId first = pool.find(PrefixIndex::kRoot, Tokens{10, 10})->block;
  pool.hold(first);
  pool.forget(std::vector{first});
  EXPECT_FALSE(pool.find(PrefixIndex::kRoot, Tokens{10, 10}));
  EXPECT_EQ(pool.available(), 2U);
  pool.release(std::vector{first});
  EXPECT_EQ(pool.available(), 3U);
  EXPECT_EQ(pool.idle(), 1U) << "the one behind it, which nobody finds";
}

TEST(StateSnapshots, AreFoundByStepsAfterTheOneThatSavesThem) {
  StateSnapshots snapshots(2);
  const auto a = snapshots.reserve(5);
  ASSERT_TRUE(a);
  EXPECT_FALSE(snapshots.holds(10));
  snapshots.bind(*a, 10);
  EXPECT_TRUE(snapshots.holds(10));
  EXPECT_FALSE(snapshots.find(10, 5)) << "the step in which it is saved";
  EXPECT_EQ(snapshots.find(10, 6), a);
  EXPECT_FALSE(snapshots.find(11, 6));
}

TEST(StateSnapshots, WhatWasUsedLongestAgoMakesRoom) {
  StateSnapshots snapshots(2);
  const auto save = [&](std::uint64_t step, PrefixIndex::Node node) {
    const auto snapshot = snapshots.reserve(step);
    ASSERT_TRUE(snapshot) << step;
    snapshots.bind(*snapshot, node);
  };
  save(1, 10);
  save(2, 20);
  snapshots.touch(*snapshots.find(10, 3));
  save(3, 30);
  EXPECT_TRUE(snapshots.holds(10));
  EXPECT_FALSE(snapshots.holds(20));
  snapshots.drop(30);
  EXPECT_TRUE(snapshots.holds(30)) << "until its room is needed";
  save(4, 40);
  EXPECT_TRUE(snapshots.holds(10));
  EXPECT_FALSE(snapshots.holds(30));
}

TEST(StateSnapshots, AStepSavesIntoEachOnce) {
  StateSnapshots snapshots(2);
  const auto a = snapshots.reserve(7);
  const auto b = snapshots.reserve(7);
  EXPECT_NE(a, b);
  EXPECT_FALSE(snapshots.reserve(8)) << "both are reserved";
  snapshots.release(*a);
  snapshots.bind(*b, 10);
  snapshots.drop(10);
  EXPECT_FALSE(snapshots.reserve(7)) << "step 7 saves into both";
  EXPECT_EQ(snapshots.reserve(8), b);
  EXPECT_EQ(snapshots.reserve(8), a);
  EXPECT_FALSE(StateSnapshots(0).reserve(1));
}

TEST(StateSnapshots, OneStateOfABeginningIsEnough) {
  StateSnapshots snapshots(2);
  const auto a = snapshots.reserve(1);
  const auto b = snapshots.reserve(1);
  snapshots.bind(*a, 10);
  snapshots.bind(*b, 10);
  EXPECT_EQ(snapshots.find(10, 2), a);
  EXPECT_EQ(snapshots.reserve(2), b);
}

}  // namespace
}  // namespace millrace
