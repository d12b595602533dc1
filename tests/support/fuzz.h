// Damages a file's bytes in a repeatable way, for tests that a reader never crashes.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace millrace::test {

// Changes 1 to 4 bytes within the first `region` bytes: a flipped bit, a random byte, an extreme
// one, or eight bytes of a huge number; one time in sixteen the file is cut instead.
inline std::string damage(std::string bytes, std::size_t region, std::mt19937_64& random) {
  if (random() % 16 == 0) return bytes.substr(0, 1 + random() % (bytes.size() - 1));
  const int edits = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < edits; ++i) {
    const std::size_t at = random() % region;
    switch (random() % 4) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
        break;
      case 1:
        bytes[at] = static_cast<char>(random());
        break;
      case 2:
        bytes[at] = random() % 2 == 0 ? '\xff' : '\0';
        break;
      default:
        for (std::size_t j = at; j < std::min(at + 8, region); ++j) bytes[j] = '\x7f';
    }
  }
  return bytes;
}

}  // namespace millrace::test
