// A read-only memory map of one regular file, the only way Millrace reads model files.
//
// The map is private and its length is the file's size at open(). Every reader checks each extent
// it uses against that size before touching it, so a file that was cut short gives an error that
// names what is missing. (A file that is cut while it is mapped still raises SIGBUS: no check of
// ours can prevent that, so model files must be replaced by rename, never rewritten in place.)
//
// Thread-safe once opened: nothing is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "config/result.h"

namespace millrace {

class MappedFile {
 public:
  enum class Access { kNormal, kSequential, kRandom, kWillNeed };

  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Errors (field = path): kNotFound when there is no such file; kInvalidArgument for a directory,
  // a device, a pipe, an empty file, or one that may not be read, with the system's reason.
  static Result<MappedFile> open(const std::string& path);

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

  // Hint to the kernel about [offset, offset + length), widened to whole pages and cut to the file.
  // A hint may be ignored; failure is not an error.
  void advise(std::uint64_t offset, std::uint64_t length, Access access) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace millrace
