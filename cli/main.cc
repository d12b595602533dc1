// The `millrace` command: options to configuration, then into one of the commands.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <limits>
#include <random>

#include "cli/bench.h"
#include "cli/cell_setup.h"
#include "cli/devices_command.h"
#include "cli/drain_command.h"
#include "cli/engine_bench.h"
#include "cli/launch.h"
#include "cli/logging.h"
#include "cli/node_agent_command.h"
#include "cli/pack_command.h"
#include "cli/serve_command.h"
#include "cli/text_commands.h"
#include "cli/top_command.h"
#include "cli/verify_command.h"
#include "cli/worker_command.h"
#include "config/cluster_config.h"
#include "config/version.h"
#if defined(MILLRACE_HAS_CUDA)
#include "worker/cuda/cuda_backend.h"
#endif

namespace millrace {
namespace {

// The options that most commands share: a configuration file and fields given on the command line,
// which win over it.
class ConfigOptions {
 public:
  void add(CLI::App& app) {
    app.add_option("--config", file_, "YAML configuration (see config/default.yaml)")
        ->check(CLI::ExistingFile);
    app.add_option("--set", sets_, "any field, as section.field=value; may be repeated");
  }
  void add_model(CLI::App& app) {
    add(app);
    app.add_option("--model", model_,
                   "Hugging Face folder, .gguf file or random:SHAPE [model.path]");
  }
  void add_grid(CLI::App& app) {
    add_model(app);
    app.add_option("--stages", stages_, "pipeline stages of a cell [grid.stages]");
    app.add_option("--lanes", lanes_, "expert lanes of a stage [grid.lanes]");
  }
  void add_local_cells(CLI::App& app) {
    app.add_option("--cells", cells_, "cells, each a full copy of the model [grid.cells]");
    app.add_flag("--embedded", embedded_, "run cells as threads, without mpirun [grid.embedded]");
  }
  void add_http(CLI::App& app) {
    app.add_option("--host", host_, "address of the HTTP API [gateway.host]");
    app.add_option("--port", port_, "port of the HTTP API, 0 for any free one [gateway.port]");
  }

  Result<ClusterConfig> load() const {
    std::vector<std::string> overrides;
    const auto set = [&overrides](const char* field, const std::string& value) {
      if (!value.empty()) overrides.push_back(fmt::format("{}={}", field, value));
    };
    set("grid.embedded", embedded_ ? "true" : "");
    set("model.path", model_);
    set("grid.stages", stages_);
    set("grid.lanes", lanes_);
    set("grid.cells", cells_);
    set("gateway.host", host_);
    set("gateway.port", port_);
    overrides.insert(overrides.end(), sets_.begin(), sets_.end());
    return file_.empty() ? parse_cluster_config("", "command line", overrides)
                         : load_cluster_config(file_, overrides);
  }

