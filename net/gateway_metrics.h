// The gateway's handles into the exporter, taken once. Without an exporter they swallow.
#pragma once

#include <string>

#include "coordinator/request.h"
#include "monitoring/exporter.h"

namespace millrace::net {

struct GatewayMetrics {
  explicit GatewayMetrics(Exporter* exporter);

  Counter finished(FinishReason reason) const;

  Exporter* exporter;  // for the series of a cell, whose name is not known before; may be null
  Gauge running, waiting, kv_usage, ready, draining, queue_capacity, queued_sequences,
      queued_tokens, cells_ready;
  Gauge cells_joining, cells_healthy, cells_suspect, cells_draining;
  Counter prompt_tokens, cached_tokens, prefix_queries, prefix_hits, prefix_rebuilt;
  Counter generation_tokens, preemptions, recomputed_tokens, corrupted_requests;
  Counter ended_stop, ended_length, ended_abort, ended_error;
  Histogram first_token, inter_token, per_output_token, latency, queue_time, prefill_time,
      decode_time, inference_time;
  Histogram request_prompt, request_generation, prefill_computed, params_n, params_max_tokens;
  Counter rejected_queue_full, rejected_token_budget, rejected_no_cell, rejected_draining;
  Counter failed_cell_lost, failed_cell_error, failed_protocol, failed_queue_timeout,
      failed_slow_consumer, failed_shutdown, replayed;
  Counter dropped_stale_frame, dropped_stale_token, dropped_duplicate, dropped_unknown;
};

}  // namespace millrace::net
