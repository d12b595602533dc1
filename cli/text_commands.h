// `millrace generate`, `perplexity` and `tokenize`: a model on the command line, without a server.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "config/cluster_config.h"
#include "config/sampling_params.h"

namespace millrace {

struct GenerateCommand {
  ClusterConfig config;
  std::string prompt;  // "-": read from standard input
  bool chat = false;   // through the model's chat template, as one user message
  std::string system;  // with chat
  std::uint32_t max_tokens = 128;
  bool ignore_eos = false;
  SamplingParams sampling;
};
int run_generate(const GenerateCommand& command);

struct PerplexityCommand {
  ClusterConfig config;
  std::string file;
  std::uint32_t window = 512;  // tokens of one window, BOS included
  bool json = false;
};
// Non-overlapping windows, each begun with BOS when the model has one; the mean is taken over all
// predicted tokens. As models/sample/README.md defines it.
int run_perplexity(const PerplexityCommand& command);

struct TokenizeCommand {
  std::string model;
  std::string text;  // "-": read from standard input
  bool add_special = true;
  bool ids_only = false;
};
int run_tokenize(const TokenizeCommand& command);

}  // namespace millrace
