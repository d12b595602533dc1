#include "cli/http_metrics.h"

#include <string>

namespace millrace {

void HttpMetrics::rejected(std::string_view route, unsigned status, std::string_view) {
  count(route, std::to_string(status));
}

void HttpMetrics::finished(const net::RequestOutcome& outcome) {
  switch (outcome.end) {
    case net::RequestEnd::kComplete:
      return count(outcome.start.route, "200");
    case net::RequestEnd::kClientGone:
      return count(outcome.start.route, kClientGone);
    case net::RequestEnd::kFailed:
      // Before the first byte the answer has the error's own status, which rejected() counts.
      if (outcome.began) count(outcome.start.route, kStreamError);
  }
}

void HttpMetrics::count(std::string_view route, std::string_view status) {
  exporter_.counter<Metric::kHttpRequests>(route, status).add();
}

}  // namespace millrace
