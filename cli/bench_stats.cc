#include "cli/bench_stats.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

namespace millrace::cli {
namespace {

double ms(BenchClock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

nlohmann::json to_json(const Spread& s) {
  return {{"count", s.count}, {"mean", s.mean}, {"median", s.median}, {"p90", s.p90},
          {"p99", s.p99},     {"min", s.min},   {"max", s.max}};
}

std::string row(const char* name, const Spread& s) {
  return fmt::format("{:<8}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}{:>12.2f}\n", name, s.mean, s.median,
                     s.p90, s.p99, s.max);
}

}  // namespace

double percentile(const std::vector<double>& sorted, double fraction) {
  if (sorted.empty()) return 0;
  const double rank = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(rank);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (rank - static_cast<double>(below));
}

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {.count = values.size(),
          .mean = sum / static_cast<double>(values.size()),
          .median = percentile(values, 0.5),
          .p90 = percentile(values, 0.9),
          .p99 = percentile(values, 0.99),
          .min = values.front(),
          .max = values.back()};
}

BenchSummary summarize(const std::vector<RequestRecord>& records) {
  BenchSummary s;
  if (records.empty()) return s;
  std::vector<double> ttft, itl, tpot, e2e;
  std::uint64_t chunks = 0;
  BenchClock::time_point begin = records.front().sent;
  BenchClock::time_point end = records.front().end;
  for (const RequestRecord& r : records) {
    begin = std::min(begin, r.sent);
    end = std::max(end, r.end);
    if (!r.ok()) {
      ++s.failed;
      ++s.failures[r.failure];
      s.failure_examples.try_emplace(r.failure, r.detail);
      continue;
    }
    ++s.completed;
    s.prompt_tokens += r.prompt_tokens;
    s.output_tokens += r.output_tokens;
    chunks += r.token_chunks;
    ttft.push_back(ms(r.first_token - r.sent));
    e2e.push_back(ms(r.end - r.sent));
    itl.insert(itl.end(), r.gaps_ms.begin(), r.gaps_ms.end());
    if (r.output_tokens > 1) {
      tpot.push_back(ms(r.last_token - r.first_token) / static_cast<double>(r.output_tokens - 1));
    }
  }
  s.duration_s = ms(end - begin) / 1000;
  if (s.duration_s > 0) {
    s.requests_per_s = s.completed / s.duration_s;
    s.output_tokens_per_s = static_cast<double>(s.output_tokens) / s.duration_s;
    s.total_tokens_per_s = static_cast<double>(s.prompt_tokens + s.output_tokens) / s.duration_s;
  }
  if (chunks > 0) {
    s.tokens_per_chunk = static_cast<double>(s.output_tokens) / static_cast<double>(chunks);
  }
  s.ttft_ms = spread_of(std::move(ttft));
  s.itl_ms = spread_of(std::move(itl));
  s.tpot_ms = spread_of(std::move(tpot));
  s.e2e_ms = spread_of(std::move(e2e));
  return s;
}

nlohmann::json to_json(const BenchSummary& s) {
  return {{"completed", s.completed},
          {"failed", s.failed},
          {"failures", s.failures},
          {"failure_examples", s.failure_examples},
          {"total_input_tokens", s.prompt_tokens},
          {"total_output_tokens", s.output_tokens},
          {"duration_s", s.duration_s},
          {"request_throughput", s.requests_per_s},
          {"output_throughput", s.output_tokens_per_s},
          {"total_token_throughput", s.total_tokens_per_s},
          {"tokens_per_chunk", s.tokens_per_chunk},
          {"ttft_ms", to_json(s.ttft_ms)},
          {"itl_ms", to_json(s.itl_ms)},
          {"tpot_ms", to_json(s.tpot_ms)},
          {"e2e_ms", to_json(s.e2e_ms)}};
}

std::string to_table(const BenchSummary& s) {
  std::string out;
  out += fmt::format("requests      {} completed, {} failed\n", s.completed, s.failed);
  for (const auto& [kind, count] : s.failures) {
    out += fmt::format("  failed      {} x {}: {}\n", count, kind, s.failure_examples.at(kind));
  }
  out += fmt::format("duration      {:.3f} s\n", s.duration_s);
  out += fmt::format("tokens        {} in, {} out, {:.2f} per chunk\n", s.prompt_tokens,
                     s.output_tokens, s.tokens_per_chunk);
  out += fmt::format("throughput    {:.3f} requests/s, {:.2f} output tokens/s, {:.2f} tokens/s\n\n",
                     s.requests_per_s, s.output_tokens_per_s, s.total_tokens_per_s);
  out += fmt::format("{:<8}{:>12}{:>12}{:>12}{:>12}{:>12}\n", "ms", "mean", "median", "p90", "p99",
                     "max");
  out +=
      row("TTFT", s.ttft_ms) + row("ITL", s.itl_ms) + row("TPOT", s.tpot_ms) + row("E2E", s.e2e_ms);
  return out;
}

}  // namespace millrace::cli