 private:
  std::string file_, model_, stages_, lanes_, cells_, host_, port_;
  std::vector<std::string> sets_;
  bool embedded_ = false;
};

// Runs `command` with the loaded configuration; a bad one is told and gives status 2.
template <class F>
int with_config(const ConfigOptions& options, F command) {
  Result<ClusterConfig> config = options.load();
  if (!config) {
    fmt::print(stderr, "millrace: {}\n", config.error().to_string());
    return 2;
  }
  set_up_logging(config->logging);
  return command(*config);
}

int run_plan(const ClusterConfig& config) {
  const Result<CellSetup> setup = make_cell_setup(config);
  if (!setup) {
    fmt::print(stderr, "millrace: {}\n", setup.error().to_string());
    return 1;
  }
  fmt::print("{}\n", describe(*setup));
  return 0;
}

// The fields with their meaning; or, with a file, whether it is a configuration.
int run_config(const std::string& checked) {
  if (checked.empty()) {
    fmt::print("{}", default_yaml());
    return 0;
  }
  const Result<ClusterConfig> config = load_cluster_config(checked);
  if (!config) {
    fmt::print(stderr, "millrace: {}\n", config.error().to_string());
    return 2;
  }
  fmt::print("{}: OK\n", checked);
  return 0;
}

void add_sampling(CLI::App& app, SamplingParams& p) {
  app.add_option("--temperature", p.temperature, "0 is greedy")->capture_default_str();
  app.add_option("--top-k", p.top_k, "0 is off")->capture_default_str();
  app.add_option("--top-p", p.top_p, "least mass of the likeliest tokens to draw from; 1 is off")
      ->capture_default_str();
  app.add_option("--min-p", p.min_p, "least probability, as a share of the likeliest's; 0 is off")
      ->capture_default_str();
  app.add_option("--repetition-penalty", p.repetition_penalty,
                 "divides logits of tokens in prompt or answer; 1 is off")
      ->capture_default_str();
  app.add_option("--presence-penalty", p.presence_penalty,
                 "taken from logits of tokens in the answer; 0 is off")
      ->capture_default_str();
  app.add_option("--frequency-penalty", p.frequency_penalty,
                 "the same for each time that they occur; 0 is off")
      ->capture_default_str();
  app.add_option("--seed", p.seed, "of the draws; random when not given");
}

// Everything the parser writes into; lives as long as the run.
struct Options {
  ConfigOptions serve, gateway, cell, plan, pack, verify, engine_bench, generate, perplexity,
      node_agent, agent_exec;
  GenerateCommand generate_command;
  PerplexityCommand perplexity_command;
  TokenizeCommand tokenize_command;
  PackCommand pack_command;
  VerifyCommand verify_command;
  EngineBenchCommand engine_bench_command;
  WorkerCommand worker_command;
  DrainCommand drain_command;
  TopCommand top_command;
  std::string checked_config;
  bool plain_devices = false;
};

void add_servers(CLI::App& app, Options& o, int& status) {
  auto* serve = app.add_subcommand("serve", "gateway and cells on this machine");
  o.serve.add_grid(*serve);
  o.serve.add_local_cells(*serve);
  o.serve.add_http(*serve);
  serve->callback([&] { status = with_config(o.serve, run_serve); });

  auto* gateway = app.add_subcommand("gateway", "the HTTP gateway alone; cells dial in");
  o.gateway.add_model(*gateway);
  o.gateway.add_http(*gateway);
  gateway->callback([&] { status = with_config(o.gateway, run_gateway); });

  auto* cell =
      app.add_subcommand("cell", "one cell: starts and watches its mpirun, dials cell.gateways");
  o.cell.add_grid(*cell);
  cell->callback([&] { status = with_config(o.cell, run_cell); });

  auto* plan =
      app.add_subcommand("plan", "what would be placed where and how much memory it takes");
  o.plan.add_grid(*plan);
  plan->callback([&] { status = with_config(o.plan, run_plan); });

  auto* pack = app.add_subcommand(
      "pack", "write a model in the form that the CPU kernels read, to be mapped at the start");
  o.pack.add_model(*pack);
  pack->add_option("--out", o.pack_command.out, "file, or folder when the model is one")
      ->required();
  pack->callback([&] {
    status = with_config(o.pack, [&](const ClusterConfig& c) {
      o.pack_command.config = c;
      return run_pack(o.pack_command);
    });
  });

  auto* verify = app.add_subcommand(
      "verify", "whether a model's files are whole: headers, and contents against SHA-256 sums");
  o.verify.add_grid(*verify);
  verify
      ->add_option("--sums", o.verify_command.sums,
                   "list as of sha256sum (default: SHA256SUMS beside the model, if it is there)")
      ->check(CLI::ExistingFile);
  verify->callback([&] {
    status = with_config(o.verify, [&](const ClusterConfig& c) {
      o.verify_command.config = c;
      return run_verify(o.verify_command);
    });
  });

  auto* devices = app.add_subcommand("devices", "the devices that workers could compute on");
  devices->add_flag("--plain", o.plain_devices,
                    "index, compute capability, multiprocessors, memory "
                    "in all and free, name, for programs");
  devices->callback([&] { status = run_devices(o.plain_devices); });

  auto* config = app.add_subcommand("config", "print every configuration field with its meaning");
  config->add_option("--check", o.checked_config,
                     "instead, say whether this file is a valid configuration; needs no model");
  config->callback([&] { status = run_config(o.checked_config); });
}

void add_drain(CLI::App& app, Options& o, int& status) {
  auto* drain = app.add_subcommand("drain",
                                   "have a server of this machine finish what it runs, and end; "
                                   "returns when it has");
  DrainCommand& d = o.drain_command;
  drain->add_option("--url", d.url, "http://host:port of a gateway, or of a cell's health_port")
      ->required();
  drain->add_option("--pause-ms", d.pause_ms, "time for which new work is still taken")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{0}, static_cast<std::int64_t>(kMaxWaitMs)));
  drain->add_option("--timeout-s", d.timeout_s, "longest wait; the server goes on draining")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, static_cast<std::int64_t>(kMaxWaitMs) / 1000));
  drain->callback([&] { status = run_drain(o.drain_command); });
}

