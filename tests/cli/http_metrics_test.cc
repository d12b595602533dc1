#include "cli/http_metrics.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

// Every request has exactly one series, however it ends.
TEST(HttpMetrics, EveryEndIsCountedOnce) {
  Exporter exporter({.model_name = "m"});
  HttpMetrics metrics(exporter);
  constexpr std::string_view kRoute = "/v1/completions";
  const auto finish = [&](net::RequestEnd end, bool began) {
    net::RequestOutcome outcome;
    outcome.start.route = kRoute;
    outcome.end = end;
    outcome.began = began;
    metrics.finished(outcome);
  };
  finish(net::RequestEnd::kComplete, true);
  finish(net::RequestEnd::kComplete, false);
  finish(net::RequestEnd::kClientGone, true);
  finish(net::RequestEnd::kFailed, true);  // after its first byte
  finish(net::RequestEnd::kFailed, false);
  metrics.rejected(kRoute, 503, "service_unavailable");  // the answer of the one before
  const auto count = [&](const char* status) {
    return exporter.counter<Metric::kHttpRequests>(kRoute, status).value();
  };
  EXPECT_EQ(count("200"), 2);
  EXPECT_EQ(count("499"), 1);
  EXPECT_EQ(count("stream_error"), 1);
  EXPECT_EQ(count("503"), 1);
}

}  // namespace
}  // namespace millrace
