// The load itself: prepares every request body before the clock starts, warms the server up, then
// drives the clients.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/bench.h"
#include "cli/bench_client.h"
#include "cli/bench_prompts.h"
#include "cli/bench_stats.h"
#include "config/result.h"

namespace millrace::cli {

struct LoadResult {
  std::vector<RequestRecord> records;  // by request number
  std::string model;
  bool prompt_length_exact = false;  // ids, or text whose length the server's /tokenize confirmed
};

// Options that make no sense are refused with the name of the option as `field`.
Result<void> check_options(const BenchOptions& options);

// The JSON body of one request; exactly one of `ids` and `text` is used.
std::string request_body(const BenchOptions& options, const std::string& model,
                         const std::vector<std::int32_t>& ids, const std::string& text);

// Runs on one thread until every request has ended. Blocks.
Result<LoadResult> run_load(const BenchOptions& options);

}  // namespace millrace::cli
