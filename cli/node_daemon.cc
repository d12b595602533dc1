#include "cli/node_daemon.h"

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

#include "cli/launch.h"
#include "coordinator/process_group.h"

namespace millrace {

namespace {

constexpr std::string_view kPrefix = "millrace-node-";

// A private folder, removed with the object. While it is in use its lock is held, so that a later
// agent can tell it from one whose agent was killed.
class Scratch {
 public:
  static Result<Scratch> make() {
    const bool shm = access("/dev/shm", W_OK | X_OK) == 0;
    std::string path = fmt::format("{}/{}XXXXXX", shm ? "/dev/shm" : "/tmp", kPrefix);
    if (mkdtemp(path.data()) == nullptr) {
      return Error{ErrorCode::kInternal, "",
                   fmt::format("no folder could be made at {}: {}", path, std::strerror(errno))};
    }
    const int lock = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock >= 0) flock(lock, LOCK_EX | LOCK_NB);
    return Scratch(std::move(path), lock);
  }
  Scratch(Scratch&& other) noexcept : path_(std::move(other.path_)), lock_(other.lock_) {
    other.path_.clear();
    other.lock_ = -1;
  }
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() { remove(); }

  void remove() {
    std::error_code error;
    if (!path_.empty()) std::filesystem::remove_all(path_, error);
    if (error) spdlog::warn("node agent: {} stays: {}", path_, error.message());
    path_.clear();
    if (lock_ >= 0) close(lock_);
    lock_ = -1;
  }
  const std::string& path() const { return path_; }

 private:
  Scratch(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}
  std::string path_;
  int lock_;
};

class GroupedDaemon final : public net::DaemonProcess {
 public:
  GroupedDaemon(Scratch scratch, ProcessGroup group)
      : scratch_(std::move(scratch)), group_(std::move(group)) {}
  ~GroupedDaemon() override { end(); }

  int output() const override { return group_.output(); }
  std::optional<int> poll_exit() override {
    if (!group_.poll_exit()) return std::nullopt;
    return group_.exit_status() < 0 ? 255 : group_.exit_status();
  }
  void end() override {
    group_.kill_all();
    scratch_.remove();
  }

 private:
  Scratch scratch_;
  ProcessGroup group_;
};

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

bool is_orphaned(const std::filesystem::path& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid()) {
    return false;
  }
  const int lock = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (lock < 0) return false;
  const bool unused = flock(lock, LOCK_EX | LOCK_NB) == 0;
  close(lock);
  return unused;
}

}  // namespace

net::DaemonLauncher daemon_launcher() {
  return [](const net::OrtedCommand& command) -> Result<std::unique_ptr<net::DaemonProcess>> {
    // Open MPI tells nodes apart by name: ranks of two that share one would look for each other in
    // shared memory, and crash.
    if (command.leader() == host_name()) {
      return invalid("", fmt::format("the leader and this node are both named '{}'; the nodes of a "
                                     "cell need different host names",
                                     host_name()));
    }
    Result<Scratch> scratch = Scratch::make();
    if (!scratch) return scratch.error();
    ProcessOptions options;
    options.death_signal = SIGKILL;  // its ranks ask for the same of it
    options.merge_error = true;
    options.environment = {"TMPDIR=" + scratch->path()};
    options.without = {"OMPI_", "PMIX_", "ORTE_", "OPAL_"};  // of whatever started the agent
    auto group = ProcessGroup::start(command.arguments(scratch->path(), self_path() + " rank-exec"),
                                     options);
    if (!group) return group.error();
    return std::unique_ptr<net::DaemonProcess>(
        std::make_unique<GroupedDaemon>(std::move(*scratch), std::move(*group)));
  };
}

void remove_orphaned_scratch() {
  for (const char* folder : {"/dev/shm", "/tmp"}) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      if (!entry.path().filename().string().starts_with(kPrefix)) continue;
      if (!is_orphaned(entry.path())) continue;
      std::error_code ignored;
      std::filesystem::remove_all(entry.path(), ignored);
      spdlog::info("node agent: {} of an agent that was killed is removed", entry.path().string());
    }
  }
}

}  // namespace millrace
