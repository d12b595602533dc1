#include "monitoring/exporter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "monitoring/metrics_doc.h"

namespace millrace {
namespace {

struct Family {
  std::string type;
  std::string help;
  std::vector<std::string> samples;  // whole lines
};

// A reader of the text exposition format written from its description at prometheus.io, as the
// oracle. Fails the test on a line that the format does not have.
std::map<std::string, Family> parse(const std::string& text) {
  static const std::regex help(R"(# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+))");
  static const std::regex type(R"(# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram))");
  static const std::regex sample(
      R"(([a-zA-Z_:][a-zA-Z0-9_:]*))"
      R"re((\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\\n]|\\["\\n])*",?)*\})? (\S+))re");
  std::map<std::string, Family> families;
  std::istringstream lines(text);
  std::string current;
  for (std::string line; std::getline(lines, line);) {
    std::smatch m;
    if (std::regex_match(line, m, help)) {
      EXPECT_FALSE(families.contains(m[1])) << "two HELP lines of " << m[1];
      current = m[1];
      families[current].help = m[2];
    } else if (std::regex_match(line, m, type)) {
      EXPECT_EQ(m[1], current) << "TYPE must follow the HELP of its metric";
      families[current].type = m[2];
    } else if (std::regex_match(line, m, sample)) {
      std::string base = m[1];
      if (families[current].type == "histogram") {
        for (const char* suffix : {"_bucket", "_sum", "_count"}) {
          if (base == current + suffix) base = current;
        }
      }
      EXPECT_EQ(base, current) << "a sample outside its family: " << line;
      families[current].samples.push_back(line);
    } else {
      ADD_FAILURE() << "not a line of the format: " << line;
    }
  }
  return families;
}

