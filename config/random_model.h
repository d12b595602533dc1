// Models that exist as a shape alone: their weights are random numbers, made where they are needed.
// For measurements of speed and for tests; nothing of what they say means anything.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "config/model_config.h"
#include "config/result.h"

namespace millrace {

// What stands in the place of a model's path: "random:SHAPE" or "random:SHAPE:SEED".
struct RandomModel {
  std::string shape;
  std::uint64_t seed = 0;
};

// True for every path that begins with "random:", well formed or not.
bool is_random_model(std::string_view path);

// Errors name model.path and list the shapes.
Result<RandomModel> parse_random_model(const std::string& path);

// "24b-a2b" and "8b-a1b" have the sizes of LFM2-24B-A2B and LFM2-8B-A1B, field by field; "tiny" is
// one for tests.
Result<ModelConfig> random_model_config(const std::string& path);

}  // namespace millrace
