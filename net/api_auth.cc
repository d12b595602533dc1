#include "net/api_auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <boost/beast/core/string.hpp>

namespace millrace::net {
namespace {

std::array<unsigned char, 32> digest_of(std::string_view key) {
  std::array<unsigned char, 32> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  return digest;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(digest_of(key));
}

bool ApiKeys::matches(std::string_view key) const {
  if (key.empty()) return false;
  const auto digest = digest_of(key);
  int found = 0;
  for (const auto& known : digests_) {
    found |= CRYPTO_memcmp(digest.data(), known.data(), digest.size()) == 0 ? 1 : 0;
  }
  return found != 0;
}

bool ApiKeys::allows(const HttpRequest& request) const {
  constexpr std::string_view kBearer = "Bearer ";
  std::string_view value = request.header("authorization");
  if (value.size() > kBearer.size() &&
      boost::beast::iequals({value.data(), kBearer.size()}, {kBearer.data(), kBearer.size()})) {
    value.remove_prefix(kBearer.size());
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    if (matches(value)) return true;
  }
  return matches(request.header("x-api-key"));
}

}  // namespace millrace::net
