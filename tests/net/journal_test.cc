#include "net/journal.h"

#include <gtest/gtest.h>

namespace millrace::net {
namespace {

const Assignment kCellA{"a", 3};

SequenceRequest request(RequestId id, std::uint32_t max_new = 4) {
  return {.id = id, .tokens = {10, 11, 12}, .prompt_tokens = 3, .max_new_tokens = max_new};
}

TokenEvent token(RequestId id, std::uint32_t index, std::int32_t value) {
  return {.id = id, .index = index, .token = {value, 0}};
}

TEST(Journal, DeliversEachIndexOnceAndInOrder) {
  Journal journal;
  journal.open(request(1));
  journal.assign(1, kCellA);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kDeliver);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kDuplicate);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 1, 51)), TokenVerdict::kDeliver);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kDuplicate);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 3, 53)), TokenVerdict::kBroken);
  EXPECT_EQ(journal.find(1)->next_index(), 2U);
  EXPECT_EQ(journal.on_token(kCellA, token(2, 0, 50)), TokenVerdict::kUnknown);
  journal.close(1);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 2, 52)), TokenVerdict::kUnknown);
  const JournalStats& s = journal.stats();
  EXPECT_EQ(s.delivered, 2U);
  EXPECT_EQ(s.duplicates, 2U);
  EXPECT_EQ(s.broken, 1U);
  EXPECT_EQ(s.unknown, 2U);
}

TEST(Journal, OnlyTheAssignedCellAndEpochCount) {
  Journal journal;
  journal.open(request(1));
  EXPECT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kStale);  // not assigned yet
  journal.assign(1, kCellA);
  EXPECT_EQ(journal.on_token({"a", 2}, token(1, 0, 50)), TokenVerdict::kStale);
  EXPECT_EQ(journal.on_token({"a", 4}, token(1, 0, 50)), TokenVerdict::kStale);
  EXPECT_EQ(journal.on_token({"b", 3}, token(1, 0, 50)), TokenVerdict::kStale);
  EXPECT_EQ(journal.find(1)->next_index(), 0U);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kDeliver);
  EXPECT_EQ(journal.stats().stale, 4U);
  journal.unassign(1);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 1, 51)), TokenVerdict::kStale);
  EXPECT_EQ(journal.find(1)->submissions, 1U);
}

TEST(Journal, MoreTokensThanAskedForBreakTheSequence) {
  Journal journal;
  journal.open(request(1, 1));
  journal.assign(1, kCellA);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kDeliver);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 1, 51)), TokenVerdict::kBroken);
}

TEST(Journal, WhoGivesUpGivesNoToken) {
  Journal journal;
  journal.open(request(1));
  journal.assign(1, kCellA);
  TokenEvent event = token(1, 0, 50);
  event.finish = FinishReason::kCancelled;
  EXPECT_EQ(journal.on_token(kCellA, event), TokenVerdict::kBroken);
  EXPECT_EQ(journal.find(1)->next_index(), 0U);
  event.has_token = false;
  EXPECT_EQ(journal.on_token(kCellA, event), TokenVerdict::kDeliver);
}

TEST(Journal, EndsWithoutATokenMustFitWhenClean) {
  Journal journal;
  journal.open(request(1));
  journal.assign(1, kCellA);
  TokenEvent end{.id = 1, .index = 1, .has_token = false, .finish = FinishReason::kStop};
  EXPECT_EQ(journal.on_token(kCellA, end), TokenVerdict::kBroken);  // token 0 is missing
  end.index = 0;
  EXPECT_EQ(journal.on_token(kCellA, end), TokenVerdict::kDeliver);
  end.index = 9;
  end.finish = FinishReason::kError;
  EXPECT_EQ(journal.on_token(kCellA, end), TokenVerdict::kDeliver);
}

// What C2 needs: a replay is the prompt, then exactly what the client has, with limits unchanged.
TEST(Journal, ReplayIsPromptPlusDelivered) {
  Journal journal;
  SequenceRequest r = request(1);
  r.sampling.seed = 7;
  r.sampling.prompt_logprobs = true;
  r.stop_token_ids = {2};
  journal.open(r);
  journal.assign(1, kCellA);
  ASSERT_TRUE(journal.resubmit_request(1));
  EXPECT_EQ(*journal.resubmit_request(1), r);
  ASSERT_EQ(journal.on_prompt_logprobs(kCellA, {.id = 1, .targets = {{11, 0}, {12, 0}}}),
            TokenVerdict::kDeliver);
  ASSERT_EQ(journal.on_token(kCellA, token(1, 0, 50)), TokenVerdict::kDeliver);
  ASSERT_EQ(journal.on_token(kCellA, token(1, 1, 51)), TokenVerdict::kDeliver);
  ASSERT_EQ(journal.on_token(kCellA, token(1, 1, 99)), TokenVerdict::kDuplicate);
  SequenceRequest expected = r;
  expected.tokens = {10, 11, 12, 50, 51};
  expected.sampling.prompt_logprobs = false;
  const auto replay = journal.resubmit_request(1);
  ASSERT_TRUE(replay);
  EXPECT_EQ(*replay, expected);
  EXPECT_EQ(journal.resubmit_request(2).error().code, ErrorCode::kNotFound);

  // On the next cell the sequence goes on at index 2; the old cell's late token is stale.
  const Assignment next{"b", 1};
  journal.assign(1, next);
  EXPECT_EQ(journal.find(1)->submissions, 2U);
  EXPECT_EQ(journal.on_token(kCellA, token(1, 2, 52)), TokenVerdict::kStale);
  EXPECT_EQ(journal.on_token(next, token(1, 1, 51)), TokenVerdict::kDuplicate);
  EXPECT_EQ(journal.on_token(next, token(1, 2, 52)), TokenVerdict::kDeliver);
}

TEST(Journal, PromptLogprobsComeOnceBeforeTheFirstTokenAndFitThePrompt) {
  Journal journal;
  SequenceRequest r = request(1);
  r.sampling.prompt_logprobs = true;
  journal.open(r);
  journal.assign(1, kCellA);
  const PromptLogprobsEvent good{.id = 1, .targets = {{11, 0}, {12, 0}}};
  EXPECT_EQ(journal.on_prompt_logprobs(kCellA, {.id = 1, .targets = {{11, 0}}}),
            TokenVerdict::kBroken);
  EXPECT_EQ(journal.on_prompt_logprobs({"a", 2}, good), TokenVerdict::kStale);
  EXPECT_EQ(journal.on_prompt_logprobs(kCellA, good), TokenVerdict::kDeliver);
  EXPECT_EQ(journal.on_prompt_logprobs(kCellA, good), TokenVerdict::kDuplicate);
  journal.open(request(2));
  journal.assign(2, kCellA);
  EXPECT_EQ(journal.on_prompt_logprobs(kCellA, {.id = 2, .targets = {{11, 0}, {12, 0}}}),
            TokenVerdict::kBroken);  // nobody asked
}

}  // namespace
}  // namespace millrace::net
