#include "net/text/file_text.h"

#include <fstream>

namespace millrace::text {
namespace {

constexpr std::uintmax_t kMaxBytes = std::uintmax_t{512} << 20;

}  // namespace

Result<std::string> read_text_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    return Error{ErrorCode::kNotFound, path.string(), "cannot be opened; is the folder complete?"};
  }
  if (size > kMaxBytes) return invalid(path.string(), "is larger than 512 MiB");
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (file.gcount() != static_cast<std::streamsize>(size)) {
    return invalid(path.string(), "could not be read to its end");
  }
  return text;
}

}  // namespace millrace::text