void add_top(CLI::App& app, Options& o, int& status) {
  auto* top = app.add_subcommand(
      "top", "a gateway's cells, workers, queue and latencies in the terminal; q leaves");
  TopCommand& t = o.top_command;
  top->add_option("--url", t.url, "http://host:port of the gateway")->capture_default_str();
  top->add_option("--api-key", t.api_key, "sent as Authorization: Bearer");
  top->add_option("--interval-s", t.interval_s, "between two looks")
      ->capture_default_str()
      ->check(CLI::Range(0.2, 3600.0));
  top->add_flag("--once", t.once, "one look, printed; also where the output is no terminal");
  top->add_flag("!--no-color", t.color, "no colors");
  top->callback([&] { status = run_top(o.top_command); });
}

// A cell over several nodes. The last two are run by Open MPI.
void add_nodes(CLI::App& app, Options& o, int& status) {
  auto* agent = app.add_subcommand("node-agent",
                                   "lets leaders that know node_agent.secret_file run ranks here");
  o.node_agent.add(*agent);
  agent->callback([&] { status = with_config(o.node_agent, run_node_agent); });

  auto* exec = app.add_subcommand("agent-exec", "");
  o.agent_exec.add(*exec);
  exec->prefix_command()->group("");
  exec->callback([&, exec] {
    status = with_config(o.agent_exec, [exec](const ClusterConfig& c) {
      return run_agent_exec(c, exec->remaining());
    });
  });

  auto* rank = app.add_subcommand("rank-exec", "");
  rank->prefix_command()->group("");
  rank->callback([&status, rank] { status = run_rank_exec(rank->remaining()); });
}

void add_text(CLI::App& app, Options& o, int& status) {
  auto* generate = app.add_subcommand("generate", "continue a prompt on the terminal");
  auto& g = o.generate_command;
  o.generate.add_grid(*generate);
  generate->add_option("prompt", g.prompt, "the text; - reads standard input")->required();
  generate->add_flag("--chat", g.chat, "as a user message through the model's chat template");
  generate->add_option("--system", g.system, "system message, with --chat");
  generate->add_option("-n,--max-tokens", g.max_tokens, "tokens of the continuation at most")
      ->capture_default_str()
      ->check(CLI::Range(1, std::numeric_limits<std::int32_t>::max()));
  generate->add_flag("--ignore-eos", g.ignore_eos, "go on after an end token");
  g.sampling.seed = std::random_device{}();
  add_sampling(*generate, g.sampling);
  generate->callback([&] {
    status = with_config(o.generate, [&](const ClusterConfig& c) {
      o.generate_command.config = c;
      return run_generate(o.generate_command);
    });
  });

  auto* perplexity = app.add_subcommand("perplexity", "perplexity of a text file under the model");
  auto& p = o.perplexity_command;
  o.perplexity.add_grid(*perplexity);
  perplexity->add_option("file", p.file, "UTF-8 text")->required()->check(CLI::ExistingFile);
  perplexity->add_option("--window", p.window, "tokens of a window, BOS included")
      ->capture_default_str()
      ->check(CLI::Range(2, 1'000'000));
  perplexity->add_flag("--json", p.json, "one JSON object in place of the text");
  perplexity->callback([&] {
    status = with_config(o.perplexity, [&](const ClusterConfig& c) {
      o.perplexity_command.config = c;
      return run_perplexity(o.perplexity_command);
    });
  });

  auto* tokenize = app.add_subcommand("tokenize", "token ids of a text");
  auto& t = o.tokenize_command;
  tokenize->add_option("--model", t.model, "Hugging Face folder or .gguf file")->required();
  tokenize->add_option("text", t.text, "the text; - reads standard input")->required();
  tokenize->add_flag("!--no-special", t.add_special, "do not add BOS");
  tokenize->add_flag("--ids", t.ids_only, "ids alone, one a line");
  tokenize->callback([&] { status = run_tokenize(o.tokenize_command); });
}

