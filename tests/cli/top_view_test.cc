// The screens of `millrace top`, written down by hand, and answers that are not what they should
// be.
#include "cli/top_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/text_row.h"
#include "net/text/utf8.h"

namespace millrace::cli {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr TopStyle kPlain{.width = 80, .color = false, .unicode = false};

// Two stages of two lanes, the second stage's second worker silent.
json answer() {
  return json::parse(R"({
    "format": "millrace-status/1", "time_unix_s": 1.0,
    "service": {"model": "sample", "version": "0.1.0", "uptime_s": 200.0, "ready": true,
                "reason": "", "draining": false, "max_context_tokens": 1024},
    "queue": {"waiting": 20, "waiting_limit": 256, "prompt_tokens": 900,
              "prompt_tokens_limit": 1000, "timeout_s": 30, "retry_after_s": 1},
    "load": {"running": 16, "waiting_in_cells": 3, "kv_tokens_used": 12345, "kv_tokens": 28000},
    "rates": {"window_s": 5, "generated_tokens_per_s": 1234.6, "prompt_tokens_per_s": 99.96,
              "finished_per_s": 12.34},
    "latency": {"window_s": 60,
      "ttft": {"count": 1234, "p50_ms": 12.34, "p90_ms": 250.4, "p99_ms": 1234.0},
      "itl": {"count": 0, "p50_ms": null, "p90_ms": null, "p99_ms": null},
      "e2e": {"count": 7, "p50_ms": 12345.0, "p90_ms": 12345.0, "p99_ms": 99.96},
      "queue": {"count": 7, "p50_ms": 0.0, "p90_ms": 1.0, "p99_ms": 2.0}},
    "errors": {"window_s": 60, "failed": 2, "rejected": 1,
      "failed_total": {"cell_lost": 2, "protocol": 0}, "rejected_total": {"queue_full": 1}},
    "history": {"step_s": 1, "generated_tokens_per_s": [0, 1, 400, 800], "running": [], "waiting": []},
    "cells": [{"id": "cell-0", "state": "healthy", "reason": "", "epoch": 2, "restarts": 1,
      "losses": 1, "heartbeat_age_s": 0.31, "progress_age_s": 0, "stages": 2, "lanes": 2,
      "running": 16, "waiting": 3, "max_sequences": 64, "kv_tokens_used": 12345,
      "kv_tokens": 28000, "kv_dtype": "bf16", "steps": 10, "preemptions": 0, "start_s": 1,
      "steps_per_s": 120.4, "generated_tokens_per_s": 1234.6, "prompt_tokens_per_s": 345.0,
      "busy_ratio": 0.951, "pipeline_bubble_ratio": 0.1,
      "workers": [
        {"stage": 0, "lane": 0, "busy_ratio": 0.95, "exchange_ratio": 0.12,
         "pipeline_wait_ratio": 0.03, "expert_rows_per_s": 5, "expert_load_ratio": 1.3,
         "first_moe_layer": 2, "layer_load_ratio": [1.0, 2.0, null]},
        {"stage": 0, "lane": 1, "busy_ratio": 1.0, "exchange_ratio": 1.0,
         "pipeline_wait_ratio": 0, "expert_rows_per_s": 5, "expert_load_ratio": 0.7,
         "first_moe_layer": 2, "layer_load_ratio": [1.0, 0.01, null]},
        {"stage": 1, "lane": 0, "busy_ratio": 0.5, "exchange_ratio": 0.0,
         "pipeline_wait_ratio": 0.25, "expert_rows_per_s": 0, "expert_load_ratio": null,
         "first_moe_layer": null, "layer_load_ratio": []}],
      "imbalance": [{"layer": 2, "experts": 1.5, "lanes": 1.0},
                    {"layer": 3, "experts": 3.25, "lanes": 2.0}]}]})");
}

