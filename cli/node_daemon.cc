#include "cli/node_daemon.h"

#include <fmt/format.h>
#include <unistd.h>

#include "cli/launch.h"
#include "coordinator/process_group.h"
#include "coordinator/scratch_folder.h"

namespace millrace {

namespace {

constexpr std::string_view kPrefix = "millrace-node-";

class GroupedDaemon final : public net::DaemonProcess {
 public:
  GroupedDaemon(ScratchFolder scratch, ProcessGroup group)
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
  ScratchFolder scratch_;
  ProcessGroup group_;
};

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
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
    Result<ScratchFolder> scratch = ScratchFolder::make(kPrefix);
    if (!scratch) return scratch.error();
    ProcessOptions options;
    options.death_signal = SIGKILL;  // its ranks ask for the same of it
    options.merge_error = true;
    options.environment = {"TMPDIR=" + scratch->path()};
    options.home = scratch->path();
    options.without = {"OMPI_", "PMIX_", "ORTE_", "OPAL_"};  // of whatever started the agent
    auto group = ProcessGroup::start(command.arguments(scratch->path(), self_path() + " rank-exec"),
                                     options);
    if (!group) return group.error();
    return std::unique_ptr<net::DaemonProcess>(
        std::make_unique<GroupedDaemon>(std::move(*scratch), std::move(*group)));
  };
}

void remove_orphaned_scratch() { ScratchFolder::remove_orphans(kPrefix); }

}  // namespace millrace
