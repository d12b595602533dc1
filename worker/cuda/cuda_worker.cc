#include "worker/cuda/cuda_worker.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <stdexcept>

#include "config/check.h"
#include "kernels/cuda/embedding.h"
#include "kernels/qk_norm_rope.h"
#include "worker/plan_transport.h"

namespace millrace {

namespace {

static_assert(kTokenOfSlot == kernels::cuda::kTokenOfSlot);

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// One runs, one is prepared.
constexpr std::size_t kMaxInFlight = 2;

// As worker/worker.cc.
constexpr milliseconds kReportInterval{500};
// A step takes some milliseconds, of which a sleep would take an eighth.
constexpr parallel::BackoffPolicy kStepWait{.yield = milliseconds(10)};

// Every sequence that runs goes on by one token, and nothing but the next token is wanted.
bool decodes_only(const StepPlan& plan) {
  return std::ranges::all_of(plan.lanes, [](const LanePlan& lane) {
    return std::ranges::all_of(lane.chunks, [](const Chunk& chunk) {
      return chunk.tokens.size() == 1 && chunk.prompt_targets.empty();
    });
  });
}

bool has_tokens(const StepPlan& plan) {
  return std::ranges::any_of(plan.lanes, [](const LanePlan& lane) { return !lane.chunks.empty(); });
}

std::vector<std::span<const parallel::ExpertHome>> homes_of(
    const DeviceShape& shape, const parallel::ExpertPlacement& placement) {
  std::vector<std::span<const parallel::ExpertHome>> homes;
  for (std::int32_t i = shape.shard.layer_begin; i < shape.shard.layer_end; ++i) {
    if (shape.model->is_moe_layer(i)) {
      homes.push_back(placement.layer(i - shape.model->num_dense_layers));
    }
  }
  return homes;
}

}  // namespace

CudaWorker::CudaWorker(const CudaWorkerOptions& options, const DeviceShape& shape,
                       DeviceWeights weights, const parallel::ExpertPlacement& placement,
                       parallel::CellComms& cell, DeviceComms comms)
    : options_(options),
      shape_(shape),
      cell_(cell),
      weights_(std::move(weights)),
      comms_(std::move(comms)),
      stream_(/*priority=*/0, options.overlap_launches),
      batch_(shape.limits),
      uploader_(shape_),
      starter_(shape_, state_),
      buckets_(shape_.decode_buckets()),
      graphs_(buckets_.sizes().size()) {
  slot_memory_ = make_arena([&](ArenaCursor& c) { lay_out_slots(c, shape_, state_); });
  kv_memory_ = make_arena([&](ArenaCursor& c) { lay_out_kv(c, shape_, state_); });
  work_memory_ = make_arena([&](ArenaCursor& c) { lay_out_workspace(c, shape_, work_); });
  upload_constants();
  if (shape_.moe_layers() > 0) {
    exchange_ = std::make_unique<parallel::DeviceExpertExchange>(
        comms_.stage.get(), shape_.exchange(), homes_of(shape_, placement));
  }
  if (comms_.column) {
    pipeline_ = std::make_unique<parallel::DevicePipeline>(*comms_.column, shape_.max_rows(),
                                                           shape_.model->hidden_size);
  }
  stage_ = std::make_unique<CudaStage>(shape_, weights_.map(), state_, work_, exchange_.get());
  for (std::size_t i = 0; i < kMaxInFlight; ++i) pending_.emplace_back(shape_, work_);
  in_flight_.reserve(kMaxInFlight);
  set_up_report(*cell.position);
}

CudaWorker::~CudaWorker() = default;

// Zeros where kernels count on them (tickets), and everywhere else so that padding is never a NaN.
void CudaWorker::upload_constants() {
  kernels::cuda::fill(stream_, work_memory_.data(), 0, work_memory_.bytes());
  kernels::cuda::fill(stream_, slot_memory_.data(), 0, slot_memory_.bytes());
  const std::vector<float> inverse =
      kernels::rope_inverse_frequencies(shape_.model->rope_theta, shape_.model->head_dim);
  kernels::cuda::copy_to_device(stream_, work_.inverse_frequencies, inverse.data(),
                                inverse.size() * sizeof(float));
  kernels::cuda::synchronize(stream_, options_.step_deadline);
}

void CudaWorker::set_up_report(const parallel::GridPosition& position) {
  report_.stage = static_cast<std::uint32_t>(position.stage);
  report_.lane = static_cast<std::uint32_t>(position.lane);
  report_.moe_layers = static_cast<std::uint32_t>(work_.moe_layers);
  report_.expert_rows.resize(static_cast<std::size_t>(work_.moe_layers) *
                             static_cast<std::size_t>(shape_.expert_slots()));
  for (std::int32_t i = shape_.shard.layer_begin; i < shape_.shard.layer_end; ++i) {
    if (!shape_.model->is_moe_layer(i)) continue;
    report_.first_moe_layer = static_cast<std::uint32_t>(i);
    break;
  }
}

parallel::DispatchPath CudaWorker::path_of(const StepPlan& plan) const {
  if (shape_.lanes == 1) return parallel::DispatchPath::kLocal;
  switch (plan.exchange) {
    case ExchangePath::kAllToAllFixed:
      return parallel::DispatchPath::kAllToAllFixed;
    case ExchangePath::kAllToAllExact:
      return parallel::DispatchPath::kAllToAllExact;
    case ExchangePath::kAllGather:
      return parallel::DispatchPath::kAllGather;
  }
  return parallel::DispatchPath::kAllToAllFixed;
}

// The padded sizes of the step, which every lane of the stage must come to alike: from the whole
// plan, not from this lane's part. `bucket`: index of the graph that may be used, or -1.
StageStep CudaWorker::plan_rows(const StepPlan& plan, int& bucket) const {
  const auto t = static_cast<std::int32_t>(batch_.tokens());
  StageStep step;
  step.path = path_of(plan);
  step.bucket = plan.bucket;
  step.in.rows = t;
  step.in.logit_rows = shape_.shard.last_stage ? count_sample_rows(batch_) : 0;
  bucket = -1;
  const bool alone = shape_.lanes == 1;
  const std::int32_t rows = alone ? t : static_cast<std::int32_t>(plan.bucket);
  if (rows == 0 || step.path == parallel::DispatchPath::kAllToAllExact || !decodes_only(plan)) {
    return step;
  }
  const int index = buckets_.index_of(rows);
  if (index < 0) return step;
  step.in.rows = buckets_.sizes()[static_cast<std::size_t>(index)];
  step.in.logit_rows = shape_.shard.last_stage ? step.in.rows : 0;
  step.bucket = step.in.rows;
  step.attention = kernels::cuda::AttentionBatch::kDecode;
  if (options_.graphs && (alone || comms_.stage->capturable())) bucket = index;
  return step;
}

void CudaWorker::forward(const StageStep& step) {
  if (shape_.shard.first_stage && step.in.rows > 0) stage_->embed(stream_, step);
  stage_->layers(stream_, step);
  if (shape_.shard.last_stage) stage_->sample(stream_, step);
}

void CudaWorker::launch(StageStep step, int bucket) {
  if (bucket < 0) {
    forward(step);
    return;
  }
  GraphSlot& slot = graphs_[static_cast<std::size_t>(bucket)];
  if (!slot.seen) {
    slot.seen = true;
    forward(step);
    return;
  }
  if (slot.graph.empty()) {
    slot.graph = kernels::cuda::Graph::capture(stream_, [&] { forward(step); });
    ++graphs_recorded_;
  }
  slot.graph.launch(stream_);
  ++graph_launches_;
}

void CudaWorker::submit(const StepPlan& plan) {
  const auto lane = static_cast<std::size_t>(cell_.position->lane);
  if (lane >= plan.lanes.size() || plan.bucket > shape_.limits.max_tokens) {
    throw std::runtime_error("step plan: wrong number of lanes, or a bucket above max_step_tokens");
  }
  CHECK(in_flight_.size() < kMaxInFlight, "{} steps in flight", in_flight_.size());
  const auto begin = Clock::now();
  const LanePlan& mine = plan.lanes[lane];
  batch_.load(mine);
  starter_.start(stream_, mine.starts, batch_.state_moves(), options_.step_deadline);

  int bucket = -1;
  StageStep step = plan_rows(plan, bucket);
  kernels::cuda::BlockTableArgs tables;
  tables.table = state_.block_tables;
  tables.entries = state_.block_table_entries;
  step.in = uploader_.upload(stream_, mine, batch_, step.in.rows, step.in.logit_rows, tables,
                             options_.step_deadline);
  const std::int64_t t = batch_.tokens();
  if (t > 0 && !shape_.shard.first_stage) pipeline_->recv(stream_, work_.hidden, t);
  const bool runs = t > 0 || shape_.lanes > 1;
  if (runs) launch(step, bucket);
  if (t > 0 && !shape_.shard.last_stage) pipeline_->send(stream_, work_.hidden, t);

  pending_[next_pending_].enqueue(stream_, plan.step, batch_, runs);
  in_flight_.push_back({next_pending_, has_tokens(plan), begin});
  next_pending_ = (next_pending_ + 1) % pending_.size();
}

void CudaWorker::check_peers() {
  if (comms_.stage) comms_.stage->check();
  if (comms_.column) comms_.column->check();
}

bool CudaWorker::oldest_is_done() {
  check_peers();
  const InFlight& oldest = in_flight_.front();
  if (pending_[oldest.pending].done()) return true;
  if (Clock::now() - oldest.begin < options_.step_deadline) return false;
  for (auto* comm : {comms_.stage.get(), comms_.column.get()}) {
    if (comm != nullptr) comm->abort("a step exceeded its deadline");
  }
  throw parallel::CommError("step", parallel::kNoPeer, options_.step_deadline,
                            "the device did not finish the step in time");
}

const StepResult& CudaWorker::collect() {
  for (parallel::Backoff backoff(kStepWait); !oldest_is_done(); backoff.pause()) {
  }
  const InFlight oldest = in_flight_.front();
  in_flight_.erase(in_flight_.begin());
  const auto now = Clock::now();
  for (InFlight& next : in_flight_) next.begin = now;
  result_.lane = static_cast<std::uint32_t>(cell_.position->lane);
  result_.sampled.clear();
  result_.prompt_logprobs.clear();
  pending_[oldest.pending].read(result_, report_.expert_rows);
  if (oldest.counted) {
    ++report_.steps;
    report_.step_ns += static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(now - oldest.begin).count());
  }
  return result_;
}

