// How a command that cannot go on says so.
#pragma once

#include <fmt/format.h>

#include <cstdio>

#include "config/result.h"

namespace millrace {

// One line on standard error. Returns the exit status.
inline int complain(const Error& error) {
  fmt::print(stderr, "millrace: {}\n", error.to_string());
  return 1;
}

}  // namespace millrace