void add_engine_bench(CLI::App& app, Options& o, int& status) {
  auto* bench = app.add_subcommand(
      "engine-bench", "prefill and decode of the model in this process, without HTTP; prints JSON");
  auto& b = o.engine_bench_command;
  const auto counts = CLI::Range(1, 1'000'000);
  o.engine_bench.add_grid(*bench);
  bench->add_option("--prefill", b.prefill, "prompt lengths")->delimiter(',')->check(counts);
  bench->add_option("--streams", b.streams, "sequences that decode together")
      ->delimiter(',')
      ->check(counts);
  bench->add_option("--prompt-tokens", b.prompt_tokens, "of each decoding sequence")
      ->capture_default_str()
      ->check(counts);
  bench->add_option("--decode-tokens", b.decode_tokens, "timed, of each decoding sequence")
      ->capture_default_str()
      ->check(counts);
  bench->add_option("--runs", b.runs, "of each case, after one that is not counted")
      ->capture_default_str()
      ->check(counts);
  bench->add_option("--seed", b.seed, "of the random prompts")->capture_default_str();
  bench->callback([&] {
    status = with_config(o.engine_bench, [&](const ClusterConfig& c) {
      o.engine_bench_command.config = c;
      return run_engine_bench(o.engine_bench_command);
    });
  });
}

// One line, as every other error has.
std::string parse_failure(const CLI::App* app, const CLI::Error& error) {
  const auto commands = app->get_subcommands();
  const std::string help =
      commands.empty() ? "millrace --help" : "millrace " + commands[0]->get_name() + " --help";
  const std::vector<std::string> rest = app->remaining();
  if (commands.empty() && !rest.empty()) {
    return fmt::format("millrace: {}: no such command; see {}\n", rest[0], help);
  }
  return fmt::format("millrace: {}; see {}\n", error.what(), help);
}

int run(int argc, char** argv) {
  CLI::App app{
      "Millrace serves Liquid AI's LFM2 models: a gateway with OpenAI's API, cells of pipeline "
      "stages and expert lanes."};
  app.set_version_flag("--version", fmt::format("millrace {}", kVersion));
  app.require_subcommand(1);
  app.failure_message(parse_failure);
  Options options;
  int status = 0;
  add_servers(app, options, status);
  add_drain(app, options, status);
  add_top(app, options, status);
  add_nodes(app, options, status);
  add_text(app, options, status);
  add_engine_bench(app, options, status);
  cli::add_bench_command(app, [&status](int result) { status = result; });

  auto* worker = app.add_subcommand("worker", "one rank of a cell; started by `millrace cell`");
  worker->add_option("--config", options.worker_command.config_file, "written by the cell")
      ->required();
  worker->add_option("--epoch", options.worker_command.epoch, "of this start of the cell")
      ->required();
  worker->callback([&] { status = run_worker_command(options.worker_command, &argc, &argv); });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : 2;
  }
  return status;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  try {
#if defined(MILLRACE_HAS_CUDA)
    millrace::install_device_backend(millrace::make_cuda_backend(millrace::self_path()));
#endif
    return millrace::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "millrace: {}\n", e.what());
    return 1;
  }
}