TEST(TopView, AFrameAsWrittenByHand) {
  const TopFrame frame = draw_status(answer(), "http://h:1", "", kPlain);
  EXPECT_THAT(
      frame.head,
      ElementsAre(
          "millrace sample 0.1.0, up 3 min  Ready                                http://h:1", "",
          "Out 1,235 tokens/s   In 100 tokens/s   12.3 answers/s   2 failed, 1 refused in 1",
          " .=@ tokens/s, at most 800",
          "Running 16 of 64        KV    [||||      ]  44%  12,345 of 28,000 tokens",
          "Waiting 23              Queue [||||||||| ]  90%  20 of 256 here, 3 in cells",
          "Last 1 min             p50       p90       p99     count",
          "First token        12.3 ms    250 ms    1.23 s     1,234",
          "Between tokens           -         -         -         0",
          "Whole answer        12.3 s    12.3 s    100 ms         7",
          "In the queue        0.0 ms    1.0 ms    2.0 ms         7",
          "Errors since the start: cell_lost 2 queue_full 1"));
  EXPECT_THAT(
      frame.body,
      ElementsAre(
          "Workers: busy, load (1 is even), x exchange, w pipeline wait, load by layer", "",
          "cell-0 healthy  epoch 2, heard 0.3 s ago, 1 restart",
          "out 1,235/s  in 345/s  120 steps/s  16 of 64 running  3 waiting  KV 44%  busy 95",
          "          lane 0                             lane 1",
          "stage 0   95% 1.30 x12% w3%  =@             100% 0.70 x100%w0%  =. ",
          "stage 1   50%    - x0%  w25%                   no report",
          "layer 3 is the least even: busiest lane 2.00, busiest expert 3.25 of the average"));
}

TEST(TopView, CellsInTroubleComeFirstAndAGoneOneHasNoWorkers) {
  json status = answer();
  json gone = status["cells"][0];
  gone["id"] = "cell-1";
  gone["state"] = "gone";
  gone["reason"] = "connection lost";
  gone["heartbeat_age_s"] = 75;
  status["cells"].push_back(gone);
  const TopFrame frame = draw_status(status, "", "", kPlain);
  ASSERT_GT(frame.body.size(), 5U);
  EXPECT_EQ(frame.body[2], "cell-1 gone  epoch 2, left 1 min ago, 1 restart");
  EXPECT_EQ(frame.body[3], "connection lost");
  EXPECT_EQ(frame.body[5].substr(0, 14), "cell-0 healthy");
}

TEST(TopView, StatesOfTheServiceAndTheNotice) {
  json status = answer();
  status["service"]["ready"] = false;
  status["service"]["reason"] = "no cell is connected";
  EXPECT_THAT(draw_status(status, "", "", kPlain).head[0],
              HasSubstr("Not ready: no cell is connected"));
  status["service"]["draining"] = true;
  const TopFrame frame = draw_status(status, "", "trying again", kPlain);
  EXPECT_THAT(frame.head[0], HasSubstr("Draining"));
  EXPECT_EQ(frame.head[1], "trying again");
  EXPECT_THAT(draw_waiting("http://h:1", "refused", kPlain).head,
              ElementsAre("millrace" + std::string(62, ' ') + "http://h:1", "refused"));
}

// Columns that a terminal uses: escape sequences none, other characters one each.
std::size_t columns(const std::string& line) {
  std::string seen;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\x1b') {
      i = line.find('m', i);
      continue;
    }
    seen += line[i];
  }
  EXPECT_FALSE(text::find_invalid_utf8(seen)) << seen;
  return text::count_code_points(seen);
}

