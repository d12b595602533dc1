#include "coordinator/scratch_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

namespace millrace {

namespace {

constexpr int kOpenFolder = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW;

bool is_orphaned(const std::filesystem::path& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid()) {
    return false;
  }
  const int lock = open(path.c_str(), kOpenFolder);
  if (lock < 0) return false;
  const bool unused = flock(lock, LOCK_EX | LOCK_NB) == 0;
  close(lock);
  return unused;
}

}  // namespace

Result<ScratchFolder> ScratchFolder::make(std::string_view prefix) {
  const bool shm = access("/dev/shm", W_OK | X_OK) == 0;
  std::string path = fmt::format("{}/{}XXXXXX", shm ? "/dev/shm" : "/tmp", prefix);
  if (mkdtemp(path.data()) == nullptr) {
    return Error{ErrorCode::kInternal, "",
                 fmt::format("no folder could be made at {}: {}", path, std::strerror(errno))};
  }
  const int lock = open(path.c_str(), kOpenFolder);
  if (lock >= 0) flock(lock, LOCK_EX | LOCK_NB);
  return ScratchFolder(std::move(path), lock);
}

void ScratchFolder::remove_orphans(std::string_view prefix) {
  for (const char* folder : {"/dev/shm", "/tmp"}) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      if (!entry.path().filename().string().starts_with(prefix)) continue;
      if (!is_orphaned(entry.path())) continue;
      std::error_code ignored;
      std::filesystem::remove_all(entry.path(), ignored);
      spdlog::info("{}, left by a process that was killed, is removed", entry.path().string());
    }
  }
}

ScratchFolder::ScratchFolder(ScratchFolder&& other) noexcept
    : path_(std::exchange(other.path_, {})), lock_(std::exchange(other.lock_, -1)) {}

void ScratchFolder::remove() {
  std::error_code error;
  if (!path_.empty()) std::filesystem::remove_all(path_, error);
  if (error) spdlog::warn("{} stays: {}", path_, error.message());
  path_.clear();
  if (lock_ >= 0) close(lock_);
  lock_ = -1;
}

}  // namespace millrace
