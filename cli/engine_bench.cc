#include "cli/engine_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/local_engine.h"
#include "worker/memory_plan.h"

namespace millrace {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

class Bench {
 public:
  Bench(LocalEngine& engine, const EngineBenchCommand& command)
      : engine_(engine), random_(command.seed) {}

  // Seconds to the first token.
  Result<double> prefill(std::uint32_t tokens) {
    const Clock::time_point begin = Clock::now();
    Clock::time_point first;
    const Result<void> ok =
        engine_.run(requests(1, tokens, 1), [&](auto) { first = Clock::now(); });
    if (!ok) return ok.error();
    return seconds_between(begin, first);
  }

  // Tokens a second of all sequences together.
  Result<double> decode(std::uint32_t streams, std::uint32_t prompt, std::uint32_t tokens) {
    std::size_t started = 0;
    std::size_t counted = 0;
    bool ended = false;
    Clock::time_point begin, end;
    const auto on_step = [&](std::span<const TokenEvent> events) {
      const Clock::time_point now = Clock::now();
      if (started < streams) {
        started += static_cast<std::size_t>(
            std::ranges::count(events, std::uint32_t{0}, &TokenEvent::index));
        begin = now;
      } else if (!ended) {
        counted += events.size();
        end = now;
      }
      ended |= std::ranges::any_of(
          events, [](const TokenEvent& e) { return e.finish != FinishReason::kNone; });
    };
    const Result<void> ok = engine_.run(requests(streams, prompt, tokens + 1), on_step);
    if (!ok) return ok.error();
    if (counted == 0) {
      return invalid("--streams", fmt::format("{} do not run together with these limits", streams));
    }
    return static_cast<double>(counted) / seconds_between(begin, end);
  }

 private:
  std::vector<SequenceRequest> requests(std::uint32_t count, std::uint32_t prompt,
                                        std::uint32_t tokens) {
    const std::int32_t vocab = engine_.setup().model.vocab_size;
    std::uniform_int_distribution<std::int32_t> id(std::min(1000, vocab / 2), vocab - 1);
    std::vector<SequenceRequest> out(count);
    for (SequenceRequest& request : out) {
      for (std::uint32_t i = 0; i < prompt; ++i) request.tokens.push_back(id(random_));
      request.prompt_tokens = prompt;
      request.max_new_tokens = tokens;
      request.sampling.temperature = 0;
    }
    return out;
  }

  LocalEngine& engine_;
  std::mt19937_64 random_;
};

// Kilobytes of a line of /proc/self/status.
std::uint64_t status_kib(const std::string& wanted) {
  std::ifstream file("/proc/self/status");
  std::string key, rest;
  while (file >> key) {
    std::uint64_t kib = 0;
    if (key == wanted + ":" && file >> kib) return kib;
    std::getline(file, rest);
  }
  return 0;
}

Json memory() {
  Json out;
  for (const char* key : {"VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"}) {
    out[key] = status_kib(key) * 1024;
  }
  return out;
}

// What a step reads and computes, as the weights are loaded. (A Result<Json> would not do: such a
// Json converts to everything.)
Result<void> add_work(const CellSetup& setup, Json& out) {
  const ModelConfig& m = setup.model;
  auto weights = measure_weights(setup.source, m, setup.config.model.cpu_weights);
  if (!weights) return weights.error();
  std::uint64_t fixed = weights->head_bytes;
  std::uint64_t expert = 0;
  std::int64_t moe_layers = 0;
  double values = 0;  // of the matrices that one token is multiplied with, without the head
  const auto d = static_cast<double>(m.hidden_size);
  for (std::int32_t i = 0; i < m.num_layers(); ++i) {
    const auto& layer = weights->layers[static_cast<std::size_t>(i)];
    fixed += layer.fixed_bytes;
    values += m.layers[i] == LayerKind::kShortConv
                  ? 4 * d * d
                  : 2 * d * static_cast<double>(m.q_width() + m.kv_width());
    if (m.is_moe_layer(i)) {
      expert = layer.expert_bytes.front();
      ++moe_layers;
      values += 3.0 * d * static_cast<double>(m.moe_intermediate_size) * m.num_experts_per_tok;
    } else {
      values += 3.0 * d * static_cast<double>(m.intermediate_size);
    }
  }
  out["fixed_bytes"] = fixed;
  out["expert_bytes"] = expert;
  out["moe_layers"] = moe_layers;
  out["experts"] = m.num_experts;
  out["top_k"] = m.num_experts_per_tok;
  out["prefill_ops_per_token"] = 2 * values;
  return {};
}

// `runs` figures of one case after a first that warms up.
template <class Fn>
Result<std::vector<double>> repeat(std::uint32_t runs, Fn fn) {
  std::vector<double> figures;
  for (std::uint32_t i = 0; i <= runs; ++i) {
    const Result<double> figure = fn();
    if (!figure) return figure.error();
    if (i > 0) figures.push_back(*figure);
  }
  return figures;
}

Result<void> add_cases(LocalEngine& engine, const EngineBenchCommand& c, Json& out) {
  Bench bench(engine, c);
  const auto add = [&](const std::string& name, auto measure) -> Result<void> {
    const auto figures = repeat(c.runs, measure);
    if (!figures) return figures.error();
    Json one;
    one["case"] = name;
    one["tokens_per_s"] = *figures;
    out.push_back(one);
    return {};
  };
  for (const std::uint32_t tokens : c.prefill) {
    const auto measure = [&]() -> Result<double> {
      const Result<double> seconds = bench.prefill(tokens);
      if (!seconds) return seconds;
      return tokens / *seconds;
    };
    if (auto ok = add(fmt::format("pp{}", tokens), measure); !ok) return ok;
  }
  for (const std::uint32_t streams : c.streams) {
    const auto measure = [&] { return bench.decode(streams, c.prompt_tokens, c.decode_tokens); };
    if (auto ok = add(fmt::format("tg{}x{}", c.decode_tokens, streams), measure); !ok) return ok;
  }
  return {};
}

Result<void> run_all(const EngineBenchCommand& command, Json& out) {
  const Clock::time_point begin = Clock::now();
  auto engine = LocalEngine::start(command.config, {});
  if (!engine) return engine.error();
  const double start = seconds_between(begin, Clock::now());
  const CellSetup& setup = (*engine)->setup();
  out["model"] = setup.config.model.path;
  out["numeric_mode"] = setup.numeric_mode;
  out["threads"] = setup.config.grid.threads_per_rank;
  out["max_step_tokens"] = setup.config.scheduler.max_step_tokens;
  out["prefill_chunk_tokens"] = setup.config.scheduler.prefill_chunk_tokens;
  out["start_seconds"] = start;
  out["memory_at_start"] = memory();
  if (auto ok = add_work(setup, out["work"]); !ok) return ok;
  if (auto ok = add_cases(**engine, command, out["cases"]); !ok) return ok;
  out["memory"] = memory();
  return {};
}

}  // namespace

int run_engine_bench(const EngineBenchCommand& command) {
  Json report;
  if (const Result<void> ok = run_all(command, report); !ok) {
    fmt::print(stderr, "millrace: {}\n", ok.error().to_string());
    return 1;
  }
  fmt::print("{}\n", report.dump());
  return 0;
}

}  // namespace millrace
