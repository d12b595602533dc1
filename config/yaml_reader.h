// Internal to config: typed reading of YAML values, with the place of each in its file.
//
// The types are those of YAML 1.2's core schema, strictly: a quoted number is a string, yes and no
// are strings. No exception of yaml-cpp leaves this file.
#pragma once

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <string>
#include <vector>

#include "config/result.h"

namespace millrace::detail {

// A struct of its own because YAML::Node converts from anything, an Error included.
struct YamlDocument {
  YAML::Node root;
};

// Parses one document of at most 1 MiB. An empty text gives an empty root.
Result<YamlDocument> parse_yaml(const std::string& text, const std::string& filename);

// Positions are counted from 1, as editors do.
std::string position_of(const YAML::Node& node, const std::string& filename);

// Each fails with a sentence about the value alone ("is a list, not a string"); the caller adds the
// field, the place and what is allowed. The integer reader accepts sizes such as 1.5GiB when
// `sizes` is set: KiB, MiB, GiB, TiB are powers of 1024 and KB, MB, GB, TB powers of 1000.
Result<bool> read_bool(const YAML::Node& node);
Result<std::int64_t> read_integer(const YAML::Node& node, bool sizes);
Result<double> read_number(const YAML::Node& node);
Result<std::string> read_string(const YAML::Node& node);
Result<std::vector<std::string>> read_strings(const YAML::Node& node);

// The candidate that is fewest edits away from `word` (Levenshtein 1966), or "" when none is close
// enough to be what was meant.
std::string nearest_name(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace millrace::detail
