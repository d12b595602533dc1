// What scripts/make_text_golden.py wrote: the answers of Hugging Face's libraries.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace millrace::text::test {

inline const std::string kGolden = std::string(MILLRACE_SOURCE_DIR) + "/tests/golden/text/";

inline std::string read_file(const std::string& name) {
  std::ifstream file(kGolden + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// One case a line. Json: with the order of keys (nlohmann::ordered_json) or without.
template <class Json>
std::vector<Json> read_cases(const std::string& name) {
  std::istringstream lines(read_file(name));
  std::vector<Json> cases;
  for (std::string line; std::getline(lines, line);) cases.push_back(Json::parse(line));
  return cases;
}

}  // namespace millrace::text::test
