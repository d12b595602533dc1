// CHECK for our own bugs: prints the failed condition with its values and aborts.
// Never for input from outside; that gets a Result (config/result.h).
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

namespace millrace {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition,
                                      const std::string& details) {
  fmt::print(stderr, "{}:{}: CHECK failed: {} {}\n", file, line, condition, details);
  std::fflush(stderr);
  std::abort();
}

}  // namespace millrace

// CHECK(n <= cap, "n={} cap={}", n, cap): the format arguments are evaluated only on failure.
#define CHECK(condition, ...)                                                               \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      ::millrace::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
  } while (false)
