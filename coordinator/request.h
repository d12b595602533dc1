// What a gateway asks of a cell and what comes back: plain values, one sequence each.
// A client's request with n choices is n of these, with `sampling.choice` 0..n-1.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/sampling_params.h"
#include "worker/step.h"

namespace millrace {

using RequestId = std::uint64_t;  // unique within one gateway process

struct SequenceRequest {
  RequestId id = 0;
  std::vector<std::int32_t> tokens;  // prompt, then (after a replay) the tokens already delivered
  std::uint32_t prompt_tokens = 0;   // length of the prompt inside `tokens`
  std::uint32_t max_new_tokens = 0;  // counted from prompt_tokens. 0: nothing is drawn, the
                                     // prompt's log-probabilities are all that is asked for
  std::uint32_t min_new_tokens = 0;  // stop tokens are ignored (not masked) before this many
  std::vector<std::int32_t> stop_token_ids;  // end of generation; empty with ignore_eos
  SamplingParams sampling;

  bool operator==(const SequenceRequest&) const = default;
};

// kCancelled: the client or the gateway wished it, or the cell gave the sequence up for reasons of
// its own, and another can go on with it. kError: it would end so in any cell. kRefused: the cell
// has no room for it now; it has not begun it.
enum class FinishReason : std::uint8_t { kNone, kStop, kLength, kCancelled, kError, kRefused };

// One token of one sequence, or its end. `index` counts generated tokens from 0 and says where the
// token belongs, so that a repeat after a replay can be recognised.
struct TokenEvent {
  RequestId id = 0;
  std::uint32_t index = 0;
  bool has_token = true;  // false: only an end (cancelled, error)
  TokenLogprob token;
  std::vector<TokenLogprob> top;
  FinishReason finish = FinishReason::kNone;
  bool stop_token = false;  // the token is the stop token itself: not part of the text
  std::string error;        // for kError, and where a cell gives up: a sentence for people
  // In the first event of a sequence from its cell: how long before the event the cell had put it
  // into a step for the first time. Otherwise 0.
  std::uint32_t since_scheduled_us = 0;
  // In the first event with a token of a sequence from its cell: how many of its tokens the cell
  // had from the prefix cache and did not compute. Otherwise 0.
  std::uint32_t cached_tokens = 0;

  bool operator==(const TokenEvent&) const = default;
};

// Log-probabilities of the prompt, sent once before the first TokenEvent when asked for. Entry i is
// for prompt token i+1 (the first token has none). With max_new_tokens 0 an end without a token
// follows, kLength.
struct PromptLogprobsEvent {
  RequestId id = 0;
  std::vector<TokenLogprob> targets;
  std::vector<std::vector<TokenLogprob>> top;

  bool operator==(const PromptLogprobsEvent&) const = default;
};

// What a cell says of itself when it registers with a gateway, and may differ after a restart.
struct CellInfo {
  std::string cell_id;
  std::uint64_t epoch = 0;          // grows with each start of the cell
  std::string model_fingerprint;    // all cells of a gateway must agree
  std::uint32_t max_context = 0;    // tokens of one sequence, prompt and output
  std::uint32_t max_sequences = 0;  // running at once, all lanes
  std::uint64_t kv_tokens = 0;      // all lanes
  std::uint32_t stages = 0;
  std::uint32_t lanes = 0;
  std::uint32_t block_tokens = 0;  // of the KV cache
  std::string kv_dtype;            // its number format
  std::string backend;             // where it computes: "cpu", "cuda"
  std::string transport;           // between its workers (worker/step_executor.h)

  bool operator==(const CellInfo&) const = default;
};

// Sent with each heartbeat: progress and load (contract C4).
struct CellStatus {
  std::uint64_t steps = 0;  // steps finished since start
  std::uint32_t running = 0;
  std::uint32_t waiting = 0;
  std::uint64_t kv_tokens_used = 0;    // held by running sequences
  std::uint64_t kv_tokens_cached = 0;  // beside those: beginnings that may be used again
  std::uint64_t preemptions = 0;
  std::uint64_t prompt_tokens = 0;  // prefilled since start
  std::uint64_t generated_tokens = 0;
  std::uint64_t recomputed_tokens = 0;      // computed again after a preemption
  std::uint64_t prefix_queried_tokens = 0;  // that sequences might have found in the prefix cache
  std::uint64_t prefix_hit_tokens = 0;      // and did find: they were not computed
  // Found as well, but computed for the conv state behind them, of which there was no snapshot.
  std::uint64_t prefix_rebuilt_tokens = 0;
  std::uint64_t corrupted_sequences = 0;  // ended because their logits were not finite
  std::uint32_t ms_since_progress = 0;    // 0 when idle
  bool draining = false;

  bool operator==(const CellStatus&) const = default;
};

// Observations sorted into buckets: counts[i] of those at most bounds[i] of the metric catalogue's
// list and above bounds[i - 1]; the last one of those above all bounds.
struct BucketCounts {
  std::vector<std::uint64_t> counts;
  double sum = 0;

  bool operator==(const BucketCounts&) const = default;
};

// What a cell has measured since its start, for metrics; sent to gateways now and then. All times
// and counts only grow, but for the two ratios.
struct CellTelemetry {
  struct StartPhase {
    std::string name;
    float seconds = 0;
    bool operator==(const StartPhase&) const = default;
  };
  struct Worker {
    std::uint32_t stage = 0;
    std::uint32_t lane = 0;
    std::uint64_t step_ns = 0;
    std::uint64_t exchange_ns = 0;
    std::uint64_t pipeline_wait_ns = 0;
    std::uint32_t first_moe_layer = 0;  // number in the model of its stage's first MoE layer
    std::uint32_t moe_layers = 0;
    bool operator==(const Worker&) const = default;
  };
  struct ExpertLoad {
    std::uint32_t layer = 0;
    std::uint32_t lane = 0;
    std::uint64_t rows = 0;
    bool operator==(const ExpertLoad&) const = default;
  };
  // Of the layer's latest rows; 1 is even.
  struct Imbalance {
    std::uint32_t layer = 0;
    float experts = 1;  // busiest expert over the average one
    float lanes = 1;    // busiest lane over the average one
    bool operator==(const Imbalance&) const = default;
  };

  std::vector<StartPhase> start_phases;  // in the order in which they happened
  std::uint64_t busy_ns = 0;             // with a step under way
  float pipeline_bubble = 0;    // of the workers' time while busy, the share without work, lately
  BucketCounts step_seconds;    // from a step's begin (Cell::Options) to its last result
  BucketCounts step_tokens;     // all lanes together
  std::vector<Worker> workers;  // by (stage, lane)
  std::vector<ExpertLoad> expert_load;  // by (layer, lane)
  std::vector<Imbalance> imbalance;     // by layer

  bool operator==(const CellTelemetry&) const = default;
};

}  // namespace millrace
