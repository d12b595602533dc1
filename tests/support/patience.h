// Limits of time that only say "it hangs": longer where sanitizers make everything slower.
#pragma once

namespace millrace::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kPatience = 10;
#else
inline constexpr int kPatience = 1;
#endif

}  // namespace millrace::testing
