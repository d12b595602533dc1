#include "cli/bench.h"

#include <fmt/format.h>

#include <cstdio>
#include <ctime>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/bench_load.h"

namespace millrace::cli {
namespace {

const std::map<std::string, BenchEndpoint> kEndpoints = {
    {"completions", BenchEndpoint::kCompletions}, {"chat", BenchEndpoint::kChat}};
const std::map<std::string, BenchPrompt> kPrompts = {
    {"auto", BenchPrompt::kAuto}, {"ids", BenchPrompt::kIds}, {"text", BenchPrompt::kText}};

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

nlohmann::json report(const BenchOptions& o, const LoadResult& load, const BenchSummary& summary) {
  nlohmann::json json = to_json(summary);
  json["date"] = utc_now();
  json["label"] = o.label;
  json["model"] = load.model;
  json["url"] = o.url;
  json["endpoint"] = o.endpoint == BenchEndpoint::kChat ? "chat" : "completions";
  json["num_prompts"] = o.num_prompts;
  json["input_len"] = o.input_tokens;
  json["prefix_len"] = o.prefix_tokens;
  json["output_len"] = o.output_tokens;
  json["ignore_eos"] = o.ignore_eos;
  json["seed"] = o.seed;
  json["prompt_length_exact"] = load.prompt_length_exact;
  if (o.request_rate > 0) {
    json["request_rate"] = o.request_rate;
  } else {
    json["concurrency"] = o.concurrency;
  }
  return json;
}

bool write_report(const std::string& path, const nlohmann::json& json) {
  std::ofstream file(path);
  file << json.dump(2) << "\n";
  file.flush();
  return file.good();
}

}  // namespace

int run_bench(const BenchOptions& options) {
  const auto load = run_load(options);
  if (!load) {
    fmt::print(stderr, "millrace bench: {}\n", load.error().to_string());
    return 2;
  }
  const BenchSummary summary = summarize(load->records);
  fmt::print("{}", to_table(summary));
  if (!load->prompt_length_exact) {
    fmt::print(
        "\nPrompt lengths are approximate: the server has no /tokenize, or the wanted length "
        "cannot be met.\n");
  }
  std::fflush(stdout);
  if (!options.output_file.empty() &&
      !write_report(options.output_file, report(options, *load, summary))) {
    fmt::print(stderr, "millrace bench: --output: cannot write '{}'\n", options.output_file);
    return 2;
  }
  if (summary.failed == 0) return 0;
  return options.allow_failures && summary.completed > 0 ? 0 : 1;
}

void add_bench_command(CLI::App& app, std::function<void(int)> done) {
  auto o = std::make_shared<BenchOptions>();
  auto range =
      std::make_shared<std::pair<std::int32_t, std::int32_t>>(o->first_token_id, o->last_token_id);
  CLI::App* bench = app.add_subcommand(
      "bench", "load a server with OpenAI's API and report latency and throughput");
  bench->add_option("--url", o->url, "http://host:port of the server")->capture_default_str();
  bench->add_option("--model", o->model, "model name (default: the first of /v1/models)");
  bench->add_option("--api-key", o->api_key, "sent as Authorization: Bearer");
  bench->add_option("--endpoint", o->endpoint, "route that is asked")
      ->transform(CLI::CheckedTransformer(kEndpoints))
      ->option_text("completions|chat=completions");
  bench
      ->add_option("--prompt", o->prompt,
                   "form of the prompts; auto: ids for completions, text for chat")
      ->transform(CLI::CheckedTransformer(kPrompts))
      ->option_text("ids|text|auto=auto");
  bench->add_option("--num-prompts", o->num_prompts, "requests in all")->capture_default_str();
  bench->add_option("--concurrency", o->concurrency, "requests at a time (closed loop)")
      ->capture_default_str();
  bench
      ->add_option("--request-rate", o->request_rate,
                   "requests a second at random times (open loop); 0: closed loop")
      ->capture_default_str();
  bench->add_option("--input-len", o->input_tokens, "tokens of a prompt")->capture_default_str();
  bench->add_option("--prefix-len", o->prefix_tokens, "of these, the same in every prompt")
      ->capture_default_str();
  bench->add_option("--output-len", o->output_tokens, "tokens of an answer")->capture_default_str();
  bench->add_flag_callback(
      "--no-ignore-eos", [o] { o->ignore_eos = false; }, "let answers end earlier");
  bench->add_option("--temperature", o->temperature, "0: greedy")->capture_default_str();
  bench->add_option("--seed", o->seed, "decides the prompts and arrival times")
      ->capture_default_str();
  bench->add_option("--warmup", o->warmup, "requests before the clock starts")
      ->capture_default_str();
  bench->add_option("--token-range", *range,
                    "first id and end of the random ids (default: up to 1000 and 30000 of the "
                    "vocabulary that /v1/models tells)");
  bench->add_option("--timeout", o->timeout_s, "seconds for one request")->capture_default_str();
  bench->add_option("--extra-body", o->extra_body, "JSON object added to every request");
  bench->add_option("--output", o->output_file, "write the report as JSON to this file");
  bench->add_option("--label", o->label, "free text for the report");
  bench->add_flag("--allow-failures", o->allow_failures,
                  "exit 0 although requests failed, if at least one succeeded");
  bench->callback([o, range, done = std::move(done)] {
    o->first_token_id = range->first;
    o->last_token_id = range->second;
    done(run_bench(*o));
  });
}

}  // namespace millrace::cli
