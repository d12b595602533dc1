// `millrace bench`: a load generator for any server with OpenAI's API over plain HTTP.
//
// Closed loop: `concurrency` clients, each sending its next request when its last one has ended.
// Open loop: requests at random (Poisson) times, `request_rate` a second on average, whatever the
// server does. Figures follow the definitions of `vllm bench serve`; they are stated in
// cli/bench_stats.h.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

namespace millrace::cli {

enum class BenchEndpoint { kCompletions, kChat };
enum class BenchPrompt { kAuto, kIds, kText };

struct BenchOptions {
  std::string url = "http://127.0.0.1:8000";  // with or without /v1
  std::string model;                          // empty: the first of /v1/models
  std::string api_key;
  BenchEndpoint endpoint = BenchEndpoint::kCompletions;
  BenchPrompt prompt = BenchPrompt::kAuto;  // ids for completions, text for chat
  std::uint32_t num_prompts = 100;
  std::uint32_t concurrency = 16;  // closed loop
  double request_rate = 0;         // requests a second; above 0: open loop
  std::uint32_t input_tokens = 512;
  std::uint32_t prefix_tokens = 0;  // of the input, the same in every prompt
  std::uint32_t output_tokens = 128;
  bool ignore_eos = true;
  double temperature = 0;
  std::uint64_t seed = 0;
  std::uint32_t warmup = 1;         // requests before the clock starts
  std::int32_t first_token_id = 0;  // random ids are taken from [first, last);
  std::int32_t last_token_id = 0;   // both 0: from what the server says of its vocabulary
  double timeout_s = 600;           // of one request, connection included
  std::string extra_body;           // JSON object whose members are added to every request
  std::string output_file;          // JSON report
  std::string label;
  bool allow_failures = false;
};

// Runs the load, prints the table to standard output and writes the report. Returns 0 when every
// request succeeded (or failures are allowed and at least one succeeded), 1 when some failed, 2
// when the run could not start (bad options, no server, unwritable file); the reason goes to
// standard error.
int run_bench(const BenchOptions& options);

// Adds the subcommand `bench` to `app`. When it is chosen, run_bench runs as its callback and its
// result is passed to `done`.
void add_bench_command(CLI::App& app, std::function<void(int)> done);

}  // namespace millrace::cli