// One series of every metric whose labels are open, so that all of the catalogue shows.
void touch_open_series(Exporter& e) {
  e.gauge<Metric::kCacheConfigInfo>("16", "1024", "bfloat16").set(1);
  e.gauge<Metric::kBuildInfo>("0.1.0", "cpu").set(1);
  e.counter<Metric::kHttpRequests>("/v1/completions", "200").add();
  e.gauge<Metric::kCellInfo>("a", "cpu", "mpi").set(1);
  e.gauge<Metric::kCellEpoch>("a").set(1);
  e.counter<Metric::kCellRestarts>("a").add();
  e.counter<Metric::kCellLosses>("a").add();
  e.gauge<Metric::kCellHeartbeatAge>("a").set(0.5);
  e.gauge<Metric::kCellWorkers>("a").set(4);
  e.gauge<Metric::kCellSlots>("a").set(32);
  e.gauge<Metric::kCellSlotsUsed>("a").set(2);
  e.gauge<Metric::kCellWaiting>("a").set(0);
  e.gauge<Metric::kCellKvTokens>("a").set(65'536);
  e.gauge<Metric::kCellKvTokensUsed>("a").set(512);
  e.gauge<Metric::kCellKvTokensCached>("a").set(64);
  e.counter<Metric::kCellSteps>("a").add();
  e.histogram<Metric::kStepTime>("a").observe(0.01);
  e.counter<Metric::kCellBusy>("a").add();
  e.gauge<Metric::kPipelineBubble>("a").set(0);
  e.counter<Metric::kWorkerStepTime>("a", "0", "1").add();
  e.counter<Metric::kWorkerExchangeTime>("a", "0", "1").add();
  e.counter<Metric::kWorkerPipelineWait>("a", "0", "1").add();
  e.counter<Metric::kExpertRows>("a", "2", "1").add();
  e.gauge<Metric::kExpertImbalance>("a", "2").set(1);
  e.gauge<Metric::kLaneImbalance>("a", "2").set(1);
  e.gauge<Metric::kStartPhase>("a", "load").set(1);
  e.gauge<Metric::kCellStartState>("a", "ready").set(1);
  e.gauge<Metric::kCellLoaded>("a").set(1);
  e.counter<Metric::kCellStarts>("a").add();
}

std::string type_name(MetricType t) {
  return t == MetricType::kCounter ? "counter" : t == MetricType::kGauge ? "gauge" : "histogram";
}

TEST(Catalogue, NamesAndHelpFollowPrometheusRules) {
  std::set<std::string_view> names;
  for (const MetricDesc& d : kCatalogue) {
    const std::string name(d.name);
    EXPECT_TRUE(names.insert(d.name).second) << name << " stands twice";
    EXPECT_TRUE(std::regex_match(name, std::regex("(vllm:|millrace_)[a-z][a-z0-9_]*"))) << name;
    if (d.type != MetricType::kHistogram) {  // vLLM has a histogram iteration_tokens_total
      EXPECT_EQ(d.type == MetricType::kCounter, name.ends_with("_total")) << name;
    }
    EXPECT_FALSE(name.ends_with("_sum") || name.ends_with("_count") || name.ends_with("_bucket"));
    EXPECT_EQ(d.unit == "s", name.find("_seconds") != std::string::npos) << name;
    EXPECT_TRUE(d.help.ends_with('.')) << name;
    EXPECT_EQ(d.help.find_first_of("\\\n|"), std::string_view::npos) << name;
    EXPECT_EQ(d.type == MetricType::kHistogram, !d.buckets.empty()) << name;
    EXPECT_TRUE(std::ranges::is_sorted(d.buckets, std::ranges::less_equal{})) << name;
    for (const MetricLabel& l : d.labels) {
      EXPECT_TRUE(std::regex_match(std::string(l.name), std::regex("[a-z][a-z0-9_]*"))) << l.name;
      EXPECT_NE(l.name, "le");
      EXPECT_NE(l.name, "model_name");
      EXPECT_NE(l.name, "engine");
    }
  }
}

TEST(Exporter, AHistogramTellsItsCountsInTheFormThatItTakes) {
  Exporter exporter({.model_name = "m"});
  const Histogram h = exporter.histogram<Metric::kRequestParamsN>();  // bounds 1 2 5 10 20
  h.observe(1);
  h.observe(3);
  h.observe(4);
  h.observe(99);
  EXPECT_EQ(h.counts(), (std::vector<std::uint64_t>{1, 0, 2, 0, 0, 1}));
  h.add(h.counts(), 0);
  EXPECT_EQ(h.counts(), (std::vector<std::uint64_t>{2, 0, 4, 0, 0, 2}));
  EXPECT_TRUE(Histogram().counts().empty());
}

TEST(Exporter, RendersExactlyTheCatalogue) {
  Exporter exporter({.model_name = "LiquidAI/LFM2-24B-A2B"});
  touch_open_series(exporter);
  const auto families = parse(exporter.render());
  EXPECT_EQ(families.size(), kCatalogue.size());
  for (const MetricDesc& d : kCatalogue) {
    const auto it = families.find(std::string(d.name));
    ASSERT_NE(it, families.end()) << d.name << " is not exported";
    EXPECT_EQ(it->second.type, type_name(d.type)) << d.name;
    EXPECT_EQ(it->second.help, d.help) << d.name;
    EXPECT_FALSE(it->second.samples.empty()) << d.name;
    std::set<std::string> series;
    for (const std::string& line : it->second.samples) {
      EXPECT_TRUE(series.insert(line.substr(0, line.rfind(' '))).second) << "twice: " << line;
      EXPECT_EQ(line.find("model_name=\"LiquidAI/LFM2-24B-A2B\"") != std::string::npos,
                is_vllm_metric(d))
          << line;
      EXPECT_EQ(line.find("engine=\"0\"") != std::string::npos, is_vllm_metric(d)) << line;
      for (const MetricLabel& l : d.labels) {
        EXPECT_NE(line.find(std::string(l.name) + "=\""), std::string::npos) << line;
      }
    }
    if (d.type == MetricType::kHistogram) {
      EXPECT_EQ(it->second.samples.size(), d.buckets.size() + 3) << d.name;  // +Inf, sum, count
    }
  }
}

TEST(Exporter, ClosedLabelsAreThereFromTheStart) {
  Exporter exporter({.model_name = "m"});
  const auto families = parse(exporter.render());
  EXPECT_EQ(families.at("vllm:request_success_total").samples.size(), 4U);
  EXPECT_EQ(families.at("millrace_admission_rejections_total").samples.size(), 4U);
}

TEST(Exporter, ValuesArriveUnderTheirNames) {
  Exporter exporter({.model_name = "m"});
  exporter.counter<Metric::kRequestSuccess>("length").add(3);
  exporter.counter<Metric::kRequestSuccess>("length").add();
  exporter.gauge<Metric::kKvCacheUsage>().set(0.25);
  exporter.histogram<Metric::kInterTokenLatency>().observe(0.0021);
  const std::string text = exporter.render();
  EXPECT_NE(text.find("vllm:request_success_total{engine=\"0\",model_name=\"m\","
                      "finished_reason=\"length\"} 4\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n"),
            std::string::npos);
  EXPECT_NE(text.find("vllm:inter_token_latency_seconds_bucket{engine=\"0\",model_name=\"m\",le="
                      "\"0.002\"} 0\n"),
            std::string::npos);
  EXPECT_NE(text.find("vllm:inter_token_latency_seconds_bucket{engine=\"0\",model_name=\"m\",le="
                      "\"0.003\"} 1\n"),
            std::string::npos);
}

TEST(Exporter, FiltersByNameAndBySeriesOfAHistogram) {
  Exporter exporter({.model_name = "m"});
  const std::vector<std::string> filters{
      "vllm:num_requests_waiting", "vllm:time_to_first_token_seconds_bucket", "no_such_metric"};
  const auto families = parse(exporter.render(filters));
  EXPECT_EQ(families.size(), 2U);
  EXPECT_TRUE(families.contains("vllm:num_requests_waiting"));
  EXPECT_TRUE(families.contains("vllm:time_to_first_token_seconds"));
}

TEST(Exporter, OpenLabelsAreBoundedAndEscaped) {
  Exporter exporter({.model_name = "m"});
  exporter.counter<Metric::kHttpRequests>("a\"b\\c\nd", "200").add();
  for (std::size_t i = 0; i < Exporter::kMaxSeries + 100; ++i) {
    exporter.counter<Metric::kHttpRequests>("/" + std::to_string(i), "404").add();
  }
  const auto family = parse(exporter.render()).at("millrace_http_requests_total");
  EXPECT_EQ(family.samples.size(), Exporter::kMaxSeries + 1);
  const auto other = std::ranges::find_if(family.samples, [](const std::string& line) {
    return line.find("route=\"other\"") != std::string::npos;
  });
  ASSERT_NE(other, family.samples.end());
  EXPECT_TRUE(other->ends_with(" 101")) << *other;  // one series was taken before
}

TEST(Exporter, HandlesAreThreadSafeAndEmptyOnesSwallow) {
  Exporter exporter({.model_name = "m"});
  const Counter counter = exporter.counter<Metric::kGenerationTokens>();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) counter.add();
      (void)exporter.render();
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(counter.value(), 40000);
  Counter{}.add();
  Gauge{}.set(1);
  Histogram{}.observe(1);
}

