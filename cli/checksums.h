// A model's files against a list of SHA-256 sums, as `sha256sum * > SHA256SUMS` writes it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/result.h"

namespace millrace {

struct FileSum {
  std::string name;    // relative to the list's folder
  std::string sha256;  // 64 lower-case hexadecimal digits
};

inline constexpr const char* kSumsName = "SHA256SUMS";

// Every line is `<64 digits> <blank or *><name>`. Refused, with file and line: anything else, a
// name twice, and names that lead out of the list's folder.
Result<std::vector<FileSum>> read_sums(const std::string& path);

// The SHA-256 of a file's contents. `progress` gets the bytes of each piece that was read.
Result<std::string> sha256_of_file(const std::string& path,
                                   const std::function<void(std::uint64_t)>& progress);

struct SumCheck {
  std::vector<std::string> problems;  // one sentence a file, in order of name; empty: all is well
  std::size_t files = 0;              // that were compared
  std::uint64_t bytes = 0;
};

// Compares the files of `model` (a folder or one file) with the list: of a folder all that the list
// names, and none of the files that models are read from (.json, .safetensors, .jinja, .gguf) may
// be missing in it; of one file that file alone. Reads with up to `threads` threads.
// `progress(done, total)` in bytes, from any of them, one at a time.
Result<SumCheck> check_sums(const std::string& model, const std::string& sums, int threads,
                            const std::function<void(std::uint64_t, std::uint64_t)>& progress);

}  // namespace millrace
