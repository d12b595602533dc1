// Which of the packed kernels this CPU runs.
#include <vector>

#include "config/check.h"
#include "kernels/packed_amx.h"
#include "kernels/packed_gemm.h"

namespace millrace::kernels {

namespace portable {
const PackedKernels& packed_kernels();
}
#ifdef MILLRACE_X86_SETS
namespace avx2 {
const PackedKernels& packed_kernels();
}
namespace avx2_vnni {
const PackedKernels& packed_kernels();
}
namespace avx512 {
const PackedKernels& packed_kernels();
}
namespace avx512_vnni {
const PackedKernels& packed_kernels();
}
namespace avx512_amx {
PackedKernels packed_kernels(const PackedKernels& rest);
}
#endif

namespace {

// Slowest first within a set. The checks of kernels/table.h hold for the sets themselves.
std::vector<const PackedKernels*> find_kernels() {
  std::vector<const PackedKernels*> found = {&portable::packed_kernels()};
#ifdef MILLRACE_X86_SETS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2) found.push_back(&avx2::packed_kernels());
  if (avx2 && __builtin_cpu_supports("avxvnni")) found.push_back(&avx2_vnni::packed_kernels());
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512) found.push_back(&avx512::packed_kernels());
  if (avx512 && __builtin_cpu_supports("avx512vnni")) {
    found.push_back(&avx512_vnni::packed_kernels());
    if (amx_support() == AmxSupport::kUsable) {
      static const PackedKernels kAmx = avx512_amx::packed_kernels(avx512_vnni::packed_kernels());
      found.push_back(&kAmx);
    }
  }
#endif
  return found;
}

}  // namespace

std::span<const PackedKernels* const> all_packed_kernels() {
  static const std::vector<const PackedKernels*> kAll = find_kernels();
  return kAll;
}

const PackedKernels& packed_kernels(std::string_view set) {
  const PackedKernels* best = nullptr;
  for (const PackedKernels* kernels : all_packed_kernels()) {
    const std::string_view name = kernels->name;
    if (name == set || (name.starts_with(set) && name.substr(set.size()) == "_vnni"))
      best = kernels;
  }
  CHECK(best != nullptr, "set={}", set);
  return *best;
}

}  // namespace millrace::kernels
