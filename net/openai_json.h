// Bodies of clients to JSON, in bounded time and memory whatever they hold.
#pragma once

#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "net/openai_types.h"

namespace millrace::net {

// Bounds on a body's shape. They matter because a parsed value is much larger than its text,
// because Json looks keys up linearly, and because writing and copying values recurses.
struct JsonLimits {
  std::size_t max_depth = 64;
  std::size_t max_values = 4'000'000;
  std::size_t max_key_work = 50'000'000;  // sum over objects of keys squared
};

// A JSON object, else a 400 that says where the text went wrong.
ApiResult<Json> parse_json_object(std::string_view body, const JsonLimits& limits = {});

// Reads the fields of one object. The first wrong field is kept as the error; getters after it
// return nothing, so a parser reads straight on and asks for the error once at its end. A null
// counts as absent.
class FieldReader {
 public:
  // `prefix` is put before the names in errors: "stream_options." or "".
  FieldReader(const Json& object, std::string prefix = {});

  // The value when present and not null.
  const Json* get(const std::string& name);
  bool has(const std::string& name) { return get(name) != nullptr; }

  std::optional<bool> boolean(const std::string& name);
  std::optional<std::string> string(const std::string& name);
  std::optional<std::int64_t> integer(const std::string& name, std::int64_t low, std::int64_t high);
  // A finite number in [low, high]; `open_low` excludes low.
  std::optional<float> number(const std::string& name, double low, double high,
                              bool open_low = false);
  const Json* array(const std::string& name);
  const Json* object(const std::string& name);
  // Token ids in [0, vocab): an array of integers with at most `max_count` entries.
  std::optional<std::vector<std::int32_t>> token_ids(const std::string& name, std::int32_t vocab,
                                                     std::size_t max_count);

  // A field that would change the answer and is not served: refused when present, and neither
  // false, nor empty, nor equal to `harmless`.
  void refuse(const std::string& name, const std::string& why, const Json& harmless = nullptr);
  void ignore(const std::string& name) { known_.insert(name); }

  void fail(const std::string& name, const std::string& message,
            const std::string& code = "invalid_value");
  void fail(ApiError error);  // its param is a whole path
  bool failed() const { return error_.has_value(); }
  const std::optional<ApiError>& error() const { return error_; }

  // Fields never asked for.
  std::vector<std::string> unknown() const;

 private:
  const Json& object_;
  std::string prefix_;
  std::unordered_set<std::string> known_;
  std::optional<ApiError> error_;
};

// An integer written as 3 or 3.0 that fits; nothing for any other value.
std::optional<std::int64_t> integer_of(const Json& value);

// "a string", "a number", ... for messages.
std::string json_kind(const Json& value);

// The ids of one array, with `path` ("prompt[1]") for errors.
ApiResult<std::vector<std::int32_t>> token_ids_of(const Json& array, const std::string& path,
                                                  std::int32_t vocab);

}  // namespace millrace::net
