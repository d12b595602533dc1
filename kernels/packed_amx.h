// Whether this process may use AMX tiles for int8: the processor has them, and the operating system
// grants them. Linux keeps the 8 KiB of state of each thread that uses tiles only for a process
// that asked (arch_prctl, documented in the kernel's x86/xstate.rst), and a sandbox may refuse.
#pragma once

namespace millrace::kernels {

enum class AmxSupport { kNoInstructions, kNotPermitted, kUsable };

// What ask_amx asks; tests answer for themselves.
struct AmxSystem {
  bool (*has_instructions)();  // by CPUID, the system's switch for the state (XCR0) included
  // arch_prctl: 0 where it succeeds.
  long (*request)(long feature);
  long (*permitted)(unsigned long* features);
};

// Asks for permission where there are instructions. It is the whole process's, and for good.
AmxSupport ask_amx(const AmxSystem& system);

// Of this process: asked at the first call, the same answer ever after. From any thread.
AmxSupport amx_support();

}  // namespace millrace::kernels
