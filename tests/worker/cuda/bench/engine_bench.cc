// engine_cuda_bench: one worker on a device without anything around it, stepped by hand: start by
// phase, prefill of a long prompt as a share of the arithmetic ceiling, decode at several batch
// sizes as a share of the bytes' floor, and where the time of a step goes. With a random model
// (config/random_model.h) it needs no file. Every step is waited for, so a step's time holds what
// the host does as well; the scheduler of a real cell overlaps that.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <utility>

#include "tests/kernels/cuda/bench/bench.h"
#include "tests/worker/cuda/bench/step_trace.h"
#include "tests/worker/cuda/ranks.h"
#include "worker/cuda/cuda_backend.h"

namespace millrace::bench {
namespace {

using kernels::cuda::bench::Bench;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct EngineOptions {
  std::string model = "random:24b-a2b";
  std::string weights = "bf16";
  std::string kv = "bf16";
  std::vector<std::uint32_t> batches = {1, 32, 256, 1024};
  std::uint32_t context = 1024;
  std::uint32_t prefill = 8192;
  int steps = 40;
  int prefills = 6;
  bool trace = false;
  bool graphs = true;
  bool overlap = false;
  kernels::cuda::bench::Options records;
};

// Steps of one lane over sequences whose blocks are fixed by their slot.
class Plans {
 public:
  Plans(std::uint32_t block_tokens, std::uint32_t sequence_tokens, std::int32_t vocab)
      : block_tokens_(block_tokens),
        blocks_each_((sequence_tokens + block_tokens - 1) / block_tokens),
        vocab_(vocab) {}

  // A step in which sequences begin anew with `tokens` of prompt.
  StepPlan start(const std::vector<SlotId>& slots, std::uint32_t tokens) {
    StepPlan plan = empty();
    for (const SlotId slot : slots) {
      SequenceStart begin;
      begin.slot = slot;
      begin.sampling.temperature = 0;
      plan.lanes[0].starts.push_back(begin);
      lengths_.resize(std::max<std::size_t>(lengths_.size(), slot + 1));
      lengths_[slot] = 0;
      add(plan, slot, tokens);
    }
    return plan;
  }
  StepPlan decode(std::uint32_t sequences) {
    StepPlan plan = empty();
    for (SlotId slot = 0; slot < sequences; ++slot) add(plan, slot, 1);
    return plan;
  }
  double mean_length(std::uint32_t sequences) const {
    double sum = 0;
    for (SlotId slot = 0; slot < sequences; ++slot) sum += lengths_[slot];
    return sum / sequences;
  }

 private:
  StepPlan empty() {
    StepPlan plan;
    plan.step = ++step_;
    plan.bucket = 1;
    plan.lanes.resize(1);
    return plan;
  }
  void add(StepPlan& plan, SlotId slot, std::uint32_t tokens) {
    Chunk chunk;
    chunk.slot = slot;
    chunk.position = lengths_[slot];
    chunk.sample = true;
    for (std::uint32_t i = 0; i < tokens; ++i) {
      chunk.tokens.push_back(static_cast<std::int32_t>(random_() % static_cast<unsigned>(vocab_)));
      const std::uint32_t position = lengths_[slot]++;
      if (position % block_tokens_ == 0) {
        chunk.new_blocks.push_back(slot * blocks_each_ + position / block_tokens_);
      }
    }
    plan.lanes[0].chunks.push_back(std::move(chunk));
  }

