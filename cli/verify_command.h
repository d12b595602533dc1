// `millrace verify`: whether a model's files are whole, before anything is started with them.
#pragma once

#include <string>

#include "config/cluster_config.h"

namespace millrace {

struct VerifyCommand {
  ClusterConfig config;
  std::string sums;  // list of SHA-256 sums; empty: SHA256SUMS beside the model, if it is there
};

// Reads the headers (every tensor there, of the right shape, no file cut), then compares contents
// with the list. 0 when all is well, 1 with a sentence for each file that is not.
int run_verify(const VerifyCommand& command);

}  // namespace millrace
