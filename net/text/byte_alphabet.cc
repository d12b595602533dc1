#include "net/text/byte_alphabet.h"

#include <array>

#include "net/text/utf8.h"

namespace millrace::text {
namespace {

struct Alphabet {
  std::array<char32_t, 256> to_char{};
  std::array<int, 324> to_byte{};  // the largest character is U+0143

  Alphabet() {
    to_byte.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable =
          (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
      to_char[b] = printable ? static_cast<char32_t>(b) : next++;
      to_byte[to_char[b]] = static_cast<int>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

char32_t byte_to_char(unsigned char byte) { return alphabet().to_char[byte]; }

int char_to_byte(char32_t c) { return c < alphabet().to_byte.size() ? alphabet().to_byte[c] : -1; }

std::string token_to_bytes(std::string_view token) {
  std::string bytes;
  for (std::size_t at = 0, length = 0; at < token.size(); at += length) {
    const int byte = char_to_byte(decode_code_point(token, at, &length));
    if (byte < 0) return std::string(token);
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

std::string bytes_to_token(std::string_view bytes) {
  std::string token;
  for (char b : bytes) append_code_point(token, byte_to_char(static_cast<unsigned char>(b)));
  return token;
}

}  // namespace millrace::text