  std::uint32_t block_tokens_;
  std::uint32_t blocks_each_;
  std::int32_t vocab_;
  std::mt19937 random_{1};
  std::uint64_t step_ = 0;
  std::vector<std::uint32_t> lengths_;
};

// Bytes that a decode step must read and write, experts chosen evenly: model.md 5.4's arithmetic.
double floor_bytes(const ModelConfig& m, const EngineOptions& o, double batch, double context) {
  const ParameterCounts n = count_parameters(m);
  const double linear = o.weights == "fp8" ? 1 + 1.0 / 64 : 2;
  const double layers = m.num_layers() - m.num_dense_layers;
  double expert_values = 0;
  if (m.num_experts > 0) {
    const double e = m.num_experts;
    const double used = e * (1 - std::pow(1 - m.num_experts_per_tok / e, batch));
    expert_values = layers * used * 3 * m.hidden_size * m.moe_intermediate_size;
  }
  const auto values = [](std::int64_t count) { return static_cast<double>(count); };
  const double weights = linear * (values(n.conv + n.attention + n.dense_ffn) + expert_values) +
                         2 * values(n.embedding + n.router) + 4 * values(n.norms);
  const auto attention = static_cast<double>(std::ranges::count(m.layers, LayerKind::kAttention));
  const double conv = m.num_layers() - attention;
  const double kv = attention * 2 * m.kv_width() * (o.kv == "fp8" ? 1 : 2);
  const double state = conv * m.hidden_size * (m.conv_l_cache - 1) * 2;
  return weights + batch * ((context + 1) * kv + 2 * state);
}

// Of a prompt from its first token; the head runs for the last one only.
double prefill_flop(const ModelConfig& m, double tokens) {
  const ParameterCounts n = count_parameters(m);
  const auto attention = static_cast<double>(std::ranges::count(m.layers, LayerKind::kAttention));
  return 2 * static_cast<double>(n.active - n.embedding) * tokens +
         2 * static_cast<double>(n.embedding) +
         attention * 4 * m.q_width() * tokens * (tokens + 1) / 2;
}

class EngineBench {
 public:
  EngineBench(const EngineOptions& options, Bench& bench, CudaWorker& worker,
              const CellSetup& setup)
      : o_(options),
        bench_(bench),
        worker_(worker),
        model_(setup.model),
        plans_(static_cast<std::uint32_t>(setup.config.cache.block_tokens),
               sequence_tokens(options), setup.model.vocab_size),
        name_(fmt::format("{} {} kv {}{}{}", o_.model, o_.weights, o_.kv,
                          o_.graphs ? "" : " no graphs", o_.overlap ? " overlap" : "")) {}

  // Positions that a sequence of a decode batch may come to.
  static std::uint32_t sequence_tokens(const EngineOptions& o) {
    return o.context +
           static_cast<std::uint32_t>(o.batches.size() * static_cast<std::size_t>(o.steps + 10));
  }

  void first_token() {
    const auto begin = Clock::now();
    worker_.execute(plans_.start({0}, std::min(o_.prefill, 512U)));
    report("first prefill", "time", "s", {seconds_since(begin)});
    const auto next = Clock::now();
    worker_.execute(plans_.decode(1));
    report("first decode", "time", "s", {seconds_since(next)});
  }

  void prefill() {
    std::vector<double> ms;
    for (int i = -1; i < o_.prefills; ++i) {
      const StepPlan plan = plans_.start({0}, o_.prefill);
      const auto begin = Clock::now();
      worker_.execute(plan);
      if (i >= 0) ms.push_back(seconds_since(begin) * 1e3);
    }
    const double flop = prefill_flop(model_, o_.prefill);
    const std::string what = fmt::format("prefill {}", o_.prefill);
    report(what, "time", "ms", ms);
    report(what, "rate", "tokens/s", inverse(ms, o_.prefill * 1e3));
    report(what, "flop_rate", "TFLOP/s", inverse(ms, flop * 1e-9));
    if (bench_.gemm_rate() > 0) {
      report(what, "of_ceiling", "share", inverse(ms, flop * 1e-9 / bench_.gemm_rate()));
    }
    if (o_.trace) traced(what, [&] { worker_.execute(plans_.start({0}, o_.prefill)); });
  }

  // Brings `sequences` to the context, several in a step.
  // From those that there are to so many.
  void fill(std::uint32_t sequences) {
    const std::uint32_t each = std::max(1U, o_.prefill / std::max(1U, o_.context));
    const std::uint32_t tokens = std::min(o_.context, o_.prefill);
    const auto begin = Clock::now();
    const SlotId begun = std::exchange(filled_, sequences);
    for (SlotId first = begun; first < sequences; first += each) {
      std::vector<SlotId> slots;
      for (SlotId slot = first; slot < std::min(first + each, sequences); ++slot)
        slots.push_back(slot);
      worker_.execute(plans_.start(slots, tokens));
    }
    const std::uint32_t count = sequences - begun;
    const double rate = static_cast<double>(count) * tokens / seconds_since(begin);
    report(fmt::format("prefill {} prompts of {}", count, tokens), "rate", "tokens/s", {rate});
  }

