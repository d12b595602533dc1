// Configurations and loads for cells on devices, small enough for the emulator.
#pragma once

#include <random>

#include "tests/support/workload.h"

namespace millrace::testing {

// Under the emulator, which takes long, tests do less.
#if defined(MILLRACE_CUDA_EMULATED)
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

// All ranks share one device and exchange through host memory, so that any grid runs anywhere.
inline ClusterConfig device_config(const std::string& model) {
  ClusterConfig config = test_config(model);
  config.device.backend = DeviceChoice::kCuda;
  config.device.transport = DeviceTransport::kStaged;
  config.device.ranks_per_device = 64;
  config.device.bind_numa = false;
  config.grid.embedded = true;
  config.cache.kv_dtype = KvDtype::kBf16;
  config.cache.kv_tokens = 1024;
  config.cache.max_sequences = 8;
  config.cache.max_context_tokens = 128;
  config.scheduler.max_step_tokens = 48;
  config.scheduler.prefill_chunk_tokens = 32;
  return config;
}

inline std::string device_checkpoint(const std::string& name) {
  const auto tiny = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--vocab", "320", "--tokenizer", "builtin"});
    return random_checkpoint("device-" + name, arguments);
  };
  if (name == "dense")
    return tiny({"--preset", "tiny-dense", "--layers", "4", "--attention", "1", "--seed", "1"});
  if (name == "f32") {
    return tiny({"--preset", "tiny-moe", "--dtype", "f32", "--layers", "4", "--untied",
                 "--num-experts", "12", "--top-k", "3", "--expert-ff", "96", "--attention", "2",
                 "--seed", "5"});
  }
  return tiny({"--preset", "tiny-moe", "--expert-ff", "64", "--seed", "3"});
}

// A mixed load: long and short prompts, greedy and random sampling, penalties, bias,
// log-probabilities.
inline std::vector<SequenceRequest> device_requests(std::int32_t vocab, int count = 7) {
  std::vector<SequenceRequest> requests;
  std::mt19937 random(11);
  for (RequestId id = 1; id <= static_cast<RequestId>(count); ++id) {
    const std::uint32_t length = id % 3 == 0 ? 1 + random() % 3 : 20 + random() % 40;
    SequenceRequest r = random_request(id, length, vocab, random);
    r.max_new_tokens = 3 + random() % 5;
    if (id % 5 == 2) r.sampling.logit_bias = {{17, 3.5F}, {200, -100.0F}};
    r.sampling.prompt_logprobs = id == 5;
    if (id % 3 == 2) {
      stop_at_one_token_in(4, vocab, r);
      r.max_new_tokens = 12;
    }
    requests.push_back(r);
  }
  return requests;
}

}  // namespace millrace::testing
