// What is recorded of each request of a benchmark, and the figures made of it.
//
// Definitions, those of `vllm bench serve`:
//   TTFT  from just before the request is sent (connecting included when no connection is open) to
//   the
//         arrival of the first chunk that carries a token; a chunk with only a role does not count
//   ITL   the gaps between the arrivals of consecutive chunks that carry tokens, of all requests
//         together. A chunk with several tokens gives one gap, as in vLLM; tokens_per_chunk shows
//         when that matters
//   TPOT  (last token's arrival - first token's arrival) / (tokens - 1), per request of 2 or more
//   E2E   from sending to the last chunk with a choice
//   duration    from the first send to the last end; throughputs are totals of successful requests
//               divided by it
// Percentiles interpolate linearly between order statistics, as numpy's default does.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace millrace::cli {

using BenchClock = std::chrono::steady_clock;

struct RequestRecord {
  std::string failure;  // empty: success. Otherwise its kind: "connect", "timeout", "http 503", ...
  std::string detail;   // one line for people
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens = 0;
  std::uint32_t token_chunks = 0;
  BenchClock::time_point sent;
  BenchClock::time_point first_token;
  BenchClock::time_point last_token;
  BenchClock::time_point end;
  std::vector<double> gaps_ms;  // between token chunks

  bool ok() const { return failure.empty(); }
};

struct Spread {
  std::size_t count = 0;
  double mean = 0;
  double median = 0;
  double p90 = 0;
  double p99 = 0;
  double min = 0;
  double max = 0;
};

struct BenchSummary {
  std::uint32_t completed = 0;
  std::uint32_t failed = 0;
  std::map<std::string, std::uint32_t> failures;        // by kind
  std::map<std::string, std::string> failure_examples;  // the first detail of each kind
  std::uint64_t prompt_tokens = 0;
  std::uint64_t output_tokens = 0;
  double duration_s = 0;
  double requests_per_s = 0;
  double output_tokens_per_s = 0;
  double total_tokens_per_s = 0;
  double tokens_per_chunk = 0;
  Spread ttft_ms;
  Spread itl_ms;
  Spread tpot_ms;
  Spread e2e_ms;
};

Spread spread_of(std::vector<double> values);

// The value below which `fraction` of the sorted values lie. 0 for no values.
double percentile(const std::vector<double>& sorted, double fraction);

BenchSummary summarize(const std::vector<RequestRecord>& records);

nlohmann::json to_json(const BenchSummary& summary);
std::string to_table(const BenchSummary& summary);

}  // namespace millrace::cli
