#include "net/openai_json.h"

#include <fmt/format.h>

#include <cmath>

#include "net/openai_error.h"

namespace millrace::net {
namespace {

ApiError bad_json(std::string message) {
  ApiError error;
  error.message = std::move(message);
  error.code = "invalid_json";
  return error;
}

// One pass over the text that looks only at structure; the parser proper judges everything else.
std::optional<ApiError> check_shape(std::string_view body, const JsonLimits& limits) {
  struct Level {
    bool object;
    std::size_t keys;
  };
  std::vector<Level> levels;
  std::size_t values = 1;
  std::size_t key_work = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        break;
      case '{':
      case '[':
        if (levels.size() == limits.max_depth) {
          return bad_json(fmt::format("the JSON body is nested deeper than {} levels at byte {}",
                                      limits.max_depth, i));
        }
        levels.push_back({c == '{', 0});
        ++values;
        break;
      case '}':
      case ']':
        if (!levels.empty()) levels.pop_back();
        break;
      case ',':
        ++values;
        break;
      case ':':
        if (!levels.empty() && levels.back().object) key_work += 2 * levels.back().keys++ + 1;
        break;
      case '\0':
        // The parser would take it for the end of the text and never see what follows.
        return bad_json(fmt::format("the JSON body has a NUL byte at byte {}; send UTF-8 text", i));
      default:
        break;
    }
    if (values > limits.max_values || key_work > limits.max_key_work) {
      return bad_json("the JSON body has too many values or too many keys in one object");
    }
  }
  return std::nullopt;
}

// nlohmann's text carries its own error number in brackets; people do not need it.
std::string without_tag(const std::string& what) {
  const std::size_t end = what.find("] ");
  return end == std::string::npos ? what : what.substr(end + 2);
}

}  // namespace

ApiResult<Json> parse_json_object(std::string_view body, const JsonLimits& limits) {
  if (body.empty()) return bad_json("the request body is empty; send a JSON object");
  if (auto error = check_shape(body, limits)) return *error;
  try {
    Json value = Json::parse(body.begin(), body.end());
    if (!value.is_object()) {
      return bad_json("the request body must be a JSON object, not " + json_kind(value));
    }
    return ApiResult<Json>(boost::system::in_place_value, std::move(value));
  } catch (const Json::exception& e) {
    // parse_error for syntax, out_of_range for numbers such as 1e999.
    std::string what = without_tag(e.what());
    if (what.size() > 300) what.resize(300);
    return bad_json("the request body is not valid JSON: " + what);
  }
}

std::string json_kind(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::object:
      return "an object";
    default:
      return "a number";
  }
}

std::optional<std::int64_t> integer_of(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<std::int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number == std::floor(number) && std::abs(number) < 9007199254740992.0) {  // 2^53
      return static_cast<std::int64_t>(number);
    }
  }
  return std::nullopt;
}

ApiResult<std::vector<std::int32_t>> token_ids_of(const Json& array, const std::string& path,
                                                  std::int32_t vocab) {
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const Json& value : array) {
    const auto id = value.is_number() ? integer_of(value) : std::nullopt;
    if (!id || *id < 0 || *id >= vocab) {
      return bad_field(fmt::format("{}[{}]", path, ids.size()),
                       fmt::format("a token id must be an integer from 0 to {}", vocab - 1));
    }
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

FieldReader::FieldReader(const Json& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {}

const Json* FieldReader::get(const std::string& name) {
  known_.insert(name);
  if (error_) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void FieldReader::fail(const std::string& name, const std::string& message,
                       const std::string& code) {
  if (!error_) error_ = bad_field(prefix_ + name, message, code);
}

void FieldReader::fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

std::optional<bool> FieldReader::boolean(const std::string& name) {
  const Json* value = get(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  fail(name, name + " must be true or false, not " + json_kind(*value), "invalid_type");
  return std::nullopt;
}

std::optional<std::string> FieldReader::string(const std::string& name) {
  const Json* value = get(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  fail(name, name + " must be a string, not " + json_kind(*value), "invalid_type");
  return std::nullopt;
}

std::optional<std::int64_t> FieldReader::integer(const std::string& name, std::int64_t low,
                                                 std::int64_t high) {
  const Json* value = get(name);
  if (value == nullptr) return std::nullopt;
  const auto number = integer_of(*value);
  if (number && *number >= low && *number <= high) return number;
  const std::string range = high == INT64_MAX ? fmt::format("of at least {}", low)
                                              : fmt::format("from {} to {}", low, high);
  fail(name, fmt::format("{} must be an integer {}", name, range),
       value->is_number() ? "invalid_value" : "invalid_type");
  return std::nullopt;
}

std::optional<float> FieldReader::number(const std::string& name, double low, double high,
                                         bool open_low) {
  const Json* value = get(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    const auto narrow = static_cast<float>(number);
    // A positive value too small for a float would become the excluded bound.
    const bool above = open_low ? number > low && narrow > static_cast<float>(low) : number >= low;
    if (std::isfinite(number) && above && number <= high) return narrow;
  }
  fail(name,
       fmt::format("{} must be a number {} {} and at most {}", name,
                   open_low ? "greater than" : "of at least", low, high),
       value->is_number() ? "invalid_value" : "invalid_type");
  return std::nullopt;
}

const Json* FieldReader::array(const std::string& name) {
  const Json* value = get(name);
  if (value == nullptr || value->is_array()) return value;
  fail(name, name + " must be an array, not " + json_kind(*value), "invalid_type");
  return nullptr;
}

const Json* FieldReader::object(const std::string& name) {
  const Json* value = get(name);
  if (value == nullptr || value->is_object()) return value;
  fail(name, name + " must be an object, not " + json_kind(*value), "invalid_type");
  return nullptr;
}

std::optional<std::vector<std::int32_t>> FieldReader::token_ids(const std::string& name,
                                                                std::int32_t vocab,
                                                                std::size_t max_count) {
  const Json* value = array(name);
  if (value == nullptr) return std::nullopt;
  if (value->size() > max_count) {
    fail(name,
         fmt::format("{} has {} entries, at most {} are accepted", name, value->size(), max_count));
    return std::nullopt;
  }
  auto ids = token_ids_of(*value, prefix_ + name, vocab);
  if (ids.has_value()) return std::move(*ids);
  fail(ids.error());
  return std::nullopt;
}

void FieldReader::refuse(const std::string& name, const std::string& why, const Json& harmless) {
  const Json* value = get(name);
  if (value == nullptr || *value == harmless) return;
  if (value->is_boolean() && !value->get<bool>()) return;
  const bool empty = value->is_string() ? value->get_ref<const std::string&>().empty()
                                        : value->is_structured() && value->empty();
  if (!empty) fail(name, why, "unsupported_parameter");
}

std::vector<std::string> FieldReader::unknown() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name)) names.push_back(name);
  }
  return names;
}

}  // namespace millrace::net
