// What a cell's samples say of its last seconds, against values worked out by hand.
#include "net/status_cell.h"

#include <gtest/gtest.h>

namespace millrace::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const StatusWindow<CellSample>::Clock::time_point kStart{};

CellTelemetry::Worker worker(std::uint32_t lane, std::uint64_t step_ms, std::uint64_t exchange_ms) {
  return {.stage = 0,
          .lane = lane,
          .step_ns = step_ms * 1'000'000,
          .exchange_ns = exchange_ms * 1'000'000,
          .pipeline_wait_ns = 0,
          .first_moe_layer = 2,
          .moe_layers = 2};
}

CellSample sample(milliseconds at, std::uint64_t tokens, std::vector<CellTelemetry::Worker> workers,
                  std::vector<CellTelemetry::ExpertLoad> rows) {
  CellSample s{.at = kStart + at, .status = {}, .telemetry = {}};
  s.status.generated_tokens = tokens;
  s.telemetry.workers = std::move(workers);
  s.telemetry.expert_load = std::move(rows);
  return s;
}

class StatusCell : public testing::Test {
 protected:
  StatusCell() {
    view_.info.stages = 1;
    view_.info.lanes = 2;
  }
  Json status() const {
    return status_of_cell(
        {.view = view_, .samples = samples_, .now = samples_.latest().at + milliseconds(10)});
  }

  CellView view_;
  StatusWindow<CellSample> samples_{seconds(60), 100};
};

TEST_F(StatusCell, SharesAndRatiosOfTwoSamples) {
  samples_.add(sample(seconds(1), 100, {worker(0, 100, 10), worker(1, 200, 20)},
                      {{2, 0, 10}, {2, 1, 10}, {3, 0, 5}, {3, 1, 0}}));
  samples_.add(sample(seconds(3), 500, {worker(0, 1100, 210), worker(1, 2200, 20)},
                      {{2, 0, 40}, {2, 1, 20}, {3, 0, 5}, {3, 1, 0}}));
  const Json cell = status();
  EXPECT_EQ(cell["generated_tokens_per_s"], 200);
  ASSERT_EQ(cell["workers"].size(), 2U);
  const Json& first = cell["workers"][0];
  EXPECT_EQ(first["busy_ratio"], 0.5);
  EXPECT_EQ(first["exchange_ratio"], 0.1);
  EXPECT_EQ(first["expert_rows_per_s"], 15);   // 30 rows in 2 s
  EXPECT_EQ(first["expert_load_ratio"], 1.5);  // 30 of 40 rows, 20 would be even
  EXPECT_EQ(first["layer_load_ratio"], Json::parse("[1.5, null]"));  // layer 3 had none
  EXPECT_EQ(cell["workers"][1]["busy_ratio"], 1);
  EXPECT_EQ(cell["workers"][1]["expert_load_ratio"], 0.5);
}

// The first seconds of a cell: samples without reports, then the first, then the second. Shares are
// over the time between the two reports, not 0, and not over time that nobody measured.
TEST_F(StatusCell, ReportsThatBeginLaterThanTheSamples) {
  samples_.add(sample(seconds(1), 0, {}, {}));
  EXPECT_EQ(status()["workers"], Json::array());
  samples_.add(sample(seconds(2), 0, {worker(0, 50, 0)}, {}));
  samples_.add(
      sample(seconds(3), 0, {worker(0, 900, 0), worker(1, 900, 0)}, {{2, 0, 7}, {2, 1, 7}}));
  EXPECT_EQ(status()["workers"], Json::array());
  samples_.add(
      sample(seconds(4), 60, {worker(0, 1800, 0), worker(1, 1400, 0)}, {{2, 0, 17}, {2, 1, 37}}));
  const Json cell = status();
  EXPECT_EQ(cell["generated_tokens_per_s"], 20);  // the cell's own are over all three seconds
  ASSERT_EQ(cell["workers"].size(), 2U);
  EXPECT_EQ(cell["workers"][0]["busy_ratio"], 0.9);
  EXPECT_EQ(cell["workers"][1]["busy_ratio"], 0.5);
  EXPECT_EQ(cell["workers"][0]["expert_rows_per_s"], 10);
  EXPECT_EQ(cell["workers"][1]["expert_load_ratio"], 1.5);
}

TEST_F(StatusCell, OnlyTheLastFiveSecondsCount) {
  samples_.add(sample(seconds(0), 0, {worker(0, 0, 0)}, {}));
  samples_.add(sample(seconds(5), 0, {worker(0, 5000, 0)}, {}));
  samples_.add(sample(seconds(10), 50, {worker(0, 6000, 0)}, {}));
  EXPECT_EQ(status()["workers"][0]["busy_ratio"], 0.2);
  EXPECT_EQ(status()["generated_tokens_per_s"], 10);
}

TEST_F(StatusCell, AnOldSampleSaysNothing) {
  samples_.add(sample(seconds(1), 0, {worker(0, 0, 0)}, {}));
  samples_.add(sample(seconds(2), 50, {worker(0, 500, 0)}, {}));
  const Json cell = status_of_cell(
      {.view = view_, .samples = samples_, .now = samples_.latest().at + milliseconds(5001)});
  EXPECT_EQ(cell["workers"], Json::array());
  EXPECT_TRUE(cell["generated_tokens_per_s"].is_null());
}

// 10 observations up to 1, 10 from 1 to 2, 20 above: the median is the end of the second bucket.
TEST(BucketQuantile, InterpolatesAsPrometheusDoes) {
  const std::vector<double> bounds = {1, 2};
  const std::vector<std::uint64_t> counts = {10, 10, 20};
  EXPECT_DOUBLE_EQ(*bucket_quantile(bounds, counts, 0.125), 0.5);
  EXPECT_DOUBLE_EQ(*bucket_quantile(bounds, counts, 0.375), 1.5);
  EXPECT_DOUBLE_EQ(*bucket_quantile(bounds, counts, 0.5), 2);
  EXPECT_DOUBLE_EQ(*bucket_quantile(bounds, counts, 0.99), 2);  // above all bounds: the last one
  EXPECT_FALSE(bucket_quantile(bounds, std::vector<std::uint64_t>{0, 0, 0}, 0.5));
}

}  // namespace
}  // namespace millrace::net
