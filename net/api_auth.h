// API keys: "Authorization: Bearer <key>" or "x-api-key: <key>".
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "net/http_types.h"

namespace millrace::net {

class ApiKeys {
 public:
  ApiKeys() = default;
  explicit ApiKeys(const std::vector<std::string>& keys);

  bool empty() const { return digests_.empty(); }
  // Whether the request carries one of the keys. The time taken does not depend on how much of a
  // key is right: SHA-256 digests are compared, all of them, in constant time.
  bool allows(const HttpRequest& request) const;

 private:
  bool matches(std::string_view key) const;
  std::vector<std::array<unsigned char, 32>> digests_;
};

}  // namespace millrace::net
