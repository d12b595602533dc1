#include "cli/launch.h"

#include <unistd.h>

#include <filesystem>

namespace millrace {

std::string self_path() { return std::filesystem::read_symlink("/proc/self/exe"); }

std::vector<std::string> mpirun_command(const ClusterConfig& config, const std::string& config_file,
                                        std::uint64_t epoch, const std::string& scratch) {
  std::vector<std::string> command{config.cell.mpirun};
  const auto add = [&command](std::initializer_list<std::string> words) {
    command.insert(command.end(), words);
  };
  const auto mca = [&add](const std::string& key, const std::string& value) {
    add({"--mca", key, value});
  };
  if (geteuid() == 0) add({"--allow-run-as-root"});
  // We bind threads ourselves; Open MPI's default would pin a rank's threads onto one core.
  add({"--oversubscribe", "--bind-to", "none"});
  mca("btl", "self,vader,tcp");
  mca("mpi_yield_when_idle", "1");
  mca("orte_tmpdir_base", scratch);
  mca("btl_vader_backing_directory", scratch);
  mca("btl_vader_single_copy_mechanism", "none");  // needs ptrace rights that containers lack
  if (config.cell.hosts.empty()) {
    mca("plm", "isolated");
    mca("oob_tcp_if_include", "lo");
    mca("btl_tcp_if_include", "lo");
  } else {
    std::string hosts;
    for (const std::string& host : config.cell.hosts) hosts += (hosts.empty() ? "" : ",") + host;
    add({"--host", hosts});
  }
  command.insert(command.end(), config.cell.mpirun_args.begin(), config.cell.mpirun_args.end());
  add({"-n", std::to_string(1 + config.grid.stages * config.grid.lanes)});
  add({self_path(), "worker", "--config", config_file, "--epoch", std::to_string(epoch)});
  return command;
}

}  // namespace millrace
