#include "config/json_text.h"

#include <fmt/format.h>

#include <unordered_set>
#include <vector>

#include "config/mapped_file.h"

namespace millrace {

using nlohmann::json;

Result<json> parse_json_strict(std::string_view text, const std::string& source) {
  std::vector<std::unordered_set<std::string>> open_objects;
  std::string repeated;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second && repeated.empty()) repeated = key;
    }
    return true;
  };
  try {
    json value = json::parse(text.begin(), text.end(), watch);
    if (!repeated.empty()) {
      return invalid(repeated, fmt::format("{}: this key appears twice in one object", source));
    }
    return Result<json>(boost::system::in_place_value, std::move(value));
  } catch (const json::exception& error) {
    // The library's text begins with its own number in brackets; people do not need it.
    const std::string_view what = error.what();
    const std::size_t tag = what.find("] ");
    return invalid(source, fmt::format("is not valid JSON: {}",
                                       tag == what.npos ? what : what.substr(tag + 2)));
  }
}

Result<json> load_json_file(const std::string& path, std::uint64_t limit_bytes) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  if (file->size() > limit_bytes) {
    return invalid(path, fmt::format("is {} bytes long, expected a JSON file of at most {}",
                                     file->size(), limit_bytes));
  }
  return parse_json_strict(file->text(), path);
}

}  // namespace millrace
