#include "kernels/packed_amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace millrace::kernels {
namespace {

constexpr long kTileData = 18;  // XFEATURE_XTILEDATA

#if defined(__x86_64__) && defined(__linux__)

// From asm/prctl.h, which older systems have without them.
constexpr long kGetPermitted = 0x1022;
constexpr long kRequest = 0x1023;

constexpr AmxSystem kThisSystem = {
    .has_instructions =
        [] {
          return __builtin_cpu_supports("amx-tile") > 0 && __builtin_cpu_supports("amx-int8") > 0;
        },
    .request = [](long feature) { return syscall(SYS_arch_prctl, kRequest, feature); },
    .permitted =
        [](unsigned long* features) { return syscall(SYS_arch_prctl, kGetPermitted, features); },
};

#else

constexpr AmxSystem kThisSystem = {.has_instructions = [] { return false; },
                                   .request = [](long) { return -1L; },
                                   .permitted = [](unsigned long*) { return -1L; }};

#endif

}  // namespace

AmxSupport ask_amx(const AmxSystem& system) {
  if (!system.has_instructions()) return AmxSupport::kNoInstructions;
  unsigned long features = 0;
  const bool granted = system.request(kTileData) == 0 && system.permitted(&features) == 0 &&
                       (features >> kTileData & 1) != 0;
  return granted ? AmxSupport::kUsable : AmxSupport::kNotPermitted;
}

AmxSupport amx_support() {
  static const AmxSupport kSupport = ask_amx(kThisSystem);
  return kSupport;
}

}  // namespace millrace::kernels
