// A command and everything it starts, as one thing that can be ended.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "config/result.h"

namespace millrace {

struct ProcessOptions {
  int death_signal = SIGTERM;  // what the command gets when the calling thread dies
  bool merge_error = false;    // standard error goes into the same pipe as standard output
  // Variables ("NAME=value") that replace those of the same name, and beginnings of names that are
  // not passed on.
  std::vector<std::string> environment = {};
  std::vector<std::string> without = {};
  // HOME where this process has none. Open MPI crashes without one when the user is not in
  // /etc/passwd, as in most containers.
  std::string home = {};
};

class ProcessGroup {
 public:
  // Runs `command` (argv[0] by PATH) with its standard output in a pipe, in a session of its own,
  // and with a tag in the environment that all its descendants inherit. It gets the death signal
  // when the calling thread dies, so that nothing outlives a supervisor that was killed.
  static Result<ProcessGroup> start(const std::vector<std::string>& command,
                                    const ProcessOptions& options = {});

  ProcessGroup(ProcessGroup&& other) noexcept;
  ProcessGroup& operator=(ProcessGroup&&) = delete;
  ~ProcessGroup();  // kill_all()

  int output() const { return output_; }  // read end, non-blocking
  pid_t pid() const { return pid_; }

  // How the command ended ("exited with status 1", "was killed by signal 9"), or nullopt while it
  // runs.
  std::optional<std::string> poll_exit();
  bool exited_cleanly() const { return exited_ && status_ == 0; }
  // As a shell counts it: the exit status, or 128 + the signal; -1 while it runs or when lost.
  int exit_status() const { return status_; }

  void signal(int number);  // to the command alone; it passes on what it wants to
  // SIGKILL to every process that carries the tag, until none is left, and reaps the command.
  void kill_all();

 private:
  ProcessGroup(pid_t pid, int output, std::string tag);

  pid_t pid_;
  int output_;
  std::string tag_;
  bool exited_ = false;
  int status_ = -1;
  std::string how_;
};

}  // namespace millrace