TEST(Exporter, ManyObservationsAtOnce) {
  Exporter exporter({.model_name = "m"});
  const Histogram histogram = exporter.histogram<Metric::kStepTime>("a");
  std::vector<std::uint64_t> counts(describe(Metric::kStepTime).buckets.size() + 1);
  counts[1] = 3;      // (0.0005, 0.001]
  counts.back() = 2;  // above all
  histogram.add(counts, 60.5);
  histogram.observe(0.0007);
  const std::string text = exporter.render();
  EXPECT_NE(text.find("millrace_step_seconds_bucket{cell=\"a\",le=\"0.0005\"} 0\n"),
            std::string::npos);
  EXPECT_NE(text.find("millrace_step_seconds_bucket{cell=\"a\",le=\"0.001\"} 4\n"),
            std::string::npos);
  EXPECT_NE(text.find("millrace_step_seconds_count{cell=\"a\"} 6\n"), std::string::npos) << text;
}

// The reference is the catalogue's own text: stale means that somebody changed one and not the
// other.
TEST(MetricsDoc, FileMatchesTheCatalogue) {
  const std::string path = MILLRACE_SOURCE_DIR "/monitoring/metrics.md";
  const std::string expected = metrics_markdown();
  if (std::getenv("MILLRACE_UPDATE_DOCS") != nullptr) std::ofstream(path) << expected;
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), expected) << "run this test with MILLRACE_UPDATE_DOCS=1";
}

}  // namespace
}  // namespace millrace
