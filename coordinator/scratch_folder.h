// A private folder in /dev/shm (or /tmp), for the session files of processes that we start.
//
// While the object lives the folder is locked, and the lock ends with the process whatever ends it.
// So a later process can tell a folder that is in use from one that was left behind.
#pragma once

#include <string>
#include <string_view>

#include "config/result.h"

namespace millrace {

class ScratchFolder {
 public:
  // A new folder whose name begins with `prefix`.
  static Result<ScratchFolder> make(std::string_view prefix);
  // Removes the folders of this user with the prefix that nobody holds.
  static void remove_orphans(std::string_view prefix);

  ScratchFolder(ScratchFolder&& other) noexcept;
  ScratchFolder& operator=(ScratchFolder&&) = delete;
  ~ScratchFolder() { remove(); }

  // Removes the folder with all that is in it. Idempotent.
  void remove();
  const std::string& path() const { return path_; }

 private:
  ScratchFolder(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  std::string path_;
  int lock_;
};

}  // namespace millrace
