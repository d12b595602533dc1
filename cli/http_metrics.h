// Counts HTTP answers by route and status; what concerns tokens the gateway counts itself.
#pragma once

#include <string_view>

#include "monitoring/exporter.h"
#include "net/api_observer.h"

namespace millrace {

class HttpMetrics final : public net::ApiObserver {
 public:
  // `exporter` outlives it.
  explicit HttpMetrics(Exporter& exporter) : exporter_(exporter) {}

  // Statuses that were never sent: the client went away before its answer was complete, as nginx
  // counts it; and a stream that ended in an error event after its 200.
  static constexpr std::string_view kClientGone = "499";
  static constexpr std::string_view kStreamError = "stream_error";

  void rejected(std::string_view route, unsigned status, std::string_view reason) override;
  void finished(const net::RequestOutcome& outcome) override;

 private:
  void count(std::string_view route, std::string_view status);
  Exporter& exporter_;
};

}  // namespace millrace
