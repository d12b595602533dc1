// Strict parsing of the JSON files that come with a model. Internal: include it in .cc files only,
// so that the JSON library stays out of our public headers.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "config/result.h"

namespace millrace {

// Refuses what is not JSON and, unlike the library alone, objects that name a key twice: of two
// values for one field either could be meant. `source` is the file's path, for the message.
Result<nlohmann::json> parse_json_strict(std::string_view text, const std::string& source);

// Maps the file and parses it whole. `limit_bytes` guards against being pointed at a weight file.
Result<nlohmann::json> load_json_file(const std::string& path, std::uint64_t limit_bytes);

}  // namespace millrace
