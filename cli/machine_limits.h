// What this process may use of the machine: the machine itself, less what its control groups
// (version 1 or 2) and its CPU affinity leave of it.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

struct MachineLimits {
  std::uint64_t memory_bytes = 0;  // that can still be had
  std::string memory_source;       // "the machine", or the file whose limit is the tightest
  int cores = 1;
  std::string cores_source;  // likewise, or "the affinity"
};

// `root` holds proc and sys, for tests. A limit that cannot be read does not count.
MachineLimits measure_machine(const std::string& root = "/");

}  // namespace millrace
