// A command and everything it starts, as one thing that can be ended.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "config/result.h"

namespace millrace {

class ProcessGroup {
 public:
  // Runs `command` (argv[0] by PATH) with its standard output in a pipe, in a session of its own,
  // and with a tag in the environment that all its descendants inherit. It gets SIGTERM when the
  // calling thread dies, so that nothing outlives a supervisor that was killed.
  static Result<ProcessGroup> start(const std::vector<std::string>& command);

  ProcessGroup(ProcessGroup&& other) noexcept;
  ProcessGroup& operator=(ProcessGroup&&) = delete;
  ~ProcessGroup();  // kill_all()

  int output() const { return output_; }  // read end, non-blocking
  pid_t pid() const { return pid_; }

  // How the command ended ("exited with status 1", "was killed by signal 9"), or nullopt while it
  // runs.
  std::optional<std::string> poll_exit();
  bool exited_cleanly() const { return exited_ && clean_; }

  void signal(int number);  // to the command alone; it passes on what it wants to
  // SIGKILL to every process that carries the tag, until none is left, and reaps the command.
  void kill_all();

 private:
  ProcessGroup(pid_t pid, int output, std::string tag);

  pid_t pid_;
  int output_;
  std::string tag_;
  bool exited_ = false;
  bool clean_ = false;
  std::string how_;
};

}  // namespace millrace
