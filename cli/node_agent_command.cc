#include "cli/node_agent_command.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "cli/launch.h"
#include "cli/node_daemon.h"
#include "net/node_agent.h"
#include "net/node_agent_client.h"
#include "net/psk_tls.h"

namespace millrace {

namespace {

using std::chrono::milliseconds;

constexpr int kLaunchFailed = 255;
constexpr const char* kSecretField = "node_agent.secret_file";

Result<std::string> load_secret(const ClusterConfig& config) {
  if (config.node_agent.secret_file.empty()) {
    return invalid(kSecretField, "must name the file that leader and agents share");
  }
  return net::read_secret_file(config.node_agent.secret_file, kSecretField);
}

int fail(const std::string& message, int status) {
  fmt::print(stderr, "millrace: {}\n", message);
  return status;
}

boost::asio::awaitable<void> until_idle(net::NodeAgent& agent, milliseconds limit) {
  constexpr milliseconds kLook{50};
  boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor);
  const auto end = std::chrono::steady_clock::now() + limit;
  while (agent.running() > 0 && std::chrono::steady_clock::now() < end) {
    timer.expires_after(kLook);
    co_await timer.async_wait(boost::asio::use_awaitable);
  }
}

// The first signal lets leaders that are draining finish: pods of one cell are told to end
// together. Daemons that are left at the limit, or at a second signal, are ended.
boost::asio::awaitable<void> end_on_signal(net::NodeAgent& agent, milliseconds limit) {
  using namespace boost::asio::experimental::awaitable_operators;
  const auto executor = co_await boost::asio::this_coro::executor;
  boost::asio::signal_set signals(executor, SIGINT, SIGTERM);
  co_await signals.async_wait(boost::asio::use_awaitable);
  agent.stop_listening();
  if (agent.running() > 0) {
    spdlog::info("node agent: waits for {} of its leaders' daemons; again to stop at once",
                 agent.running());
    co_await (until_idle(agent, limit) || signals.async_wait(boost::asio::use_awaitable));
  }
  spdlog::info("node agent: stopping with everything it started");
  agent.close();
}

}  // namespace

int run_node_agent(const ClusterConfig& config) {
  const Result<std::string> secret = load_secret(config);
  if (!secret) return fail(secret.error().to_string(), 2);
  remove_orphaned_scratch();
  net::NodeAgentOptions options;
  options.host = config.node_agent.host;
  options.port = static_cast<std::uint16_t>(config.node_agent.port);
  options.secret = *secret;
  options.timeout = std::chrono::milliseconds(config.node_agent.timeout_ms);
  options.max_connections = static_cast<std::uint32_t>(config.node_agent.max_connections);
  boost::asio::io_context io(1);
  net::NodeAgent agent(io, options, daemon_launcher());
  if (const Result<void> listening = agent.listen(); !listening) {
    return fail(listening.error().to_string(), 1);
  }
  spdlog::info("node agent: leaders may dial {}:{}", options.host, agent.port());
  boost::asio::co_spawn(io, end_on_signal(agent, milliseconds(config.deadlines.drain_ms)),
                        boost::asio::detached);
  io.run();
  return 0;
}

int run_agent_exec(const ClusterConfig& config, const std::vector<std::string>& words) {
  const pid_t parent = getppid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // without mpirun nothing may stay on the node
  if (getppid() != parent || parent == 1) return kLaunchFailed;
  if (words.size() < 2) return fail("agent-exec: a host and a command are needed", kLaunchFailed);
  Result<std::string> secret = load_secret(config);
  if (!secret) return fail(secret.error().to_string(), kLaunchFailed);
  net::NodeAgentCall call;
  call.host = words[0];
  call.port = static_cast<std::uint16_t>(config.node_agent.port);
  call.secret = std::move(*secret);
  call.command.assign(words.begin() + 1, words.end());
  call.timeout = std::chrono::milliseconds(config.node_agent.timeout_ms);
  const Result<int> status = net::call_node_agent(call, [](std::string_view output) {
    while (!output.empty()) {
      const ssize_t n = write(STDERR_FILENO, output.data(), output.size());
      if (n <= 0) return;
      output.remove_prefix(static_cast<std::size_t>(n));
    }
  });
  if (!status) return fail("node agent: " + status.error().to_string(), kLaunchFailed);
  return *status;
}

int run_rank_exec(const std::vector<std::string>& words) {
  std::error_code error;
  if (words.size() < 2 || words[1] != "worker" ||
      !std::filesystem::equivalent(words[0], "/proc/self/exe", error)) {
    return fail(fmt::format("rank-exec: only ranks of this binary run here, not '{}'",
                            words.empty() ? "" : words[0]),
                kLaunchFailed);
  }
  // mpirun hands its own folder on to the ranks of all nodes; here the daemon's stands for it.
  if (const char* scratch = std::getenv("TMPDIR")) {
    setenv("OMPI_MCA_btl_vader_backing_directory", scratch, 1);
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // stays across exec: no gap until the worker asks for it
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  execv(self_path().c_str(), arguments.data());
  return fail(fmt::format("rank-exec: {}", std::strerror(errno)), kLaunchFailed);
}

}  // namespace millrace
