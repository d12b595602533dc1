#include "coordinator/process_group.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

extern char** environ;

namespace millrace {

namespace {

constexpr std::string_view kTagName = "MILLRACE_CELL_TAG=";

std::string new_tag() {
  static std::atomic<int> counter = 0;
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  return fmt::format("{}{}-{}-{}", kTagName, getpid(), now, counter++);
}

bool carries(const std::filesystem::path& process, const std::string& tag) {
  std::ifstream file(process / "environ", std::ios::binary);
  if (!file) return false;
  const std::string environment{std::istreambuf_iterator<char>(file), {}};
  const std::size_t at = environment.find(tag);
  return at != std::string::npos && environment[at + tag.size()] == '\0';
}

// Processes with the tag. Zombies have no environment any more and do not count.
std::vector<pid_t> tagged(const std::string& tag) {
  std::vector<pid_t> pids;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    if (carries(entry.path(), tag)) pids.push_back(static_cast<pid_t>(std::stol(name)));
  }
  return pids;
}

// This process's environment as the options change it, with the tag last.
std::vector<std::string> environment_for(const ProcessOptions& options, const std::string& tag) {
  std::vector<std::string> replaced{std::string(kTagName)};
  const char* const home = std::getenv("HOME");
  const bool homeless = !options.home.empty() && (home == nullptr || *home == '\0');
  if (homeless) replaced.emplace_back("HOME=");
  for (const std::string& one : options.environment) {
    replaced.push_back(one.substr(0, one.find('=') + 1));
  }
  replaced.insert(replaced.end(), options.without.begin(), options.without.end());
  std::vector<std::string> all;
  for (char** e = environ; *e != nullptr; ++e) {
    const bool keep = std::none_of(replaced.begin(), replaced.end(), [e](const std::string& name) {
      return std::string_view(*e).starts_with(name);
    });
    if (keep) all.emplace_back(*e);
  }
  all.insert(all.end(), options.environment.begin(), options.environment.end());
  if (homeless) all.push_back("HOME=" + options.home);
  all.push_back(tag);
  return all;
}

// For exec; valid as long as `words`.
std::vector<char*> pointers_to(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

struct Birth {
  int output;
  pid_t parent;
  int death_signal;
  bool merge_error;
};

// After fork, before exec: async-signal-safe calls only.
[[noreturn]] void become(char* const* argv, char* const* environment, const Birth& birth) {
  setsid();
  prctl(PR_SET_PDEATHSIG, birth.death_signal);
  if (getppid() != birth.parent) _exit(127);  // the parent died before the line above
  dup2(birth.output, STDOUT_FILENO);
  if (birth.merge_error) dup2(birth.output, STDERR_FILENO);
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int number : {SIGINT, SIGTERM, SIGPIPE, SIGUSR1, SIGUSR2}) ::signal(number, SIG_DFL);
  execvpe(argv[0], argv, environment);
  const char message[] = "millrace: cannot run the cell's command: is it installed?\n";
  [[maybe_unused]] const auto n = write(STDERR_FILENO, message, sizeof message - 1);
  _exit(127);
}

}  // namespace

Result<ProcessGroup> ProcessGroup::start(const std::vector<std::string>& command,
                                         const ProcessOptions& options) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return Error{ErrorCode::kInternal, "", fmt::format("pipe: {}", std::strerror(errno))};
  }
  std::string tag = new_tag();
  const std::vector<std::string> environment = environment_for(options, tag);
  const std::vector<char*> argv = pointers_to(command);
  const std::vector<char*> variables = pointers_to(environment);
  const Birth birth{ends[1], getpid(), options.death_signal, options.merge_error};
  const pid_t pid = fork();
  if (pid == 0) become(argv.data(), variables.data(), birth);
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return Error{ErrorCode::kInternal, "", fmt::format("fork: {}", std::strerror(errno))};
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  return ProcessGroup(pid, ends[0], std::move(tag));
}

ProcessGroup::ProcessGroup(pid_t pid, int output, std::string tag)
    : pid_(pid), output_(output), tag_(std::move(tag)) {}

ProcessGroup::ProcessGroup(ProcessGroup&& other) noexcept
    : pid_(other.pid_),
      output_(other.output_),
      tag_(std::move(other.tag_)),
      exited_(other.exited_),
      status_(other.status_),
      how_(std::move(other.how_)) {
  other.pid_ = -1;
  other.output_ = -1;
}

ProcessGroup::~ProcessGroup() {
  if (pid_ > 0) kill_all();
  if (output_ >= 0) close(output_);
}

std::optional<std::string> ProcessGroup::poll_exit() {
  if (exited_) return how_;
  int status = 0;
  const pid_t got = waitpid(pid_, &status, WNOHANG);
  if (got == 0) return std::nullopt;
  exited_ = true;
  if (got < 0) {
    how_ = fmt::format("was lost: {}", std::strerror(errno));
  } else if (WIFEXITED(status)) {
    status_ = WEXITSTATUS(status);
    how_ = fmt::format("exited with status {}", WEXITSTATUS(status));
  } else {
    status_ = 128 + WTERMSIG(status);
    how_ = fmt::format("was killed by signal {}", WTERMSIG(status));
  }
  return how_;
}

void ProcessGroup::signal(int number) {
  if (!exited_) kill(pid_, number);
}

void ProcessGroup::kill_all() {
  using Clock = std::chrono::steady_clock;
  const auto limit = Clock::now() + std::chrono::seconds(10);
  while (true) {
    const bool gone = poll_exit().has_value();
    std::vector<pid_t> left = tagged(tag_);
    // Between fork and exec the command has no tag yet; it is ours all the same.
    if (!gone) left.push_back(pid_);
    if (left.empty()) return;
    for (const pid_t pid : left) kill(pid, SIGKILL);
    if (Clock::now() > limit) {
      spdlog::error("{} processes of a cell survive SIGKILL (first: pid {})", left.size(), left[0]);
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // namespace millrace
