#include "cli/cell_setup.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <chrono>

#include "cli/device_setup.h"
#include "cli/launch.h"
#include "kernels/dtype_name.h"
#include "kernels/packed_amx.h"

namespace millrace {

namespace {

// As the configuration spells it.
template <class E>
std::string_view enum_word(E wanted) {
  for (const auto& [name, value] : enum_names(E{})) {
    if (value == wanted) return name;
  }
  return "";
}

// What must agree between the cells of a gateway for C1 to hold across them: the tensors' names,
// types, shapes and a sample of their bytes, and the numeric mode.
std::string fingerprint(const TensorSource& source, const ClusterConfig& config,
                        std::string_view kernels) {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  EVP_DigestInit_ex(context, EVP_sha256(), nullptr);
  const auto add = [context](const void* data, std::size_t bytes) {
    EVP_DigestUpdate(context, data, bytes);
  };
  if (source.random() != nullptr) add(source.path().data(), source.path().size());
  for (const TensorEntry& tensor : source.tensors()) {
    const std::string line = fmt::format(
        "{} {} {}\n", tensor.name, kernels::dtype_name(tensor.dtype), shape_text(tensor.shape));
    add(line.data(), line.size());
    constexpr std::uint64_t kSampled = 64;  // a page read per tensor, not the whole file
    add(tensor.data, std::min(tensor.bytes, kSampled));
  }
  const std::string mode = fmt::format("{} kv={}", kernels, enum_word(config.cache.kv_dtype));
  add(mode.data(), mode.size());
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_DigestFinal_ex(context, digest, &length);
  EVP_MD_CTX_free(context);
  std::string hex;
  for (unsigned int i = 0; i < 16; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

CpuWeights cpu_weights(const ClusterConfig& config) {
  return on_devices(config) ? CpuWeights::kMapped : config.model.cpu_weights;
}

// Part of the numeric mode: whether dot products of quantised weights are of 8-bit activations, and
// to what plain weights were rounded.
std::string_view weights_word(const WeightFootprint& footprint, const ClusterConfig& config) {
  if (!footprint.any_packed) return "mapped";
  const bool quantised =
      config.model.cpu_weights == CpuWeights::kP4 || config.model.cpu_weights == CpuWeights::kP8;
  return quantised ? enum_word(config.model.cpu_weights) : "packed";
}

// Where AMX stands for packed weights; nothing where there is none or it was not asked for.
std::string_view amx_note(const ClusterConfig& config, const kernels::KernelTable& table,
                          const WeightFootprint& footprint) {
  if (on_devices(config) || !footprint.any_packed) return "";
  if (kernels::numeric_name(table) != table.name) return ", AMX tiles";
  const bool refused = kernels::amx_support() == kernels::AmxSupport::kNotPermitted;
  return config.grid.isa == Isa::kAuto && refused ? ", the system permits no AMX tiles" : "";
}

// With several nodes: on the fullest of them, since all workers get the same limits.
int workers_here(const ClusterConfig& c) {
  if (c.cell.hosts.empty()) return c.grid.stages * c.grid.lanes * c.grid.cells;
  int most = 1;
  for (const HostWorkers& host : place_on_hosts(c)) most = std::max(most, host.workers);
  return most;
}

void settle_threads(ClusterConfig& c, const MachineLimits& machine) {
  if (c.grid.threads_per_rank > 0) return;
  c.grid.threads_per_rank = std::max(1, machine.cores / workers_here(c));
}

// Limits that depend on the model alone.
Result<void> settle_context(ClusterConfig& c, const ModelConfig& model) {
  const std::int64_t most = model.max_position_embeddings;
  if (c.cache.max_context_tokens > most) {
    return invalid(
        "cache.max_context_tokens",
        fmt::format("{} is more than the model's {} positions", c.cache.max_context_tokens, most));
  }
  if (c.cache.max_context_tokens == 0) c.cache.max_context_tokens = most;
  if (c.cache.block_tokens % 16 != 0) {
    return invalid("cache.block_tokens", "must be a multiple of 16");
  }
  if (model.head_dim % 16 != 0 || model.head_dim > kernels::kMaxHeadDim) {
    return Error{
        ErrorCode::kUnsupported, "model.head_dim",
        fmt::format("{} is not a multiple of 16 up to {}", model.head_dim, kernels::kMaxHeadDim)};
  }
  if (c.cache.max_sequences > c.scheduler.max_step_tokens) {
    return invalid(
        "scheduler.max_step_tokens",
        fmt::format("must be at least cache.max_sequences ({}), or a step could not hold "
                    "one token of each sequence",
                    c.cache.max_sequences));
  }
  if (c.grid.lanes > 1 && model.num_experts == 0) {
    return invalid("grid.lanes", "a dense model has no experts to shard: use 1, and more cells");
  }
  if (model.num_experts > 0 && c.grid.lanes > model.num_experts) {
    return invalid("grid.lanes", fmt::format("the model has only {} experts", model.num_experts));
  }
  return {};
}

PlanLimits plan_limits(const ClusterConfig& c) {
  PlanLimits limits;
  limits.block_tokens = c.cache.block_tokens;
  limits.kv_dtype =
      c.cache.kv_dtype == KvDtype::kF32 ? kernels::DType::kF32 : kernels::DType::kBF16;
  limits.max_sequences = c.cache.max_sequences;
  limits.snapshots = c.cache.snapshots();
  limits.max_step_tokens = c.scheduler.max_step_tokens;
  limits.all_gather = c.scheduler.exchange == ExchangeChoice::kAllGather;
  limits.kv_tokens = c.cache.kv_tokens;
  limits.cache_bytes = static_cast<std::uint64_t>(c.cache.memory_bytes);
  return limits;
}

// Share of this machine's memory for one worker's KV blocks and conv slots, after the weights.
std::uint64_t automatic_cache_bytes(const ClusterConfig& c, const MachineLimits& machine,
                                    std::uint64_t weights) {
  const std::uint64_t available = machine.memory_bytes;
  const double left = available > weights ? static_cast<double>(available - weights) : 0.0;
  return static_cast<std::uint64_t>(left * c.cache.memory_fraction) /
         static_cast<std::uint64_t>(workers_here(c));
}

// The plan for c's numbers, on whatever the workers compute.
Result<MemoryPlan> plan_for(const ClusterConfig& c, const MachineLimits& machine,
                            const ModelConfig& model, const WeightFootprint& footprint,
                            const TensorSource& source, const std::vector<StageRange>& stages,
                            const std::vector<std::vector<std::int32_t>>& experts) {
  if (on_devices(c)) {
    const Result<DeviceProfile> profile = parse_device_profile(c.device.profile);
    if (!profile) return profile.error();
    return device_backend()->plan({model, source, stages, experts, c, *profile});
  }
  PlanLimits limits = plan_limits(c);
  const bool automatic = limits.kv_tokens == 0 && limits.cache_bytes == 0;
  if (automatic) {
    const ResidentWeights weights = resident_weights(model, footprint, stages, experts);
    limits.cache_bytes = automatic_cache_bytes(
        c, machine,
        weights.mapped_bytes + static_cast<std::uint64_t>(c.grid.cells) * weights.packed_bytes);
  }
  return plan_memory(model, footprint, stages, experts, limits);
}

Result<MemoryPlan> settle_memory(ClusterConfig& c, const MachineLimits& machine,
                                 const ModelConfig& model, const WeightFootprint& footprint,
                                 const TensorSource& source, const std::vector<StageRange>& stages,
                                 const std::vector<std::vector<std::int32_t>>& experts) {
  Result<MemoryPlan> plan = plan_for(c, machine, model, footprint, source, stages, experts);
  if (!plan) return plan;
  // More KV than all sequences at full length could use would only be memory taken from others.
  const std::int64_t useful = std::int64_t{c.cache.max_sequences} *
                              ((c.cache.max_context_tokens + c.cache.block_tokens - 1) /
                               c.cache.block_tokens * c.cache.block_tokens);
  if (c.cache.kv_tokens == 0 && plan->kv_tokens > useful) {
    c.cache.kv_tokens = useful;
    plan = plan_for(c, machine, model, footprint, source, stages, experts);
    if (!plan) return plan;
  }
  c.cache.kv_tokens = plan->kv_tokens;
  c.cache.max_context_tokens = std::min<std::int64_t>(c.cache.max_context_tokens, plan->kv_tokens);
  return plan;
}

std::string last_part(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.find_last_of('/') + 1);
}

}  // namespace

Result<CellSetup> make_cell_setup(ClusterConfig config) {
  const auto begin = std::chrono::steady_clock::now();
  if (config.model.path.empty()) {
    return invalid("model.path", "is empty: give a Hugging Face folder or a .gguf file");
  }
  Result<ModelConfig> model = load_model_config(config.model.path);
  if (!model) return model.error();
  if (config.model.served_name.empty()) config.model.served_name = last_part(config.model.path);
  if (Result<void> ok = settle_context(config, *model); !ok) return ok.error();
  if (Result<void> ok = settle_device(config, *model, device_backend()); !ok) return ok.error();
  MachineLimits machine = measure_machine();
  settle_threads(config, machine);
  Result<const kernels::KernelTable*> table = kernels::select_table(enum_word(config.grid.isa));
  if (!table) return table.error();

  Result<TensorSource> source = TensorSource::open(config.model.path);
  if (!source) return source.error();
  Result<WeightFootprint> footprint = measure_weights(*source, *model, cpu_weights(config));
  if (!footprint) return footprint.error();
  if (on_devices(config) && footprint->any_packed) {
    return Error{ErrorCode::kUnsupported, "model.path",
                 fmt::format("{} was packed for CPUs; devices take the model it was made from",
                             config.model.path)};
  }
  Result<std::vector<StageRange>> stages = cut_stages(weight_costs(*footprint), config.grid.stages);
  if (!stages) return stages.error();
  Result<std::vector<std::vector<std::int32_t>>> experts =
      split_experts(model->num_experts, config.grid.lanes);
  if (!experts) return experts.error();
  Result<MemoryPlan> memory =
      settle_memory(config, machine, *model, *footprint, *source, *stages, *experts);
  if (!memory) return memory.error();

  const int moe_layers = model->num_experts > 0 ? model->num_layers() - model->num_dense_layers : 0;
  parallel::ExpertPlacement placement = parallel::ExpertPlacement::contiguous(
      std::max(1, moe_layers), std::max(1, model->num_experts), config.grid.lanes);
  std::string mode =
      fmt::format("{} {}", kernels::numeric_name(**table), weights_word(*footprint, config));
  if (on_devices(config)) {
    mode = device_backend()->numeric_mode(*parse_device_profile(config.device.profile), config);
  }
  std::string print = fingerprint(*source, config, mode);
  std::string tiles_note(amx_note(config, **table, *footprint));
  const std::chrono::duration<float> took = std::chrono::steady_clock::now() - begin;
  return CellSetup{std::move(config),
                   std::move(*model),
                   std::move(*source),
                   std::move(*stages),
                   std::move(placement),
                   std::move(*memory),
                   std::move(machine),
                   std::move(print),
                   std::move(mode),
                   std::move(tiles_note),
                   *table,
                   took.count()};
}

SchedulerLimits CellSetup::scheduler_limits() const {
  SchedulerLimits limits;
  limits.stages = static_cast<std::uint32_t>(config.grid.stages);
  limits.lanes = static_cast<std::uint32_t>(config.grid.lanes);
  limits.max_sequences = static_cast<std::uint32_t>(config.cache.max_sequences);
  limits.blocks = static_cast<std::uint32_t>(memory.kv_blocks);
  limits.block_tokens = static_cast<std::uint32_t>(config.cache.block_tokens);
  limits.max_step_tokens = static_cast<std::uint32_t>(config.scheduler.max_step_tokens);
  limits.prefill_chunk_tokens = static_cast<std::uint32_t>(config.scheduler.prefill_chunk_tokens);
  limits.max_context_tokens = static_cast<std::uint32_t>(config.cache.max_context_tokens);
  limits.max_waiting = static_cast<std::uint32_t>(config.scheduler.max_waiting);
  limits.vocab_size = model.vocab_size;
  limits.exchange = config.scheduler.exchange;
  limits.prefix_cache = config.cache.prefix;
  limits.snapshots = static_cast<std::uint32_t>(config.cache.snapshots());
  const auto conv = std::ranges::count(model.layers, LayerKind::kShortConv);
  limits.state_tokens = static_cast<std::uint32_t>(conv * (model.conv_l_cache - 1));
  const AsyncSteps async = config.scheduler.async;
  limits.async = config.grid.stages == 1 && (async == AsyncSteps::kAlways ||
                                             (async == AsyncSteps::kAuto && on_devices(config)));
  if (on_devices(config)) {
    limits.max_logprobs = kMaxDeviceLogprobs;
    limits.max_logit_bias = kMaxDeviceLogitBias;
  }
  return limits;
}

WorkerOptions CellSetup::worker_options() const {
  const SchedulerLimits s = scheduler_limits();
  WorkerOptions options;
  options.limits = {s.max_step_tokens,
                    s.max_sequences,
                    s.max_context_tokens,
                    s.blocks,
                    s.block_tokens,
                    s.snapshots,
                    s.vocab_size,
                    /*token_of_slot=*/s.stages == 1};
  options.kv_dtype = plan_limits(config).kv_dtype;
  options.threads = config.grid.threads_per_rank;
  options.kernels = kernels;
  options.all_gather = config.scheduler.exchange == ExchangeChoice::kAllGather;
  return options;
}

RankShard CellSetup::shard(parallel::GridPosition position) const {
  return make_shard(model, stages, position.stage, placement.local_experts(0, position.lane));
}

CellInfo CellSetup::cell_info(std::uint64_t epoch) const {
  const SchedulerLimits s = scheduler_limits();
  CellInfo info;
  info.cell_id = config.cell.id;
  info.epoch = epoch;
  info.model_fingerprint = fingerprint;
  info.max_context = s.max_context_tokens;
  info.max_sequences = s.max_sequences * s.lanes;
  info.kv_tokens = static_cast<std::uint64_t>(memory.kv_tokens) * s.lanes;
  info.stages = s.stages;
  info.lanes = s.lanes;
  info.block_tokens = static_cast<std::uint32_t>(config.cache.block_tokens);
  info.kv_dtype = config.cache.kv_dtype == KvDtype::kF32   ? "float32"
                  : config.cache.kv_dtype == KvDtype::kFp8 ? "fp8_e4m3"
                                                           : "bfloat16";
  info.backend = on_devices(config) ? std::string(device_backend()->name()) : "cpu";
  return info;
}

std::string describe(const CellSetup& setup) {
  const ModelConfig& m = setup.model;
  const ClusterConfig& c = setup.config;
  const auto conv = std::count(m.layers.begin(), m.layers.end(), LayerKind::kShortConv);
  std::string text = fmt::format(
      "model    {} ({}): {} layers ({} short conv, {} attention), hidden {}, vocabulary {}",
      c.model.served_name, m.model_type, m.num_layers(), conv, m.num_layers() - conv, m.hidden_size,
      m.vocab_size);
  if (m.num_experts > 0) {
    text += fmt::format(", {} experts top-{} in {} layers", m.num_experts, m.num_experts_per_tok,
                        m.num_layers() - m.num_dense_layers);
  }
  if (on_devices(c)) {
    const DeviceProfile profile = parse_device_profile(c.device.profile).value();
    text += fmt::format(
        "\ndevice   {}, compute capability {}.{}, {} multiprocessors, {:.0f} % of {:.1f} free GiB, "
        "{}",
        device_backend()->name(), profile.compute_capability / 10, profile.compute_capability % 10,
        profile.sm_count, 100 * c.device.memory_fraction,
        static_cast<double>(profile.free_bytes) / (1ULL << 30),
        c.device.ranks_per_device > 1 ? fmt::format("one for {} workers", c.device.ranks_per_device)
                                      : "one for each worker");
  }
  text += fmt::format("\nmachine  {:.1f} GiB of memory ({}), {} cores ({})",
                      static_cast<double>(setup.machine.memory_bytes) / (1ULL << 30),
                      setup.machine.memory_source, setup.machine.cores, setup.machine.cores_source);
  text += fmt::format(
      "\ngrid     {} stages x {} lanes x {} cells, {} threads a worker, {} kernels{}\n"
      "serving  {} sequences a lane, context {} tokens, KV {} tokens a lane\n{}",
      c.grid.stages, c.grid.lanes, c.grid.cells, c.grid.threads_per_rank, setup.numeric_mode,
      setup.tiles_note, c.cache.max_sequences, c.cache.max_context_tokens, setup.memory.kv_tokens,
      format_plan(setup.memory));
  return text;
}

}  // namespace millrace
