// Every metric Millrace exports: one list, as data. The exporter is built from it, code can name a
// metric only through it, and monitoring/metrics.md, dashboards and alerts are checked against it
// (contract C6).
//
// Names under "vllm:" are vLLM's, with vLLM's meaning and labels, so that existing dashboards,
// autoscalers and inference gateways read them unchanged; ours stand beside them under "millrace_".
// Only what is filled truthfully is listed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace millrace {

enum class MetricType : std::uint8_t { kCounter, kGauge, kHistogram };

struct MetricLabel {
  std::string_view name;
  std::span<const std::string_view>
      values;  // all there are, exported as 0 from the start; empty: open
};

// In the order of kCatalogue.
enum class Metric : std::uint8_t {
  // Gauges in vLLM's words
  kRequestsRunning,
  kRequestsWaiting,
  kKvCacheUsage,
  kCacheConfigInfo,
  // Counters in vLLM's words
  kPromptTokens,
  kPromptTokensCached,
  kPrefixCacheQueries,
  kPrefixCacheHits,
  kGenerationTokens,
  kRequestSuccess,
  kPreemptions,
  kPromptTokensRecomputed,
  kCorruptedRequests,
  // Histograms in vLLM's words
  kTimeToFirstToken,
  kInterTokenLatency,
  kTimePerOutputToken,
  kRequestLatency,
  kQueueTime,
  kPrefillTime,
  kDecodeTime,
  kInferenceTime,
  kRequestPromptTokens,
  kRequestGenerationTokens,
  kPrefillKvComputedTokens,
  kRequestParamsN,
  kRequestParamsMaxTokens,
  kIterationTokens,
  // Ours: service
  kBuildInfo,
  kReady,
  kDraining,
  kHttpRequests,
  kAdmissionRejections,
  kSequencesFailed,
  kSequencesReplayed,
  kQueueCapacity,
  kQueuedSequences,
  kQueuedPromptTokens,
  kMessagesDropped,
  kPrefixCacheRebuilt,
  // Ours: cells
  kCellsReady,
  kCells,
  kCellInfo,
  kCellEpoch,
  kCellRestarts,
  kCellLosses,
  kCellHeartbeatAge,
  kCellSteps,
  kCellWorkers,
  kCellSlots,
  kCellSlotsUsed,
  kCellWaiting,
  kCellKvTokens,
  kCellKvTokensUsed,
  kCellKvTokensCached,
  // Ours: inside cells
  kStepTime,
  kCellBusy,
  kPipelineBubble,
  kWorkerStepTime,
  kWorkerExchangeTime,
  kWorkerPipelineWait,
  kExpertRows,
  kExpertImbalance,
  kLaneImbalance,
  kStartPhase,
  // Ours: told by whoever starts a cell's ranks (`serve` itself, or `cell` on its health port)
  kCellStartState,
  kCellLoaded,
  kCellStarts,
  kCount,
};

struct MetricDesc {
  Metric id;
  MetricType type;
  std::string_view name;  // as exported
  std::string_view unit;  // "s", "tokens", "1" for counts and flags, "ratio" for 0..1
  std::string_view help;
  std::span<const MetricLabel>
      labels;                       // beside model_name and engine, which all vllm: metrics have
  std::span<const double> buckets;  // upper bounds of a histogram, ascending, without +Inf
};

