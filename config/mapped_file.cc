#include "config/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace millrace {
namespace {

std::string errno_text(int error) { return std::generic_category().message(error); }

struct FileDescriptor {
  int fd = -1;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must give an error below, not wait for a writer.
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) {
    const int error = errno;
    const bool missing = error == ENOENT || error == ENOTDIR;
    return Error{missing ? ErrorCode::kNotFound : ErrorCode::kInvalidArgument, path,
                 fmt::format("cannot be opened: {}", errno_text(error))};
  }
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) {
    return invalid(path, fmt::format("cannot be examined: {}", errno_text(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return invalid(path, S_ISDIR(info.st_mode) ? "is a directory, expected a regular file"
                                               : "is not a regular file");
  }
  if (info.st_size == 0) return invalid(path, "is empty");

  MappedFile mapped;
  mapped.path_ = path;
  const auto size = static_cast<std::size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) {
    return Error{ErrorCode::kResourceExhausted, path,
                 fmt::format("{} bytes cannot be mapped: {}", size, errno_text(errno))};
  }
  mapped.data_ = static_cast<const std::byte*>(data);
  mapped.size_ = size;
  return mapped;
}

void MappedFile::advise(std::uint64_t offset, std::uint64_t length, Access access) const {
  if (data_ == nullptr || offset >= size_) return;
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = offset / page * page;
  const std::uint64_t end = offset + std::min<std::uint64_t>(length, size_ - offset);
  int advice = MADV_NORMAL;
  if (access == Access::kSequential) advice = MADV_SEQUENTIAL;
  if (access == Access::kRandom) advice = MADV_RANDOM;
  if (access == Access::kWillNeed) advice = MADV_WILLNEED;
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, advice);
}

}  // namespace millrace
