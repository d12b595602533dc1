#include "worker/step_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "kernels/kv_write.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

BatchLimits limits() { return {8, 3, 64, 10, 16, 2, 100}; }

LanePlan start(SlotId slot) {
  LanePlan plan;
  plan.starts.push_back({slot, {}, 1, {}});
  return plan;
}

Chunk chunk(SlotId slot, std::uint32_t position, std::vector<std::int32_t> tokens,
            std::vector<BlockId> blocks = {}) {
  Chunk c;
  c.slot = slot;
  c.position = position;
  c.tokens = std::move(tokens);
  c.new_blocks = std::move(blocks);
  return c;
}

TEST(StepBatch, LaysChunksOutByToken) {
  StepBatch batch(limits());
  LanePlan plan = start(2);
  plan.starts.push_back({0, {}, 1, {}});
  plan.chunks = {chunk(2, 0, {5, 6, 7}, {9}), chunk(0, 0, {8}, {4})};
  plan.chunks[1].sample = true;
  batch.load(plan);
  EXPECT_EQ(batch.tokens(), 4);
  EXPECT_THAT(std::vector(batch.ids().begin(), batch.ids().end()), ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(std::vector(batch.positions().begin(), batch.positions().end()),
              ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(std::vector(batch.sequences().begin(), batch.sequences().end()),
              ElementsAre(0, 0, 0, 1));
  EXPECT_THAT(std::vector(batch.kv_slots().begin(), batch.kv_slots().end()),
              ElementsAre(9 * 16, 9 * 16 + 1, 9 * 16 + 2, 4 * 16));
  ASSERT_EQ(batch.segments().size(), 2U);
  EXPECT_EQ(batch.segments()[0].slot, 2);
  EXPECT_EQ(batch.segments()[1].row_begin, 3);
  EXPECT_EQ(batch.block_tables()[0][0], 9U);
  ASSERT_EQ(batch.logit_rows().size(), 1U);
  EXPECT_EQ(batch.logit_rows()[0].row, 3U);
  EXPECT_EQ(batch.logit_rows()[0].position, 1U);

  LanePlan next;
  next.chunks = {chunk(2, 3, std::vector<std::int32_t>(8, 1))};
  batch.load(next);
  LanePlan third;
  third.chunks = {chunk(2, 11, std::vector<std::int32_t>(6, 1), {1})};
  batch.load(third);  // crosses into its second block
  EXPECT_EQ(batch.kv_slots()[4], 9 * 16 + 15);
  EXPECT_EQ(batch.kv_slots()[5], 1 * 16);
}

TEST(StepBatch, PromptTargetsAskForLogits) {
  StepBatch batch(limits());
  LanePlan plan = start(1);
  plan.chunks = {chunk(1, 0, {5, 6, 7}, {0})};
  plan.chunks[0].prompt_targets = {-1, 7, -1};
  batch.load(plan);
  ASSERT_EQ(batch.logit_rows().size(), 1U);
  EXPECT_EQ(batch.logit_rows()[0].row, 1U);
  EXPECT_EQ(batch.logit_rows()[0].prompt_target, 7);
  EXPECT_EQ(batch.logit_rows()[0].position, 2U);
  EXPECT_FALSE(batch.logit_rows()[0].sample);
}

TEST(StepBatch, APlanThatContradictsItselfIsRefusedByName) {
  struct Case {
    LanePlan plan;
    const char* words;
  };
  std::vector<Case> cases;
  const auto add = [&](std::vector<Chunk> chunks, const char* words) {
    LanePlan plan = start(1);
    plan.chunks = std::move(chunks);
    cases.push_back({plan, words});
  };
  cases.push_back({start(3), "slot 3 of 3"});
  add({chunk(7, 0, {1}, {0})}, "slot 7 of 3");
  add({chunk(0, 0, {1}, {0})}, "never started");
  add({chunk(1, 0, {}, {})}, "without tokens");
  add({chunk(1, 2, {1}, {0})}, "goes on at 2 instead of 0");
  add({chunk(1, 0, {1})}, "0 blocks and gets 0 for 1 tokens");
  add({chunk(1, 0, {1}, {0, 1})}, "0 blocks and gets 2 for 1 tokens");
  add({chunk(1, 0, {1}, {10})}, "block 10 of 10");
  add({chunk(1, 0, {100}, {0})}, "token 100 of 100");
  add({chunk(1, 0, {-1}, {0})}, "token -1 of 100");
  add({chunk(1, 0, std::vector<std::int32_t>(9, 1), {0})}, "more than 8 tokens");
  add({chunk(1, 0, {1}, {0}), chunk(1, 1, {1})}, "twice in one step");
  Chunk targets = chunk(1, 0, {1, 2}, {0});
  targets.prompt_targets = {1};
  add({targets}, "1 prompt targets for 2 tokens");
  targets.prompt_targets = {1, 100};
  add({targets}, "prompt target 100");
  for (const Case& c : cases) {
    StepBatch batch(limits());
    EXPECT_THAT([&] { batch.load(c.plan); }, ThrowsMessage<std::runtime_error>(HasSubstr(c.words)));
  }
}

// KV of positions [0, 20) is in blocks 7 and 3: rows before 20 read it and write none.
TEST(StepBatch, AChunkMayBeginBehindWhatIsCached) {
  StepBatch batch(limits());
  LanePlan plan = start(1);
  plan.chunks = {chunk(1, 17, {1, 2, 3, 4, 5}, {7, 3})};
  plan.chunks[0].cached = 20;
  batch.load(plan);
  EXPECT_THAT(std::vector(batch.positions().begin(), batch.positions().end()),
              ElementsAre(17, 18, 19, 20, 21));
  constexpr std::int64_t kNone = kernels::kNoKvSlot;
  EXPECT_THAT(std::vector(batch.kv_slots().begin(), batch.kv_slots().end()),
              ElementsAre(kNone, kNone, kNone, 3 * 16 + 4, 3 * 16 + 5));
  EXPECT_EQ(batch.block_tables()[0][0], 7U);

  // Later on it finds its own last block and two more computed by others.
  LanePlan later;
  later.chunks = {chunk(1, 61, {6}, {5, 8, 9})};
  later.chunks[0].cached = 64;
  batch.load(later);
  EXPECT_THAT(std::vector(batch.block_tables()[0], batch.block_tables()[0] + 4),
              ElementsAre(7, 5, 8, 9));
  EXPECT_EQ(batch.kv_slots()[0], kNone);
  LanePlan next;
  next.chunks = {chunk(1, 62, {7, 8})};
  next.chunks[0].cached = 64;
  batch.load(next);
  EXPECT_EQ(batch.kv_slots()[1], kNone);
}

TEST(StepBatch, ASlotStartsWithZerosOrASnapshot) {
  StepBatch batch(limits());
  LanePlan plan = start(2);
  plan.starts.push_back({0, {}, 1, {}});
  plan.chunks = {chunk(2, 0, {1, 2}, {7}), chunk(0, 16, {3}, {3, 4})};
  plan.chunks[1].cached = 16;
  plan.chunks[1].load = 1;
  batch.load(plan);
  ASSERT_EQ(batch.state_moves().size(), 2U);
  EXPECT_EQ(batch.state_moves()[0].slot, 2U);
  EXPECT_EQ(batch.state_moves()[0].from, -1);
  EXPECT_EQ(batch.state_moves()[1].slot, 0U);
  EXPECT_EQ(batch.state_moves()[1].from, 3 + 1) << "behind three slots";
  LanePlan next;
  next.chunks = {chunk(2, 2, {3}), chunk(0, 17, {4})};
  batch.load(next);
  EXPECT_TRUE(batch.state_moves().empty());
  next.chunks = {chunk(2, 48, {3}, {8, 9, 5})};
  next.chunks[0].cached = 48;
  next.chunks[0].load = 0;
  batch.load(next);
  ASSERT_EQ(batch.state_moves().size(), 1U);
  EXPECT_EQ(batch.state_moves()[0].from, 3);
}

TEST(StepBatch, SavesGoBehindTheSlots) {
  StepBatch batch(limits());
  LanePlan plan = start(1);
  plan.chunks = {chunk(1, 14, {1, 2, 3, 4, 5}, {7, 3})};
  plan.chunks[0].cached = 16;
  plan.chunks[0].saves = {{1, 16}, {0, 19}};
  batch.load(plan);
  const auto& saves = batch.segments()[0].saves;
  EXPECT_EQ(saves[0].slot, 4);
  EXPECT_EQ(saves[0].length, 2);
  EXPECT_EQ(saves[1].slot, 3);
  EXPECT_EQ(saves[1].length, 5);
  LanePlan next;
  next.chunks = {chunk(1, 19, {1})};
  batch.load(next);
  EXPECT_EQ(batch.segments()[0].saves[0].slot, -1);
}

TEST(StepBatch, SnapshotsThatContradictThePlanAreRefusedByName) {
  const auto refused = [](SnapshotId load, std::vector<StateSave> saves, const char* words) {
    StepBatch batch(limits());
    LanePlan plan = start(1);
    plan.chunks = {chunk(1, 14, {1, 2, 3, 4, 5}, {7, 3})};
    plan.chunks[0].cached = 16;
    plan.chunks[0].load = load;
    plan.chunks[0].saves = std::move(saves);
    EXPECT_THAT([&] { batch.load(plan); }, ThrowsMessage<std::runtime_error>(HasSubstr(words)));
  };
  refused(2, {}, "loads snapshot 2 of 2");
  refused(0, {{2, 16}}, "saves snapshot 2 of 2");
  refused(0, {{1, 17}, {1, 18}}, "snapshot 1 is saved twice");
  refused(0, {{0, 16}, {1, 17}, {0, 18}}, "saves its state 3 times");
  refused(0, {{0, 14}}, "saves its state at 14");
  refused(0, {{0, 15}}, "saves its state at 15");
  refused(0, {{0, 20}}, "saves its state at 20");
}

TEST(StepBatch, WhatIsSkippedMustBeCached) {
  const auto refused = [](std::uint32_t position, std::uint32_t cached, std::vector<BlockId> blocks,
                          const char* words) {
    StepBatch batch(limits());
    LanePlan plan = start(1);
    plan.chunks = {chunk(1, 0, {1, 2, 3, 4}, {0})};
    batch.load(plan);
    plan = {};
    plan.chunks = {chunk(1, position, {5}, std::move(blocks))};
    plan.chunks[0].cached = cached;
    EXPECT_THAT([&] { batch.load(plan); }, ThrowsMessage<std::runtime_error>(HasSubstr(words)));
  };
  refused(17, 16, {1}, "goes on at 17 instead of 4");
  refused(2, 16, {}, "goes on at 2 instead of 4");
  refused(16, 80, {1, 2, 3, 4}, "grows to 80 tokens");
  refused(13, 32, {}, "1 blocks and gets 0 for 32 tokens");
  refused(13, 32, {1, 2, 3}, "1 blocks and gets 3 for 32 tokens");
}

// The last token of a slot, for a step whose plan was made before that token was known.
TEST(StepBatch, TheTokenOfASlotIsTheOneThatItDrew) {
  BatchLimits l = limits();
  l.token_of_slot = true;
  StepBatch batch(l);
  LanePlan plan = start(1);
  plan.starts.push_back({2, {}, 1, {}});
  plan.chunks = {chunk(1, 0, {5, 6}, {0}), chunk(2, 0, {7}, {1})};
  plan.chunks[0].sample = plan.chunks[1].sample = true;
  batch.load(plan);
  batch.set_drawn(1, 42);
  LanePlan next;
  next.chunks = {chunk(1, 2, {kTokenOfSlot}), chunk(2, 1, {kTokenOfSlot})};
  next.chunks[0].sample = true;
  batch.load(next);
  EXPECT_THAT(std::vector(batch.ids().begin(), batch.ids().end()), ElementsAre(42, kTokenOfSlot))
      << "what the host was told, or what the device will look up";
  batch.set_drawn(1, 43);
  next.chunks = {chunk(1, 3, {kTokenOfSlot})};
  batch.load(next);
  EXPECT_EQ(batch.ids()[0], 43);
}

TEST(StepBatch, ASlotThatHasDrawnNoTokenCannotGoOnWithIt) {
  BatchLimits l = limits();
  l.token_of_slot = true;
  const auto refused = [&](bool allowed, bool drew, bool starts_again,
                           std::vector<std::int32_t> ids) {
    l.token_of_slot = allowed;
    StepBatch batch(l);
    LanePlan plan = start(1);
    plan.chunks = {chunk(1, 0, {5}, {0})};
    plan.chunks[0].sample = drew;
    batch.load(plan);
    batch.set_drawn(1, 42);
    LanePlan next = starts_again ? start(1) : LanePlan{};
    const std::uint32_t position = starts_again ? 0 : 1;
    next.chunks = {chunk(1, position, std::move(ids), std::vector<BlockId>(starts_again, 2))};
    try {
      batch.load(next);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const char* why = "slot 1 has drawn no token";
  EXPECT_EQ(refused(true, true, false, {kTokenOfSlot}), "accepted");
  EXPECT_THAT(refused(true, false, false, {kTokenOfSlot}), HasSubstr(why)) << "none drawn";
  EXPECT_THAT(refused(true, true, true, {kTokenOfSlot}), HasSubstr(why)) << "another sequence's";
  EXPECT_THAT(refused(true, true, false, {kTokenOfSlot, 3}), HasSubstr(why)) << "not alone";
  EXPECT_THAT(refused(false, true, false, {kTokenOfSlot}), HasSubstr("token -2 of 100"))
      << "a stage that does not draw";
}

TEST(StepBatch, ContextIsBounded) {
  BatchLimits l = limits();
  l.max_context_tokens = 4;
  StepBatch batch(l);
  LanePlan plan = start(0);
  plan.chunks = {chunk(0, 0, {1, 2, 3, 4, 5}, {0})};
  EXPECT_THAT([&] { batch.load(plan); },
              ThrowsMessage<std::runtime_error>(HasSubstr("more than the context of 4")));
}

}  // namespace
}  // namespace millrace
