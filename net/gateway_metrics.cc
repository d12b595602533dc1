#include "net/gateway_metrics.h"

namespace millrace::net {

GatewayMetrics::GatewayMetrics(Exporter* e) : exporter(e) {
  if (e == nullptr) return;
  running = e->gauge<Metric::kRequestsRunning>();
  waiting = e->gauge<Metric::kRequestsWaiting>();
  kv_usage = e->gauge<Metric::kKvCacheUsage>();
  ready = e->gauge<Metric::kReady>();
  draining = e->gauge<Metric::kDraining>();
  queue_capacity = e->gauge<Metric::kQueueCapacity>();
  queued_sequences = e->gauge<Metric::kQueuedSequences>();
  queued_tokens = e->gauge<Metric::kQueuedPromptTokens>();
  cells_ready = e->gauge<Metric::kCellsReady>();
  cells_joining = e->gauge<Metric::kCells>("joining");
  cells_healthy = e->gauge<Metric::kCells>("healthy");
  cells_suspect = e->gauge<Metric::kCells>("suspect");
  cells_draining = e->gauge<Metric::kCells>("draining");
  prompt_tokens = e->counter<Metric::kPromptTokens>();
  cached_tokens = e->counter<Metric::kPromptTokensCached>();
  prefix_queries = e->counter<Metric::kPrefixCacheQueries>();
  prefix_hits = e->counter<Metric::kPrefixCacheHits>();
  prefix_rebuilt = e->counter<Metric::kPrefixCacheRebuilt>();
  generation_tokens = e->counter<Metric::kGenerationTokens>();
  preemptions = e->counter<Metric::kPreemptions>();
  recomputed_tokens = e->counter<Metric::kPromptTokensRecomputed>();
  corrupted_requests = e->counter<Metric::kCorruptedRequests>();
  ended_stop = e->counter<Metric::kRequestSuccess>("stop");
  ended_length = e->counter<Metric::kRequestSuccess>("length");
  ended_abort = e->counter<Metric::kRequestSuccess>("abort");
  ended_error = e->counter<Metric::kRequestSuccess>("error");
  first_token = e->histogram<Metric::kTimeToFirstToken>();
  inter_token = e->histogram<Metric::kInterTokenLatency>();
  per_output_token = e->histogram<Metric::kTimePerOutputToken>();
  latency = e->histogram<Metric::kRequestLatency>();
  queue_time = e->histogram<Metric::kQueueTime>();
  prefill_time = e->histogram<Metric::kPrefillTime>();
  decode_time = e->histogram<Metric::kDecodeTime>();
  inference_time = e->histogram<Metric::kInferenceTime>();
  request_prompt = e->histogram<Metric::kRequestPromptTokens>();
  request_generation = e->histogram<Metric::kRequestGenerationTokens>();
  prefill_computed = e->histogram<Metric::kPrefillKvComputedTokens>();
  params_n = e->histogram<Metric::kRequestParamsN>();
  params_max_tokens = e->histogram<Metric::kRequestParamsMaxTokens>();
  rejected_queue_full = e->counter<Metric::kAdmissionRejections>("queue_full");
  rejected_token_budget = e->counter<Metric::kAdmissionRejections>("token_budget");
  rejected_no_cell = e->counter<Metric::kAdmissionRejections>("no_cell");
  rejected_draining = e->counter<Metric::kAdmissionRejections>("draining");
  failed_cell_lost = e->counter<Metric::kSequencesFailed>("cell_lost");
  failed_cell_error = e->counter<Metric::kSequencesFailed>("cell_error");
  failed_protocol = e->counter<Metric::kSequencesFailed>("protocol");
  failed_queue_timeout = e->counter<Metric::kSequencesFailed>("queue_timeout");
  failed_slow_consumer = e->counter<Metric::kSequencesFailed>("slow_consumer");
  failed_shutdown = e->counter<Metric::kSequencesFailed>("shutdown");
  replayed = e->counter<Metric::kSequencesReplayed>();
  dropped_stale_frame = e->counter<Metric::kMessagesDropped>("stale_frame");
  dropped_stale_token = e->counter<Metric::kMessagesDropped>("stale_token");
  dropped_duplicate = e->counter<Metric::kMessagesDropped>("duplicate");
  dropped_unknown = e->counter<Metric::kMessagesDropped>("unknown");
}

Counter GatewayMetrics::finished(FinishReason reason) const {
  switch (reason) {
    case FinishReason::kStop:
      return ended_stop;
    case FinishReason::kLength:
      return ended_length;
    case FinishReason::kCancelled:
      return ended_abort;
    default:
      return ended_error;
  }
}

}  // namespace millrace::net
