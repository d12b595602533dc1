#include "net/psk_tls.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/ssl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "config/check.h"

namespace millrace::net {
namespace {

constexpr std::string_view kIdentity = "millrace-node-agent-1";
constexpr std::size_t kKeyBytes = 48;             // of SHA-384, the hash of the one cipher suite
constexpr unsigned char kSuite[] = {0x13, 0x02};  // TLS_AES_256_GCM_SHA384
constexpr std::size_t kMaxSecretBytes = 4096;

int key_index() {
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

// Stretches nothing: a secret of 32 random bytes needs no stretching. Separates this use from
// others of the same secret.
std::string derive_key(const std::string& secret) {
  EVP_KDF* kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
  EVP_KDF_CTX* context = EVP_KDF_CTX_new(kdf);
  EVP_KDF_free(kdf);
  std::string digest = "SHA384";
  std::string salt(kIdentity);
  std::string copy = secret;
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest.data(), 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, copy.data(), copy.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt.data(), salt.size()),
      OSSL_PARAM_construct_end()};
  std::string key(kKeyBytes, '\0');
  const int derived =
      EVP_KDF_derive(context, reinterpret_cast<unsigned char*>(key.data()), key.size(), parameters);
  EVP_KDF_CTX_free(context);
  OPENSSL_cleanse(copy.data(), copy.size());
  CHECK(derived > 0, "secret of {} bytes", secret.size());
  return key;
}

// The "session" that OpenSSL takes an external key as. Null on failure, which ends the handshake.
SSL_SESSION* make_session(SSL* ssl) {
  const auto* key =
      static_cast<const std::string*>(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), key_index()));
  const SSL_CIPHER* suite = SSL_CIPHER_find(ssl, kSuite);
  SSL_SESSION* session = SSL_SESSION_new();
  if (key != nullptr && suite != nullptr && session != nullptr &&
      SSL_SESSION_set1_master_key(session, reinterpret_cast<const unsigned char*>(key->data()),
                                  key->size()) == 1 &&
      SSL_SESSION_set_cipher(session, suite) == 1 &&
      SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1) {
    return session;
  }
  SSL_SESSION_free(session);
  return nullptr;
}

int use_session(SSL* ssl, const EVP_MD*, const unsigned char** id, std::size_t* id_bytes,
                SSL_SESSION** session) {
  *session = make_session(ssl);
  if (*session == nullptr) return 0;
  *id = reinterpret_cast<const unsigned char*>(kIdentity.data());
  *id_bytes = kIdentity.size();
  return 1;
}

int find_session(SSL* ssl, const unsigned char* id, std::size_t id_bytes, SSL_SESSION** session) {
  *session = nullptr;
  if (std::string_view(reinterpret_cast<const char*>(id), id_bytes) != kIdentity) return 1;
  *session = make_session(ssl);
  return *session == nullptr ? 0 : 1;
}

// Whether only this process's user, or a group that root gave it, may read the file. The latter is
// what a kubelet does with a Secret for a pod whose user is not root: root's file, readable by the
// pod's group (fsGroup) and by nobody else.
bool is_private(const struct stat& info) {
  if ((info.st_mode & 077) == 0) return true;
  if ((info.st_mode & 077) != 040 || info.st_uid != 0 || info.st_gid == 0) return false;
  if (info.st_gid == getegid()) return true;
  std::vector<gid_t> groups(static_cast<std::size_t>(std::max(0, getgroups(0, nullptr))));
  const int count = getgroups(static_cast<int>(groups.size()), groups.data());
  groups.resize(static_cast<std::size_t>(std::max(0, count)));
  return std::find(groups.begin(), groups.end(), info.st_gid) != groups.end();
}

Result<std::string> read_checked(int fd, const std::string& path, const std::string& field) {
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    return invalid(field, fmt::format("'{}' is not a regular file", path));
  }
  if (info.st_uid != geteuid() && info.st_uid != 0) {
    return invalid(field, fmt::format("'{}' belongs to another user; chown it", path));
  }
  if (!is_private(info)) {
    return invalid(field, fmt::format("'{}' has mode {:03o}: others may use it; chmod 600 it", path,
                                      info.st_mode & 0777));
  }
  std::array<char, kMaxSecretBytes + 1> buffer{};
  std::size_t size = 0;
  for (ssize_t n = 1; n > 0 && size < buffer.size(); size += static_cast<std::size_t>(n)) {
    n = read(fd, buffer.data() + size, buffer.size() - size);
    if (n < 0) return invalid(field, fmt::format("'{}': {}", path, std::strerror(errno)));
  }
  std::string_view text(buffer.data(), size);
  while (text.ends_with('\n') || text.ends_with('\r')) text.remove_suffix(1);
  if (text.size() < kMinSecretBytes || text.size() > kMaxSecretBytes) {
    return invalid(field, fmt::format("'{}' holds {} bytes; {} to {} are needed, for instance from "
                                      "openssl rand -hex 32",
                                      path, text.size(), kMinSecretBytes, kMaxSecretBytes));
  }
  return std::string(text);
}

}  // namespace

Result<std::string> read_secret_file(const std::string& path, const std::string& field) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) {
    return Error{ErrorCode::kNotFound, field, fmt::format("'{}': {}", path, std::strerror(errno))};
  }
  Result<std::string> secret = read_checked(fd, path, field);
  close(fd);
  return secret;
}

PskTls::PskTls(TlsRole role, const std::string& secret)
    : context_(role == TlsRole::kServer ? boost::asio::ssl::context::tlsv13_server
                                        : boost::asio::ssl::context::tlsv13_client),
      key_(std::make_unique<std::string>(derive_key(secret))) {
  SSL_CTX* raw = context_.native_handle();
  CHECK(SSL_CTX_set_ex_data(raw, key_index(), key_.get()) == 1, "index={}", key_index());
  CHECK(SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION) == 1, "version={}", TLS1_3_VERSION);
  CHECK(SSL_CTX_set_ciphersuites(raw, "TLS_AES_256_GCM_SHA384") == 1, "role={}",
        static_cast<int>(role));
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(raw, 0);  // a ticket would be a second way in
  SSL_CTX_set_options(raw, SSL_OP_NO_TICKET);
  if (role == TlsRole::kServer) {
    // No certificate is set: a client without the key has nothing to shake hands with.
    SSL_CTX_set_psk_find_session_callback(raw, find_session);
  } else {
    SSL_CTX_set_psk_use_session_callback(raw, use_session);
    context_.set_verify_mode(boost::asio::ssl::verify_peer);  // no certificate is ever good
  }
}

PskTls::~PskTls() { OPENSSL_cleanse(key_->data(), key_->size()); }

bool PskTls::proven(SSL* ssl) {
  return SSL_version(ssl) == TLS1_3_VERSION && SSL_session_reused(ssl) == 1;
}

Result<std::string> read_optional_secret(const std::string& path, const std::string& field) {
  if (path.empty()) return std::string();
  return read_secret_file(path, field);
}

}  // namespace millrace::net
