// Requests that several tests put to an engine: mixed loads of random tokens, the held-out text.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "cli/text_model.h"
#include "tests/support/engine_harness.h"

namespace millrace::testing {

// `length` random tokens and a seed of its own, to be drawn in one of the ways that depend on `id`:
// greedy or random, cut by top_k, top_p or min_p, with penalties, with log-probabilities.
inline SequenceRequest random_request(RequestId id, std::uint32_t length, std::int32_t vocab,
                                      std::mt19937& random) {
  SequenceRequest r;
  r.id = id;
  for (std::uint32_t i = 0; i < length; ++i) {
    r.tokens.push_back(
        static_cast<std::int32_t>(14 + random() % static_cast<unsigned>(vocab - 14)));
  }
  r.prompt_tokens = length;
  r.sampling.seed = 1000 + id;
  r.sampling.temperature = id % 3 == 0 ? 0.0F : 0.8F;
  if (id % 4 == 0) r.sampling.top_k = 20;
  if (id % 4 == 1) r.sampling.top_p = 0.9F;
  if (id % 4 == 2) r.sampling.min_p = 0.05F;
  if (id % 5 == 1) {
    r.sampling.repetition_penalty = 1.1F;
    r.sampling.presence_penalty = 0.3F;
    r.sampling.frequency_penalty = 0.2F;
  }
  r.sampling.logprobs = static_cast<std::int32_t>(id % 4) - 1;
  return r;
}

// A random model writes stop tokens as often as others: one token in `share` ends the sequence.
inline void stop_at_one_token_in(std::int32_t share, std::int32_t vocab, SequenceRequest& r) {
  for (std::int32_t token = 0; token < vocab / share; ++token) r.stop_token_ids.push_back(token);
}

struct Nll {
  double sum = 0;
  std::uint64_t tokens = 0;
  double perplexity() const { return std::exp(sum / static_cast<double>(tokens)); }
};

// Of <folder>/held-out.txt with the tokenizer of `model` (a folder or GGUF file), by the definition
// of reference.json: windows of 512 tokens, each begun with BOS, all predicted tokens.
inline Nll held_out_nll(EngineHarness& engine, const std::string& model,
                        const std::string& folder) {
  const Result<TextModel> text = load_text_model(model);
  EXPECT_TRUE(text) << text.error().to_string();
  std::ifstream file(folder + "/held-out.txt");
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  const auto tokens = *text->tokenizer.encode(content, {.add_special = false});
  std::vector<SequenceRequest> requests;
  constexpr std::size_t kBody = 511;
  for (std::size_t begin = 0; begin < tokens.size(); begin += kBody) {
    SequenceRequest r;
    r.id = requests.size() + 1;
    r.tokens = {*text->tokenizer.bos()};
    const std::size_t end = std::min(tokens.size(), begin + kBody);
    r.tokens.insert(r.tokens.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                    tokens.begin() + static_cast<std::ptrdiff_t>(end));
    r.prompt_tokens = static_cast<std::uint32_t>(r.tokens.size());
    r.max_new_tokens = 1;
    r.sampling.temperature = 0;
    r.sampling.prompt_logprobs = true;
    requests.push_back(std::move(r));
  }
  Nll nll;
  for (const auto& [id, output] : engine.run(requests)) {
    for (const TokenLogprob& target : output.prompt.targets) {
      nll.sum -= static_cast<double>(target.logprob);
      ++nll.tokens;
    }
  }
  EXPECT_EQ(nll.tokens, tokens.size());
  return nll;
}

}  // namespace millrace::testing
