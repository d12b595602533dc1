// What Transformers computed of tiny random models (scripts/make_golden.py).
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace millrace::testing {

inline nlohmann::json tiny_golden(const std::string& name) {
  std::ifstream file(std::string(MILLRACE_SOURCE_DIR) + "/tests/golden/tiny/" + name + ".json");
  return nlohmann::json::parse(file);
}

}  // namespace millrace::testing
