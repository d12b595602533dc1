// Rules between fields, and strings that have a form.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <set>

#include "config/cluster_config.h"

namespace millrace {
namespace {

bool parse_port(std::string_view text, int& port) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc{} && end == text.data() + text.size() && port >= 1 && port <= 65535;
}

Result<void> check_grid(const ClusterConfig& c) {
  if (c.grid.embedded && !c.cell.hosts.empty()) {
    return invalid("cell.hosts",
                   "a cell over several nodes cannot be embedded; set grid.embedded to "
                   "false or remove cell.hosts");
  }
  if (c.scheduler.prefill_chunk_tokens > c.scheduler.max_step_tokens) {
    return invalid("scheduler.prefill_chunk_tokens",
                   fmt::format("{} must be at most scheduler.max_step_tokens, {}",
                               c.scheduler.prefill_chunk_tokens, c.scheduler.max_step_tokens));
  }
  if (c.scheduler.async == AsyncSteps::kAlways && c.grid.stages > 1) {
    return invalid("scheduler.async",
                   fmt::format("always needs grid.stages 1, not {}: a pipeline has a step in each "
                               "stage anyway; leave it at auto",
                               c.grid.stages));
  }
  if (c.cache.max_sequences > c.scheduler.max_step_tokens) {
    return invalid(
        "scheduler.max_step_tokens",
        fmt::format("{} must be at least cache.max_sequences, {}: every running sequence "
                    "may decode one token in a step",
                    c.scheduler.max_step_tokens, c.cache.max_sequences));
  }
  if (c.cache.kv_tokens != 0 && c.cache.kv_tokens < 2 * c.cache.block_tokens) {
    return invalid("cache.kv_tokens", fmt::format("{} must be 0 or at least two blocks, {} tokens",
                                                  c.cache.kv_tokens, 2 * c.cache.block_tokens));
  }
  if (c.cache.kv_tokens != 0 && c.cache.max_context_tokens > c.cache.kv_tokens) {
    return invalid("cache.max_context_tokens",
                   fmt::format("{} must be at most cache.kv_tokens, {}: a sequence has to fit",
                               c.cache.max_context_tokens, c.cache.kv_tokens));
  }
  return {};
}

Result<void> check_deadlines(const ClusterConfig& c) {
  if (c.deadlines.heartbeat_limit_ms < 2 * c.deadlines.heartbeat_interval_ms) {
    return invalid("deadlines.heartbeat_limit_ms",
                   fmt::format("{} must be at least twice deadlines.heartbeat_interval_ms, {}",
                               c.deadlines.heartbeat_limit_ms, c.deadlines.heartbeat_interval_ms));
  }
  if (c.deadlines.collective_ms > c.deadlines.step_ms) {
    return invalid("deadlines.collective_ms",
                   fmt::format("{} must be at most deadlines.step_ms, {}",
                               c.deadlines.collective_ms, c.deadlines.step_ms));
  }
  if (c.cell.restart_backoff_max_ms < c.cell.restart_backoff_min_ms) {
    return invalid("cell.restart_backoff_max_ms",
                   fmt::format("{} must be at least cell.restart_backoff_min_ms, {}",
                               c.cell.restart_backoff_max_ms, c.cell.restart_backoff_min_ms));
  }
  return {};
}

Result<void> check_gateway(const ClusterConfig& c) {
  const GatewaySection& g = c.gateway;
  if (g.host.empty()) return invalid("gateway.host", "must be an address; 0.0.0.0 for all");
  if (g.cell_host.empty())
    return invalid("gateway.cell_host", "must be an address; 0.0.0.0 for all");
  if (g.port != 0 && g.port == g.cell_port && g.host == g.cell_host) {
    return invalid("gateway.cell_port", fmt::format("{} is already gateway.port", g.cell_port));
  }
  for (const std::string& key : g.api_keys) {
    if (key.empty()) return invalid("gateway.api_keys", "an empty key would open the API to all");
  }
  if (g.guard_metrics && g.api_keys.empty() && g.api_keys_file.empty()) {
    return invalid("gateway.guard_metrics", "needs gateway.api_keys or gateway.api_keys_file");
  }
  return {};
}

Result<void> check_cell(const ClusterConfig& c) {
  for (const std::string& gateway : c.cell.gateways) {
    if (auto parsed = parse_host_port(gateway, "cell.gateways"); !parsed) return parsed.error();
  }
  if (c.cell.health_port != 0 && c.cell.health_host.empty()) {
    return invalid("cell.health_host", "must be an address; 0.0.0.0 for all");
  }
  if (c.cell.index >= c.grid.cells) {
    return invalid("cell.index",
                   fmt::format("{} must be below grid.cells, {}", c.cell.index, c.grid.cells));
  }
  if (c.cell.mpirun.empty())
    return invalid("cell.mpirun", "must be a path or a name found by PATH");
  return {};
}

// The names go into mpirun's host list and onto its launch agent's command line.
bool only(const std::string& text, std::string_view extra) {
  return std::all_of(text.begin(), text.end(), [extra](unsigned char c) {
    return std::isalnum(c) != 0 || extra.find(static_cast<char>(c)) != std::string_view::npos;
  });
}

Result<void> check_hosts(const ClusterConfig& c) {
  std::set<std::string> hosts;
  int placed = 0;
  bool counted = !c.cell.hosts.empty();
  for (const std::string& entry : c.cell.hosts) {
    const std::size_t colon = entry.rfind(':');
    const std::string host = entry.substr(0, colon);
    int workers = 0;
    const bool good = colon == std::string::npos ||
                      parse_port(std::string_view(entry).substr(colon + 1), workers);
    if (host.empty() || host[0] == '-' || !good || !only(host, ".-_")) {
      return invalid("cell.hosts", fmt::format("'{}' must be host or host:workers", entry));
    }
    if (!hosts.insert(host).second) {
      return invalid("cell.hosts",
                     fmt::format("'{}' is listed twice; give its workers instead", host));
    }
    counted = counted && colon != std::string::npos;
    placed += workers;
  }
  const int needed = c.grid.stages * c.grid.lanes;
  if (counted && placed < needed) {
    return invalid("cell.hosts", fmt::format("have room for {} workers, but grid.stages x "
                                             "grid.lanes is {}",
                                             placed, needed));
  }
  if (!only(c.cell.network, "./,:-_")) {
    return invalid("cell.network", fmt::format("'{}' must be subnets such as 10.0.0.0/24 or "
                                               "interface names, separated by commas",
                                               c.cell.network));
  }
  if (!c.cell.hosts.empty() && c.grid.cells > 1) {
    return invalid("grid.cells",
                   "serve starts one cell when that cell has cell.hosts; start others "
                   "with millrace cell");
  }
  return {};
}

Result<void> check_device(const ClusterConfig& c) {
  std::set<std::string> indices;
  for (const std::string& index : c.device.indices) {
    const bool number = !index.empty() && index.size() <= 3 &&
                        std::all_of(index.begin(), index.end(),
                                    [](unsigned char ch) { return std::isdigit(ch) != 0; });
    if (!number) {
      return invalid("device.indices", fmt::format("'{}' must be a device's index", index));
    }
    if (!indices.insert(index).second) {
      return invalid("device.indices",
                     fmt::format("{} is listed twice; use device.ranks_per_device", index));
    }
  }
  if (c.device.backend == DeviceChoice::kCpu && c.cache.kv_dtype == KvDtype::kFp8) {
    return invalid("cache.kv_dtype", "fp8 needs device.backend cuda; the CPU has f32 and bf16");
  }
  if (c.device.backend == DeviceChoice::kCuda && c.cache.kv_dtype == KvDtype::kF32) {
    return invalid("cache.kv_dtype", "f32 needs device.backend cpu; devices have bf16 and fp8");
  }
  return {};
}

}  // namespace