namespace catalogue_detail {

// vLLM's bounds; the first five of kInterTokenBuckets are added because a token may take 2 ms here.
inline constexpr double kFirstTokenBuckets[] = {.001, .005, .01, .02, .04, .06, .08, .1,
                                                .25,  .5,   .75, 1,   2.5, 5,   7.5, 10,
                                                20,   40,   80,  160, 640, 2560};
inline constexpr double kInterTokenBuckets[] = {.001, .002, .003, .005, .0075, .01, .025, .05,
                                                .075, .1,   .15,  .2,   .3,    .4,  .5,   .75,
                                                1,    2.5,  5,    7.5,  10,    20,  40,   80};
inline constexpr double kLatencyBuckets[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                             30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
inline constexpr double kTokenCountBuckets[] = {1,   2,    5,    10,   20,    50,    100,   200,
                                                500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
inline constexpr double kStepBuckets[] = {.0005, .001, .002, .003, .005, .0075, .01, .015, .02, .03,
                                          .05,   .075, .1,   .15,  .25,  .5,    1,   2.5,  5,   10};
inline constexpr double kChoiceBuckets[] = {1, 2, 5, 10, 20};
inline constexpr double kIterationBuckets[] = {1,   8,    16,   32,   64,   128,  256,
                                               512, 1024, 2048, 4096, 8192, 16384};

inline constexpr std::string_view kFinishedReasons[] = {"stop", "length", "abort", "error"};
inline constexpr MetricLabel kFinishedReason[] = {{"finished_reason", kFinishedReasons}};
inline constexpr MetricLabel kCacheConfig[] = {
    {"block_size", {}}, {"num_gpu_blocks", {}}, {"cache_dtype", {}}};
inline constexpr MetricLabel kBuild[] = {{"version", {}}, {"backend", {}}};
inline constexpr MetricLabel kRouteStatus[] = {{"route", {}}, {"status", {}}};
inline constexpr std::string_view kRejections[] = {"queue_full", "token_budget", "no_cell",
                                                   "draining"};
inline constexpr MetricLabel kRejection[] = {{"reason", kRejections}};
inline constexpr std::string_view kFailures[] = {"cell_lost",     "cell_error",    "protocol",
                                                 "queue_timeout", "slow_consumer", "shutdown"};
inline constexpr MetricLabel kFailure[] = {{"reason", kFailures}};
inline constexpr std::string_view kDrops[] = {"stale_frame", "stale_token", "duplicate", "unknown"};
inline constexpr MetricLabel kDrop[] = {{"reason", kDrops}};
inline constexpr std::string_view kStates[] = {"joining", "healthy", "suspect", "draining"};
inline constexpr MetricLabel kState[] = {{"state", kStates}};
inline constexpr std::string_view kStartStates[] = {"starting", "loading", "ready", "backoff",
                                                    "stopped"};
inline constexpr MetricLabel kStartState[] = {{"cell", {}}, {"state", kStartStates}};
inline constexpr MetricLabel kCellLinks[] = {{"cell", {}}, {"backend", {}}, {"transport", {}}};
inline constexpr MetricLabel kCell[] = {{"cell", {}}};
inline constexpr MetricLabel kWorker[] = {{"cell", {}}, {"stage", {}}, {"lane", {}}};
inline constexpr MetricLabel kLayer[] = {{"cell", {}}, {"layer", {}}};
inline constexpr MetricLabel kLayerLane[] = {{"cell", {}}, {"layer", {}}, {"lane", {}}};
inline constexpr MetricLabel kPhase[] = {{"cell", {}}, {"phase", {}}};

constexpr auto kCtr = MetricType::kCounter;
constexpr auto kGau = MetricType::kGauge;
constexpr auto kHis = MetricType::kHistogram;

}  // namespace catalogue_detail

// clang-format off
inline constexpr auto kCatalogue = [] {
  using namespace catalogue_detail;  // NOLINT: the list reads as a table
  return std::array<MetricDesc, static_cast<std::size_t>(Metric::kCount)>{{
    {Metric::kRequestsRunning, kGau, "vllm:num_requests_running", "1",
     "Sequences a cell works on now, all cells together.", {}, {}},
    {Metric::kRequestsWaiting, kGau, "vllm:num_requests_waiting", "1",
     "Sequences accepted and not yet worked on: in the gateway's queue or waiting in a cell.",
      {}, {}},
    {Metric::kKvCacheUsage, kGau, "vllm:kv_cache_usage_perc", "ratio",
     "Used share of the KV cache over all cells, 0 to 1.", {}, {}},
    {Metric::kCacheConfigInfo, kGau, "vllm:cache_config_info", "1",
     "Always 1; the KV cache's shape stands in the labels.", kCacheConfig, {}},
    {Metric::kPromptTokens, kCtr, "vllm:prompt_tokens_total", "tokens",
     "Prompt tokens of sequences whose prompt has been computed: their first token has arrived.",
     {}, {}},
    {Metric::kPromptTokensCached, kCtr, "vllm:prompt_tokens_cached_total", "tokens",
     "Of these, those that a cell had from its prefix cache and did not compute.", {}, {}},
    {Metric::kPrefixCacheQueries, kCtr, "vllm:prefix_cache_queries_total", "tokens",
     "Tokens that cells looked for in their prefix caches: of a sequence all but the last one, "
     "delivered ones too where it came from a lost cell, and none where the prompt's "
     "log-probabilities are wanted.", {}, {}},
    {Metric::kPrefixCacheHits, kCtr, "vllm:prefix_cache_hits_total", "tokens",
     "Of these, those that were found, so that they were not computed.", {}, {}},
    {Metric::kGenerationTokens, kCtr, "vllm:generation_tokens_total", "tokens",
     "Generated tokens passed on to streams, each counted once.", {}, {}},
    {Metric::kRequestSuccess, kCtr, "vllm:request_success_total", "1",
     "Sequences that ended, by reason: abort is a cancellation, error an explicit error event.",
     kFinishedReason, {}},
    {Metric::kPreemptions, kCtr, "vllm:num_preemptions_total", "1",
     "Preemptions reported by the cells.", {}, {}},
    {Metric::kPromptTokensRecomputed, kCtr, "vllm:prompt_tokens_recomputed_total", "tokens",
     "Tokens that cells computed again because a preemption had given up their KV: of prompts and "
     "of what had been generated.", {}, {}},
    {Metric::kCorruptedRequests, kCtr, "vllm:corrupted_requests_total", "1",
     "Sequences that a cell ended because their logits were not finite.", {}, {}},
    {Metric::kTimeToFirstToken, kHis, "vllm:time_to_first_token_seconds", "s",
     "From admission to the first token of a sequence.", {}, kFirstTokenBuckets},
    {Metric::kInterTokenLatency, kHis, "vllm:inter_token_latency_seconds", "s",
     "Between two consecutive tokens of a sequence.", {}, kInterTokenBuckets},
    {Metric::kTimePerOutputToken, kHis, "vllm:request_time_per_output_token_seconds", "s",
     "Mean gap between the tokens of a finished sequence of two tokens or more.",
      {}, kInterTokenBuckets},
    {Metric::kRequestLatency, kHis, "vllm:e2e_request_latency_seconds", "s",
     "From admission to the last token of a finished sequence.", {}, kLatencyBuckets},
    {Metric::kQueueTime, kHis, "vllm:request_queue_time_seconds", "s",
     "From admission to the first step of a sequence: in the gateway's queue and in its cell's.",
     {}, kLatencyBuckets},
    {Metric::kPrefillTime, kHis, "vllm:request_prefill_time_seconds", "s",
     "From the first step to the first token of a finished sequence.", {}, kLatencyBuckets},
    {Metric::kDecodeTime, kHis, "vllm:request_decode_time_seconds", "s",
     "From the first to the last token of a finished sequence.", {}, kLatencyBuckets},
    {Metric::kInferenceTime, kHis, "vllm:request_inference_time_seconds", "s",
     "From the first step to the last token of a finished sequence.", {}, kLatencyBuckets},
    {Metric::kRequestPromptTokens, kHis, "vllm:request_prompt_tokens", "tokens",
     "Prompt length of finished sequences.", {}, kTokenCountBuckets},
    {Metric::kRequestGenerationTokens, kHis, "vllm:request_generation_tokens", "tokens",
     "Generated tokens of finished sequences.", {}, kTokenCountBuckets},
    {Metric::kPrefillKvComputedTokens, kHis, "vllm:request_prefill_kv_computed_tokens", "tokens",
     "Prompt tokens of finished sequences whose KV was computed for them.", {},
     kTokenCountBuckets},
    {Metric::kRequestParamsN, kHis, "vllm:request_params_n", "1",
     "Choices asked for by admitted requests.", {}, kChoiceBuckets},
    {Metric::kRequestParamsMaxTokens, kHis, "vllm:request_params_max_tokens", "tokens",
     "Token limit of admitted requests.", {}, kTokenCountBuckets},
    {Metric::kIterationTokens, kHis, "vllm:iteration_tokens_total", "tokens",
     "Tokens of a step, prefill and decode together.", {}, kIterationBuckets},

    {Metric::kBuildInfo, kGau, "millrace_build_info", "1",
     "Always 1; in the labels the version, and where the cells compute (auto: each decides).",
     kBuild, {}},
    {Metric::kReady, kGau, "millrace_ready", "1",
     "1 while new requests are accepted.", {}, {}},
    {Metric::kDraining, kGau, "millrace_draining", "1",
     "1 from the order to drain on.", {}, {}},
    {Metric::kHttpRequests, kCtr, "millrace_http_requests_total", "1",
     "HTTP requests by route and status; 499: the client went away first, stream_error: the stream "
     "ended in an error event after its 200.", kRouteStatus, {}},
    {Metric::kAdmissionRejections, kCtr, "millrace_admission_rejections_total", "1",
     "Requests refused before any work, by the limit or state that refused them.", kRejection, {}},
    {Metric::kSequencesFailed, kCtr, "millrace_sequences_failed_total", "1",
     "Admitted sequences that ended in an explicit error, by cause.", kFailure, {}},
    {Metric::kSequencesReplayed, kCtr, "millrace_sequences_replayed_total", "1",
     "Times that a sequence went back to the queue because its cell was lost or gave it up; another "
     "goes on with it after the last token delivered.", {}, {}},
    {Metric::kQueueCapacity, kGau, "millrace_queue_capacity", "1",
     "Sequences that the gateway's queue takes; more are refused.", {}, {}},
    {Metric::kQueuedSequences, kGau, "millrace_queued_sequences", "1",
     "Sequences in the gateway's queue: handed to no cell yet.", {}, {}},
    {Metric::kQueuedPromptTokens, kGau, "millrace_queued_prompt_tokens", "tokens",
     "Prompt tokens in the gateway's queue.", {}, {}},
    {Metric::kMessagesDropped, kCtr, "millrace_messages_dropped_total", "1",
     "Messages from cells that were dropped: of an old epoch, repeated, or for an ended sequence.",
     kDrop, {}},
    {Metric::kPrefixCacheRebuilt, kCtr, "millrace_prefix_cache_rebuilt_tokens_total", "tokens",
     "Tokens that cells found in their prefix caches and computed nevertheless, for the conv state "
     "behind them: there was no snapshot of it. Not among the hits.", {}, {}},
    {Metric::kCellsReady, kGau, "millrace_cells_ready", "1",
     "Connected cells that take new work.", {}, {}},
    {Metric::kCells, kGau, "millrace_cells", "1",
     "Connected cells by state.", kState, {}},
    {Metric::kCellInfo, kGau, "millrace_cell_info", "1",
     "1 for a connected cell, 0 while it is away; in the labels where it computes, and what carries "
     "rows between its workers: none, threads, mpi, nccl and its version, or staged (device memory "
     "by way of the host).", kCellLinks, {}},
    {Metric::kCellEpoch, kGau, "millrace_cell_epoch", "1",
     "Epoch of a cell: grows with each of its starts.", kCell, {}},
    {Metric::kCellRestarts, kCtr, "millrace_cell_restarts_total", "1",
     "Times a cell came back with a higher epoch.", kCell, {}},
    {Metric::kCellLosses, kCtr, "millrace_cell_losses_total", "1",
     "Times a cell went away without a Goodbye.", kCell, {}},
    {Metric::kCellHeartbeatAge, kGau, "millrace_cell_heartbeat_age_seconds", "s",
     "Time since anything was heard of a cell; goes on when it is lost, NaN once it said Goodbye.",
     kCell, {}},
    {Metric::kCellSteps, kCtr, "millrace_cell_steps_total", "1",
     "Steps a cell has finished, as its heartbeats report.", kCell, {}},
    {Metric::kCellWorkers, kGau, "millrace_cell_workers", "1",
     "Workers of a connected cell, stages times lanes; 0 while it is away.", kCell, {}},
    {Metric::kCellSlots, kGau, "millrace_cell_slots", "1",
     "Sequences that a cell runs at once, each in a slot of conv state; 0 while it is away.",
     kCell, {}},
    {Metric::kCellSlotsUsed, kGau, "millrace_cell_slots_used", "1",
     "Slots of a cell with a sequence in them, as its last heartbeat says.", kCell, {}},
    {Metric::kCellWaiting, kGau, "millrace_cell_waiting", "1",
     "Sequences that wait in a cell for a slot, as its last heartbeat says.", kCell, {}},
    {Metric::kCellKvTokens, kGau, "millrace_cell_kv_tokens", "tokens",
     "Tokens that a cell's KV cache holds; 0 while it is away.", kCell, {}},
    {Metric::kCellKvTokensUsed, kGau, "millrace_cell_kv_tokens_used", "tokens",
     "Tokens of a cell's KV cache that running sequences hold, as its last heartbeat says.", kCell,
     {}},
    {Metric::kCellKvTokensCached, kGau, "millrace_cell_kv_tokens_cached", "tokens",
     "Tokens of a cell's KV cache that nobody holds and a later sequence may find, until the room is "
     "needed; as its last heartbeat says.", kCell, {}},

    {Metric::kStepTime, kHis, "millrace_step_seconds", "s",
     "From sending a step's plan (with one stage: from the end of the step before, if that is "
     "later) to its last result.", kCell, kStepBuckets},
    {Metric::kCellBusy, kCtr, "millrace_cell_busy_seconds_total", "s",
     "Time with a step under way.", kCell, {}},
    {Metric::kPipelineBubble, kGau, "millrace_pipeline_bubble_ratio", "ratio",
     "Of the workers' time while their cell is busy, the share without work, over some 5 seconds.",
     kCell, {}},
    {Metric::kWorkerStepTime, kCtr, "millrace_worker_step_seconds_total", "s",
     "Time a worker spent in steps, waits for other ranks included.", kWorker, {}},
    {Metric::kWorkerExchangeTime, kCtr, "millrace_worker_exchange_seconds_total", "s",
     "Time a worker spent taking tokens to experts and back (all-to-all), slower lanes included.",
     kWorker, {}},
    {Metric::kWorkerPipelineWait, kCtr, "millrace_worker_pipeline_wait_seconds_total", "s",
     "Time a worker waited inside a step for the pipeline stage before it.", kWorker, {}},
    {Metric::kExpertRows, kCtr, "millrace_expert_rows_total", "1",
     "(token, expert) pairs that a layer's experts have run, by the lane that holds them.",
     kLayerLane, {}},
    {Metric::kExpertImbalance, kGau, "millrace_expert_imbalance_ratio", "1",
     "Rows of a layer's busiest expert over the average one, over some 5 seconds; 1 is even.",
     kLayer, {}},
    {Metric::kLaneImbalance, kGau, "millrace_lane_imbalance_ratio", "1",
     "Rows of a layer's busiest lane over the average one, over some 5 seconds; 1 is even.",
     kLayer, {}},
    {Metric::kStartPhase, kGau, "millrace_cell_start_phase_seconds", "s",
     "How long each phase of a cell's last start took.", kPhase, {}},

    {Metric::kCellStartState, kGau, "millrace_cell_start_state", "1",
     "1 for the state that a cell's start is in, 0 for the others; backoff: it ended and is started "
     "again after a pause. As whoever starts its ranks sees it.", kStartState, {}},
    {Metric::kCellLoaded, kGau, "millrace_cell_loaded_ratio", "ratio",
     "Of the weights of all ranks, the share that the present start has loaded.", kCell, {}},
    {Metric::kCellStarts, kCtr, "millrace_cell_starts_total", "1",
     "Times that a cell's ranks were started, those included that never became ready.", kCell, {}},
  }};
}();
// clang-format on

constexpr const MetricDesc& describe(Metric m) { return kCatalogue[static_cast<std::size_t>(m)]; }
constexpr bool is_vllm_metric(const MetricDesc& d) { return d.name.starts_with("vllm:"); }

constexpr bool catalogue_in_order() {
  for (std::size_t i = 0; i < kCatalogue.size(); ++i) {
    if (static_cast<std::size_t>(kCatalogue[i].id) != i) return false;
  }
  return true;
}
static_assert(catalogue_in_order(), "kCatalogue must list the metrics in the order of Metric");

}  // namespace millrace