TEST(TopView, NoLineIsWiderThanTheTerminal) {
  json status = answer();
  json& cell = status["cells"][0];
  cell["lanes"] = 19;
  json worker = cell["workers"][0];
  worker["layer_load_ratio"] = std::vector<double>(38, 1.1);
  for (int lane = 2; lane < 19; ++lane) {
    worker["lane"] = lane;
    cell["workers"].push_back(worker);
  }
  for (int width = 40; width <= 260; ++width) {
    const TopStyle style{.width = width, .color = width % 2 == 0, .unicode = width % 3 == 0};
    const TopFrame frame = draw_status(status, "http://127.0.0.1:8000", "", style);
    std::string all;
    for (const auto* lines : {&frame.head, &frame.body}) {
      for (const std::string& line : *lines) {
        EXPECT_LE(columns(line), static_cast<std::size_t>(width)) << line;
        all += line + "\n";
      }
    }
    for (int lane = 0; lane < 19; ++lane) {
      EXPECT_THAT(all, HasSubstr("lane " + std::to_string(lane)));
    }
  }
}

TEST(TopView, TextsOfTheAnswerCannotSteerTheTerminal) {
  json status = answer();
  status["service"]["model"] =
      "\x1b[2J\x9b"
      "evil\n";
  status["cells"][0]["id"] = "\x07 id\xc3\xa9";
  status["cells"][0]["reason"] = "a\tb";
  status["errors"]["failed_total"]["\x1b]0;x\x07"] = 3;
  const TopFrame frame = draw_status(status, "http://h\x1b", "n\x1b", kPlain);
  for (const auto* lines : {&frame.head, &frame.body}) {
    for (const std::string& line : *lines) {
      EXPECT_TRUE(std::ranges::all_of(line, [](char c) { return c >= ' ' && c <= '~'; })) << line;
    }
  }
  EXPECT_EQ(frame.head[0].substr(0, 22), "millrace ?[2J?evil? 0.");
}

// Every value of the answer is replaced by every other kind, and left out.
TEST(TopView, NoAnswerIsTooOddToDraw) {
  const json whole = answer();
  const std::vector<json> odd = {nullptr,
                                 true,
                                 -1,
                                 1e300,
                                 "text",
                                 json::array(),
                                 json::object(),
                                 json::array({nullptr, json::object(), 3})};
  int drawn = 0;
  const json flat = whole.flatten();
  for (const auto& [path, value] : flat.items()) {
    for (json::json_pointer at(path); !at.empty(); at.pop_back()) {
      for (const json& other : odd) {
        json status = whole;
        status[at] = other;
        drawn += static_cast<int>(draw_status(status, "", "", kPlain).head.size() >= 11);
      }
      json status = whole;
      json& parent = status[at.parent_pointer()];
      if (parent.is_object()) parent.erase(at.back());
      drawn += static_cast<int>(draw_status(status, "", "", kPlain).head.size() >= 11);
    }
  }
  EXPECT_GT(drawn, 1000);
  for (const json& other : odd) EXPECT_GE(draw_status(other, "", "", kPlain).head.size(), 11U);
}

TEST(TextRow, BarsAndMeters) {
  const std::vector<double> values = {-1, 0, 0.001, 0.5, 1, 9};
  EXPECT_EQ(bars(values, 1, false), "  .=@@");
  EXPECT_EQ(bars(values, 1, true), "  \u2581\u2584\u2588\u2588");
  EXPECT_EQ(bars({}, 0, true), "");
  EXPECT_EQ(bars(std::vector<double>{0, 0}, 0, false), "  ");
  EXPECT_EQ(meter(0.25, 4, false), "[|   ]");
  EXPECT_EQ(meter(7, 2, true), "[\u2588\u2588]");
}

TEST(TextRow, StylesTakeNoColumnsAndWidthHolds) {
  TextRow row(6, true);
  row.put("ab", Ink::kStrong).to(4).put("\u2581\u2582\u2583", Ink::kBad).put("no");
  EXPECT_EQ(row.text(), "\x1b[1mab\x1b[0m  \x1b[1;31m\u2581\u2582\x1b[0m");
  EXPECT_EQ(row.room(), 0);
}

}  // namespace
}  // namespace millrace::cli