Result<void> check_cluster_config(const ClusterConfig& config) {
  for (const auto check :
       {check_grid, check_device, check_deadlines, check_gateway, check_cell, check_hosts}) {
    if (auto checked = check(config); !checked) return checked.error();
  }
  return {};
}

Result<HostPort> parse_host_port(std::string_view text, std::string_view field) {
  const std::size_t colon = text.rfind(':');
  int port = 0;
  if (colon == std::string_view::npos || colon == 0 || !parse_port(text.substr(colon + 1), port)) {
    return invalid(std::string(field), fmt::format("'{}' must be host:port", text));
  }
  std::string_view host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']') && host.size() > 2) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[] \t") != std::string_view::npos) {
    return invalid(std::string(field),
                   fmt::format("'{}' must be host:port, an IPv6 address in brackets", text));
  }
  return HostPort{std::string(host), static_cast<std::uint16_t>(port)};
}

Result<std::vector<std::string>> load_api_keys(const GatewaySection& gateway) {
  std::vector<std::string> keys = gateway.api_keys;
  if (gateway.api_keys_file.empty()) return keys;
  std::ifstream file(gateway.api_keys_file);
  if (!file) {
    return Error{ErrorCode::kNotFound, "gateway.api_keys_file",
                 fmt::format("'{}' cannot be read", gateway.api_keys_file)};
  }
  const std::size_t before = keys.size();
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line[0] != '#') keys.push_back(line);
  }
  if (keys.size() == before) {
    return invalid("gateway.api_keys_file",
                   fmt::format("'{}' has no key; remove the field to open the API to all",
                               gateway.api_keys_file));
  }
  return keys;
}

}  // namespace millrace
