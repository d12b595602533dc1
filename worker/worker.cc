#include "worker/worker.h"

#include <algorithm>
#include <stdexcept>

#include "config/check.h"
#include "worker/plan_transport.h"
#include "worker/stopwatch.h"
#include "worker/workspace.h"

namespace millrace {

namespace {

// Often enough for metrics that are read every few seconds, rare enough to cost nothing.
constexpr std::chrono::milliseconds kReportInterval{500};

std::int64_t count_conv(const ModelWeights& weights) {
  return std::count_if(weights.layers.begin(), weights.layers.end(),
                       [](const LayerWeights& layer) { return layer.conv.has_value(); });
}

std::int64_t count_attention(const ModelWeights& weights) {
  return static_cast<std::int64_t>(weights.layers.size()) - count_conv(weights);
}

WorkspaceLimits workspace_limits(const WorkerOptions& options, const ModelWeights& weights,
                                 const parallel::CellComms& comms) {
  WorkspaceLimits limits;
  limits.stages = comms.grid.stages();
  limits.lanes = comms.grid.lanes();
  limits.last_stage = comms.grid.last_stage(*comms.position);
  limits.max_step_tokens = static_cast<std::int32_t>(options.limits.max_tokens);
  limits.max_sequences = static_cast<std::int32_t>(options.limits.max_sequences);
  limits.all_gather = options.all_gather;
  limits.packed = weights.any_packed;
  return limits;
}

}  // namespace

Worker::Worker(const WorkerOptions& options, const ModelConfig& model, const ModelWeights& weights,
               const parallel::ExpertPlacement& placement, parallel::CellComms& comms)
    : options_(options),
      model_(model),
      weights_(weights),
      placement_(placement),
      comms_(comms),
      pool_(options.threads, kernels::ThreadPool::kDefaultSpins, options.on_thread_start),
      quantized_(quantized_bytes(model, workspace_limits(options, weights, comms))),
      run_{&pool_, {quantized_.data(), quantized_.bytes()}},
      inverse_frequencies_(kernels::rope_inverse_frequencies(model.rope_theta, model.head_dim)),
      batch_(options.limits),
      kv_(count_attention(weights), options.limits.blocks, options.limits.block_tokens,
          model.num_kv_heads, model.head_dim, options.kv_dtype),
      conv_(count_conv(weights), options.limits.max_sequences + options.limits.snapshots,
            model.conv_l_cache, model.hidden_size),
      pipeline_(*comms.column, options.limits.max_tokens,
                static_cast<std::size_t>(model.hidden_size)) {
  CHECK(options.kernels != nullptr && comms.position.has_value(),
        "a worker has a place in the grid");
  for (const LayerWeights& layer : weights.layers) {
    if (layer.moe) moe_.emplace_back(*layer.moe);
  }
  std::int64_t expert_rows = 0;
  if (model.num_experts > 0) {
    const parallel::ExchangeShape shape =
        exchange_shape(model, workspace_limits(options, weights, comms));
    CHECK(shape.slots == placement.slots_per_lane(), "slots={} placement={}", shape.slots,
          placement.slots_per_lane());
    exchange_ =
        std::make_unique<parallel::ExpertExchange>(*comms.stage, shape, options.kernels->combine);
    expert_rows = parallel::ExpertExchange::max_rows(shape);
  }
  report_.stage = static_cast<std::uint32_t>(comms.position->stage);
  report_.lane = static_cast<std::uint32_t>(comms.position->lane);
  report_.moe_layers = static_cast<std::uint32_t>(moe_.size());
  for (const LayerWeights& layer : weights.layers) {
    if (!layer.moe) continue;
    report_.first_moe_layer = static_cast<std::uint32_t>(layer.layer);
    report_.expert_rows.resize(moe_.size() * layer.moe->experts.size());
    break;
  }
  act_ = std::make_unique<Activations>(model, options.limits.max_tokens, expert_rows, kLogitRows);
  if (last_stage()) {
    sampler_ = std::make_unique<Sampler>(options.limits.max_sequences, model.vocab_size);
  }
}

Worker::~Worker() = default;

std::string_view Worker::transport() const {
  return comms_.grid.workers() == 1 ? "none" : comms_.world->transport();
}

bool Worker::first_stage() const { return comms_.grid.first_stage(*comms_.position); }
bool Worker::last_stage() const { return comms_.grid.last_stage(*comms_.position); }

void Worker::run() {
  PlanReceiver receiver(*comms_.world);
  auto reported = std::chrono::steady_clock::now();
  while (true) {
    const StepPlan& plan = receiver.next();
    if (plan.shutdown) return;
    const StepResult& result = execute(plan);
    if (last_stage()) receiver.answer(result);
    const auto now = std::chrono::steady_clock::now();
    if (now - reported < kReportInterval) continue;
    reported = now;
    receiver.report(report_);
  }
}

void Worker::start_sequences(const LanePlan& plan) {
  if (!sampler_) return;
  for (const SequenceStart& start : plan.starts) {
    if (Result<void> ok = sampler_->start(start); !ok) {
      throw std::runtime_error("step plan: " + ok.error().to_string());
    }
  }
}

void Worker::take_input(const StepPlan& plan) {
  const StepContext step{*options_.kernels, run_, model_, batch_, *act_};
  if (first_stage()) {
    lfm2_embed(step, weights_.embed);
    return;
  }
  Stopwatch watch;
  const std::span<const float> in =
      pipeline_.recv(plan.step, static_cast<std::size_t>(batch_.tokens()));
  report_.pipeline_wait_ns += watch.lap_ns();
  std::copy(in.begin(), in.end(), step.hidden().data);
}

MoeExchange Worker::exchange_for(const StepPlan& plan) {
  parallel::DispatchPath path = parallel::DispatchPath::kLocal;
  if (comms_.grid.lanes() > 1) {
    switch (plan.exchange) {
      case ExchangePath::kAllToAllFixed:
        path = parallel::DispatchPath::kAllToAllFixed;
        break;
      case ExchangePath::kAllToAllExact:
        path = parallel::DispatchPath::kAllToAllExact;
        break;
      case ExchangePath::kAllGather:
        path = parallel::DispatchPath::kAllGather;
        break;
    }
  }
  return {*exchange_, path, plan.bucket, report_.exchange_ns, report_.expert_rows};
}

const StepResult& Worker::execute(const StepPlan& plan) {
  const auto lane = static_cast<std::size_t>(comms_.position->lane);
  if (lane >= plan.lanes.size() || plan.bucket > options_.limits.max_tokens) {
    throw std::runtime_error("step plan: wrong number of lanes, or a bucket above max_step_tokens");
  }
  Stopwatch watch;
  batch_.load(plan.lanes[lane]);
  start_sequences(plan.lanes[lane]);
  for (const StateMove& move : batch_.state_moves()) conv_.move(move);
  const bool any = batch_.tokens() > 0;
  if (any) take_input(plan);

  const StepContext step{*options_.kernels, run_, model_, batch_, *act_, comms_.world};
  const StageState state{kv_, conv_, moe_, inverse_frequencies_};
  if (exchange_) {
    const MoeExchange exchange = exchange_for(plan);
    lfm2_layers(step, weights_, state, &exchange, placement_);
  } else {
    lfm2_layers(step, weights_, state, nullptr, placement_);
  }

  result_.step = plan.step;
  result_.lane = static_cast<std::uint32_t>(lane);
  result_.sampled.clear();
  result_.prompt_logprobs.clear();
  if (last_stage()) {
    sample();
  } else if (any) {
    const auto hidden = step.hidden();
    pipeline_.send(plan.step,
                   {hidden.data, static_cast<std::size_t>(hidden.rows() * hidden.cols())});
  }
  // A plan without tokens only asks whether the worker lives.
  if (std::ranges::any_of(plan.lanes, [](const LanePlan& l) { return !l.chunks.empty(); })) {
    ++report_.steps;
    report_.step_ns += watch.lap_ns();
  }
  return result_;
}

void Worker::sample() {
  const StepContext step{*options_.kernels, run_, model_, batch_, *act_};
  const std::span<const LogitRow> rows = batch_.logit_rows();
  for (std::size_t begin = 0; begin < rows.size(); begin += kLogitRows) {
    const auto tile = rows.subspan(begin, std::min<std::size_t>(kLogitRows, rows.size() - begin));
    const auto logits = lfm2_logits(step, weights_, tile);
    for (std::size_t i = 0; i < tile.size(); ++i) {
      sample_row(tile[i], {logits.row(static_cast<std::int64_t>(i)),
                           static_cast<std::size_t>(logits.cols())});
    }
  }
}

void Worker::sample_row(const LogitRow& row, std::span<const float> logits) {
  if (row.sample) {
    Result<SampledToken> sampled = sampler_->sample(row.slot, row.position, logits);
    if (options_.limits.token_of_slot) {
      batch_.set_drawn(row.slot, sampled ? sampled->chosen.token : 0);
    }
    // Logits that are not numbers end this sequence only; its neighbours are not touched.
    result_.sampled.push_back(sampled ? std::move(*sampled)
                                      : SampledToken{row.slot, {kNoToken, 0}, {}});
  }
  if (row.prompt_target >= 0) {
    auto target =
        sampler_->prompt_logprob(logits, row.prompt_target, sampler_->alternatives(row.slot));
    PromptLogprobs entry{row.slot, row.position, {row.prompt_target, 0}, {}};
    if (target) {
      entry.target = target->target;
      entry.top = std::move(target->top);
    }
    result_.prompt_logprobs.push_back(std::move(entry));
  }
}

}  // namespace millrace