  void decode(std::uint32_t batch) {
    std::vector<double> ms;
    const double context = plans_.mean_length(batch);
    for (int i = -4; i < o_.steps; ++i) {  // launch by launch, recording, and two more
      const StepPlan plan = plans_.decode(batch);
      const auto begin = Clock::now();
      worker_.execute(plan);
      if (i >= 0) ms.push_back(seconds_since(begin) * 1e3);
    }
    const double bytes = floor_bytes(model_, o_, batch, context + o_.steps / 2.0);
    const std::string what = fmt::format("decode B={} at {:.0f}", batch, context);
    report(what, "time", "ms", ms);
    report(what, "rate", "tokens/s", inverse(ms, batch * 1e3));
    report(what, "bytes_rate", "GB/s", inverse(ms, bytes * 1e-6));
    if (bench_.copy_rate() > 0) {
      report(what, "of_floor", "share", inverse(ms, bytes * 1e-6 / bench_.copy_rate()));
    }
    if (o_.trace) traced(what, [&] { worker_.execute(plans_.decode(batch)); });
  }

  void report(const std::string& what, const char* metric, const char* unit,
              std::vector<double> values) {
    std::ranges::sort(values);
    const double median = values[values.size() / 2];
    fmt::print("{:44} {:12} {:12.3f} {:9} {:12.3f} -{:12.3f}\n", what, metric, median, unit,
               values.front(), values.back());
    std::fflush(stdout);
    bench_.record(name_ + " " + what, metric, unit, median, values.front(), values.back());
  }

 private:
  static std::vector<double> inverse(const std::vector<double>& ms, double work) {
    std::vector<double> out;
    for (const double v : ms) out.push_back(work / std::max(v, 1e-9));
    return out;
  }

  template <class Step>
  void traced(const std::string& what, Step step) {
    start_trace();
    step();
    const std::vector<TracedKernel> found = end_trace();
    double sum = 0;
    for (const TracedKernel& k : found) sum += k.us;
    fmt::print("  {:.1f} us between events:\n", sum);
    for (const TracedKernel& k : found) {
      fmt::print("  {:10.1f} us {:5.1f} % {:5} x {:8.2f} us  {}\n", k.us, 100 * k.us / sum,
                 k.launches, k.us / k.launches, k.name);
      bench_.record(fmt::format("{} {} in {}", name_, what, k.name), "share_of_step", "us", k.us,
                    k.us, k.us);
    }
  }

