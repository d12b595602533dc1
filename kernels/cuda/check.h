// CHECK (config/check.h) for .cu files. nvcc 13.0 does not get through the headers of fmt 9 in
// C++20; there the values stand behind the format string instead of in it. Other compilers get the
// original.
#pragma once

#if !defined(__CUDACC__)
#include "config/check.h"
#else

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace millrace {

template <class... Values>
std::string check_details(const char* format, const Values&... values) {
  std::ostringstream out;
  out << format;
  ((out << ' ' << values), ...);
  return out.str();
}

[[noreturn]] inline void device_check_failed(const char* file, int line, const char* condition,
                                             const std::string& details) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s %s\n", file, line, condition, details.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace millrace

#define CHECK(condition, ...)                                                  \
  do {                                                                         \
    if (!(condition)) [[unlikely]]                                             \
      ::millrace::device_check_failed(__FILE__, __LINE__, #condition,          \
                                      ::millrace::check_details(__VA_ARGS__)); \
  } while (false)

#endif
