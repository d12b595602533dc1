// `millrace engine-bench`: prefill and decode of the model inside this process, without HTTP.
//
// Exact lengths, random token ids, no end token, greedy. Prefill: from the submission of one
// sequence to its first token. Decode: of some sequences that run together, tokens over the time
// from when each has its first token to when the first of them ends; so no prefill is inside.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/cluster_config.h"

namespace millrace {

struct EngineBenchCommand {
  ClusterConfig config;
  std::vector<std::uint32_t> prefill{512};  // prompt lengths
  std::vector<std::uint32_t> streams{1};    // sequences that decode together
  std::uint32_t prompt_tokens = 32;         // of each decoding sequence
  std::uint32_t decode_tokens = 64;         // timed, of each decoding sequence
  std::uint32_t runs = 3;                   // of each case, after one that is not counted
  std::uint64_t seed = 1;
};

// Prints one JSON object: the times of every run, the start, the memory of this process, and what
// a token reads and computes, for whoever compares with the machine's limits. Exit status.
int run_engine_bench(const EngineBenchCommand& command);

}  // namespace millrace