  const EngineOptions& o_;
  Bench& bench_;
  CudaWorker& worker_;
  const ModelConfig& model_;
  Plans plans_;
  SlotId filled_ = 0;
  std::string name_;
};

ClusterConfig config_of(const EngineOptions& o) {
  ClusterConfig config;
  config.model.path = o.model;
  config.grid.embedded = true;
  config.device.backend = DeviceChoice::kCuda;
  config.device.bind_numa = false;
  config.device.graphs = o.graphs;
  config.device.overlap_launches = o.overlap;
  config.device.weights = o.weights == "fp8" ? DeviceWeightFormat::kFp8 : DeviceWeightFormat::kBf16;
  config.cache.kv_dtype = o.kv == "fp8" ? KvDtype::kFp8 : KvDtype::kBf16;
  const std::uint32_t most = *std::ranges::max_element(o.batches);
  const std::uint32_t sequence = EngineBench::sequence_tokens(o);
  const auto block = static_cast<std::uint32_t>(config.cache.block_tokens);
  const std::uint32_t rounded = (sequence + block - 1) / block * block;
  config.cache.max_sequences = static_cast<int>(most);
  config.cache.max_context_tokens = std::max(sequence, o.prefill + block);
  config.cache.kv_tokens =
      std::max<std::int64_t>(std::int64_t{most} * rounded, o.prefill + 2 * block);
  config.scheduler.max_step_tokens = static_cast<int>(std::max({o.prefill, o.context, most}));
  config.scheduler.prefill_chunk_tokens = config.scheduler.max_step_tokens;
  return config;
}

int run_engine(const EngineOptions& o, Clock::time_point begin) {
  Bench bench(o.records);
  const double setup_begin = seconds_since(begin);
  const CellSetup setup = testing::setup_of(config_of(o));
  const double setup_s = seconds_since(begin) - setup_begin;
  int status = 1;
  const auto with = [&](StepExecutor& executor, double worker_s) {
    auto& worker = dynamic_cast<CudaWorker&>(executor);
    EngineBench engine(o, bench, worker, setup);
    engine.report("start: process and context", "time", "s", {setup_begin});
    engine.report("start: plan", "time", "s", {setup_s});
    engine.report("start: weights, memory, worker", "time", "s", {worker_s});
    engine.first_token();
    engine.report("start: to the first decode", "time", "s", {seconds_since(begin)});
    kernels::cuda::bench::run_ceilings(bench);
    engine.prefill();
    // Few sequences first: on a slow day the figures of one come before a million tokens of
    // prompts.
    std::vector<std::uint32_t> batches = o.batches;
    std::ranges::sort(batches);
    batches.erase(std::ranges::unique(batches).begin(), batches.end());
    for (const std::uint32_t batch : batches) {
      engine.fill(batch);
      engine.decode(batch);
    }
    status = 0;
  };
  const auto worker_begin = Clock::now();
  testing::with_worker(setup.config,
                       [&](const CellSetup&, Result<std::unique_ptr<StepExecutor>> made) {
                         if (!made) throw std::runtime_error(made.error().to_string());
                         with(**made, seconds_since(worker_begin));
                       });
  return status;
}

int run(int argc, char** argv) {
  const auto begin = Clock::now();
  CLI::App app{"A worker on a device, stepped by hand"};
  EngineOptions o;
  o.records.bench = "cuda-engine";
  o.records.command = "engine_cuda_bench";
  app.add_option("--model", o.model, "a model, or random:SHAPE")->capture_default_str();
  app.add_option("--weights", o.weights)->check(CLI::IsMember({"bf16", "fp8"}));
  app.add_option("--kv", o.kv)->check(CLI::IsMember({"bf16", "fp8"}));
  app.add_option("--batch", o.batches, "sequences that decode together")
      ->check(CLI::Range(1, 4096));
  app.add_option("--context", o.context, "positions of each when it begins")
      ->check(CLI::Range(1, 100'000));
  app.add_option("--prefill", o.prefill, "tokens of a prompt, and of a step at most");
  app.add_option("--steps", o.steps, "measured at each batch size")->check(CLI::Range(1, 10'000));
  app.add_flag("--trace", o.trace, "where the time of a step goes; without graphs");
  app.add_flag("--no-graphs{false}", o.graphs);
  app.add_flag("--overlap", o.overlap, "device.overlap_launches");
  app.add_option("--json", o.records.json, "append a JSON line for each figure to this file");
  app.add_option("--commit", o.records.commit, "for the JSON lines");
  app.add_flag("--smoke", o.records.smoke, "ceilings of tiny shapes, two prefills");
  CLI11_PARSE(app, argc, argv);
  if (o.trace) o.graphs = false;
  if (o.records.smoke) o.prefills = 2;
  o.records.command = fmt::format(
      "engine_cuda_bench --model {} --weights {} --kv {} --batch {} --context {} --prefill {}{}{}",
      o.model, o.weights, o.kv, fmt::join(o.batches, " "), o.context, o.prefill,
      o.trace    ? " --trace"
      : o.graphs ? ""
                 : " --no-graphs",
      o.overlap ? " --overlap" : "");
  if (kernels::cuda::device_count() == 0) {
    fmt::print(stderr, "engine_cuda_bench: no CUDA device\n");
    return 77;
  }
  kernels::cuda::set_device(0);
  install_device_backend(make_cuda_backend(""));
  return run_engine(o, begin);
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  try {
    return millrace::bench::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "engine_cuda_bench: {}\n", error.what());
    return 1;
  }
}