std::string_view CudaWorker::transport() const {
  if (comms_.stage) return comms_.stage->name();
  return comms_.column ? comms_.column->name() : "none";
}

const StepResult& CudaWorker::execute(const StepPlan& plan) {
  submit(plan);
  return collect();
}

// Takes plans while there is room for a step, and answers as steps are done.
void CudaWorker::run() {
  PlanReceiver receiver(*cell_.world);
  parallel::Backoff backoff(kStepWait);
  while (true) {
    const bool room = in_flight_.size() < kMaxInFlight;
    const StepPlan* plan = nullptr;
    if (room) plan = in_flight_.empty() ? &receiver.next() : receiver.poll();
    if (plan != nullptr) {
      if (plan->shutdown) break;
      submit(*plan);
    } else if (!room || oldest_is_done()) {
      answer(receiver);
    } else {
      backoff.pause();
      continue;
    }
    backoff = parallel::Backoff(kStepWait);
  }
  while (!in_flight_.empty()) answer(receiver);
}

void CudaWorker::answer(PlanReceiver& receiver) {
  const StepResult& result = collect();
  if (shape_.shard.last_stage) receiver.answer(result);
  if (Clock::now() - reported_ < kReportInterval) return;
  reported_ = Clock::now();
  receiver.report(report_);
}

std::vector<float> CudaWorker::read_logits(std::int64_t rows) const {
  std::vector<float> out(static_cast<std::size_t>(rows * shape_.model->vocab_size));
  kernels::cuda::copy_to_host(stream_, out.data(), work_.logits, out.size() * sizeof(float));
  kernels::cuda::synchronize(stream_, options_.step_deadline);
  return out;
}

}  // namespace millrace
