// CHECK (config/check.h) for .cu files. nvcc 13.0 does not get through the headers of fmt 9 in
// C++20; there the values stand behind the format string instead of in it. Other compilers get the
// original.
#pragma once

#if !defined(__CUDACC__)
#include "config/check.h"
#else

#include <cstdio>
#include <cstdlib>

namespace millrace {

// Without <string> and <sstream>: kernels/cuda/stream_ref.h says why.
inline void print_check_value(bool value) { std::fputs(value ? " true" : " false", stderr); }
inline void print_check_value(int value) { std::fprintf(stderr, " %d", value); }
inline void print_check_value(unsigned value) { std::fprintf(stderr, " %u", value); }
inline void print_check_value(long value) { std::fprintf(stderr, " %ld", value); }
inline void print_check_value(unsigned long value) { std::fprintf(stderr, " %lu", value); }
inline void print_check_value(long long value) { std::fprintf(stderr, " %lld", value); }
inline void print_check_value(unsigned long long value) { std::fprintf(stderr, " %llu", value); }
inline void print_check_value(double value) { std::fprintf(stderr, " %g", value); }

template <class... Values>
[[noreturn]] void device_check_failed(const char* file, int line, const char* condition,
                                      const char* format, const Values&... values) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s %s", file, line, condition, format);
  (print_check_value(values), ...);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::abort();
}

}  // namespace millrace

#define CHECK(condition, ...)                                                       \
  do {                                                                              \
    if (!(condition)) [[unlikely]]                                                  \
      ::millrace::device_check_failed(__FILE__, __LINE__, #condition, __VA_ARGS__); \
  } while (false)

#endif
