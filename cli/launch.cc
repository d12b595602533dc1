#include "cli/launch.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

namespace millrace {

std::string self_path() { return std::filesystem::read_symlink("/proc/self/exe"); }

std::vector<HostWorkers> place_on_hosts(const ClusterConfig& config) {
  std::vector<HostWorkers> hosts;
  int left = config.grid.stages * config.grid.lanes;
  int open = 0;  // nodes without a number
  for (const std::string& entry : config.cell.hosts) {
    const std::size_t colon = entry.rfind(':');
    const bool counted = colon != std::string::npos;
    const int workers = counted ? std::min(left, std::stoi(entry.substr(colon + 1))) : -1;
    hosts.push_back({entry.substr(0, colon), workers});
    if (counted) left -= workers;
    if (!counted) ++open;
  }
  for (HostWorkers& host : hosts) {
    if (host.workers >= 0) continue;
    host.workers = (left + open - 1) / open;
    --open;
    left -= host.workers;
  }
  return hosts;
}

namespace {

// mpirun fills the hosts in this order, so that rank 0 is here.
std::string host_list(const ClusterConfig& config) {
  std::string list;
  int more = 1;  // rank 0
  for (const HostWorkers& host : place_on_hosts(config)) {
    const int slots = host.workers + more;
    more = 0;
    if (slots == 0) continue;
    list += (list.empty() ? "" : ",") + host.host + ":" + std::to_string(slots);
  }
  return list;
}

}  // namespace

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
    add({"--noprefix"});  // each node finds its own Open MPI by PATH, whatever cell.mpirun says
    add({"--host", host_list(config)});
    if (!config.cell.network.empty()) {
      mca("oob_tcp_if_include", config.cell.network);
      mca("btl_tcp_if_include", config.cell.network);
    }
    mca("plm", "rsh");
    mca("plm_rsh_no_tree_spawn", "1");  // all daemons by us: an agent's node launches nothing
    if (!config.node_agent.secret_file.empty()) {
      mca("plm_rsh_agent", self_path() + " agent-exec --config " + config_file);
    }
  }
  command.insert(command.end(), config.cell.mpirun_args.begin(), config.cell.mpirun_args.end());
  add({"-n", std::to_string(1 + config.grid.stages * config.grid.lanes)});
  add({self_path(), "worker", "--config", config_file, "--epoch", std::to_string(epoch)});
  return command;
}

}  // namespace millrace
