// The service as a whole on the status page: rates, latencies and their history, as JSON. The
// fields and their units: docs/status.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

#include "net/gateway_metrics.h"
#include "net/openai_types.h"
#include "net/status_window.h"

namespace millrace::net {

// The gateway's figures at one moment; all but the last two count from its start.
struct ServiceSample {
  std::chrono::steady_clock::time_point at;
  double generated_tokens = 0;
  double prompt_tokens = 0;
  double finished = 0;  // sequences, by stop or length
  double failed = 0;    // sequences
  double rejected = 0;  // requests
  std::vector<std::uint64_t> first_token, inter_token, latency, queue_time;  // bucket counts
  std::uint32_t running = 0;
  std::uint32_t waiting = 0;
};

inline constexpr std::string_view kStatusFormat = "millrace-status/1";

// Latencies and errors are looked at over this much, and it is as long as the history.
inline constexpr std::chrono::seconds kStatusLatencySpan{60};

ServiceSample sample_of(const GatewayMetrics& metrics, std::chrono::steady_clock::time_point now);

// All of these need one sample at least.
Json rates_of(const StatusWindow<ServiceSample>& samples);
Json latency_of(const StatusWindow<ServiceSample>& samples);
Json errors_of(const StatusWindow<ServiceSample>& samples, const GatewayMetrics& metrics);
Json totals_of(const GatewayMetrics& metrics);
Json history_of(const StatusWindow<ServiceSample>& samples);

}  // namespace millrace::net
