// TLS 1.3 between processes that share a secret, without certificates.
//
// The key is derived from the secret, and the handshake (psk_dhe_ke: pre-shared key with ephemeral
// Diffie-Hellman, RFC 8446 2.2) proves it both ways: neither side goes on with a peer that does not
// have it, and what was recorded cannot be read with a secret that leaks later.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>

#include "config/result.h"

namespace millrace::net {

inline constexpr std::size_t kMinSecretBytes = 32;

// The secret in a file: 32 bytes to 4 KiB, trailing line ends not counted. The file must belong to
// the user (or root) and give nobody else a right; only a group of this process, other than root's,
// may read what root owns, which is how Kubernetes mounts Secrets. `field` names the file in
// errors.
Result<std::string> read_secret_file(const std::string& path, const std::string& field);

// The same where a secret is optional: an empty path is no secret.
Result<std::string> read_optional_secret(const std::string& path, const std::string& field);

enum class TlsRole { kServer, kClient };

// A context for one role; streams made from it must not outlive it.
class PskTls {
 public:
  PskTls(TlsRole role, const std::string& secret);
  ~PskTls();
  PskTls(const PskTls&) = delete;
  PskTls& operator=(const PskTls&) = delete;

  boost::asio::ssl::context& context() { return context_; }

  // After a handshake: the peer has shown the secret. A handshake without it fails by itself; this
  // guards against a context that was configured otherwise.
  static bool proven(SSL* ssl);

 private:
  boost::asio::ssl::context context_;
  std::unique_ptr<std::string> key_;  // at a fixed address: the context points to it
};

}  // namespace millrace::net
