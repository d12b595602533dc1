#include "kernels/table.h"

#include <fmt/format.h>

#include <utility>

#include "config/check.h"
#include "kernels/packed_amx.h"
#include "kernels/packed_table.h"

namespace millrace::kernels {

// Each set defines its own table beside its ops.
namespace reference {
const KernelTable& table();
}
namespace portable {
const KernelTable& table();
}
#ifdef MILLRACE_X86_SETS
namespace avx2 {
const KernelTable& table();
}
namespace avx512 {
const KernelTable& table();
}

namespace {

const PackedKernels& amx_kernels() { return packed_kernels("avx512_amx"); }
using AmxTable = PackedTable<&amx_kernels, &avx512::table>;

}  // namespace
#endif

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Amx:
      return "avx512_amx";
  }
  CHECK(false, "isa={}", static_cast<int>(isa));
}

bool isa_supported(Isa isa) {
  if (isa == Isa::kPortable) return true;
#ifdef MILLRACE_X86_SETS
  // The compiler's check covers the operating system's part (saved registers) as well.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == Isa::kAvx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512vnni") && amx_support() == AmxSupport::kUsable;
#else
  return false;
#endif
}

Isa best_isa() {
  if (isa_supported(Isa::kAvx512Amx)) return Isa::kAvx512Amx;
  if (isa_supported(Isa::kAvx512)) return Isa::kAvx512;
  return isa_supported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kPortable;
}

const KernelTable& reference_table() { return reference::table(); }

const KernelTable& cpu_table(Isa isa) {
  CHECK(isa_supported(isa), "isa={}", isa_name(isa));
#ifdef MILLRACE_X86_SETS
  if (isa == Isa::kAvx512Amx) return AmxTable::table();
  if (isa == Isa::kAvx512) return avx512::table();
  if (isa == Isa::kAvx2) return avx2::table();
#endif
  return portable::table();
}

std::string_view numeric_name(const KernelTable& table) {
  return table.name == isa_name(Isa::kAvx512Amx) ? isa_name(Isa::kAvx512) : table.name;
}

std::vector<std::string_view> missing_slots(const KernelTable& t) {
  const std::pair<std::string_view, bool> slots[] = {
      {"embedding", t.embedding != nullptr},
      {"dequantize", t.dequantize != nullptr},
      {"rms_norm", t.rms_norm != nullptr},
      {"gemm", t.gemm != nullptr},
      {"rope_angles", t.rope_angles != nullptr},
      {"qk_norm_rope", t.qk_norm_rope != nullptr},
      {"kv_write", t.kv_write != nullptr},
      {"attention", t.attention != nullptr},
      {"short_conv", t.short_conv != nullptr},
      {"router", t.router != nullptr},
      {"moe_permute", t.moe_permute != nullptr},
      {"grouped_gemm", t.grouped_gemm != nullptr},
      {"gate_up", t.gate_up != nullptr},
      {"swiglu", t.swiglu != nullptr},
      {"add", t.add != nullptr},
      {"combine", t.combine != nullptr},
  };
  static_assert(sizeof(KernelTable) == sizeof(std::string_view) + std::size(slots) * sizeof(void*),
                "list every slot");
  std::vector<std::string_view> missing;
  for (const auto& [name, filled] : slots) {
    if (!filled) missing.push_back(name);
  }
  return missing;
}

Result<const KernelTable*> select_table(std::string_view choice) {
  const KernelTable* table = nullptr;
  if (choice == "auto") table = &cpu_table(best_isa());
  if (choice == "reference") table = &reference_table();
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Amx}) {
    if (choice != isa_name(isa)) continue;
    if (!isa_supported(isa)) {
      return Error{
          ErrorCode::kUnsupported, "kernels",
          fmt::format("this CPU or build cannot run the {} kernels; use auto, which picks {}",
                      choice, isa_name(best_isa()))};
    }
    table = &cpu_table(isa);
  }
  if (table == nullptr) {
    return invalid(
        "kernels",
        fmt::format(
            "unknown kernel set '{}'; use auto, avx512_amx, avx512, avx2, portable or reference",
            choice));
  }
  if (const auto missing = missing_slots(*table); !missing.empty()) {
    return Error{ErrorCode::kUnsupported, "kernels",
                 fmt::format("the {} kernels lack {}; choose another set", table->name,
                             fmt::join(missing, ", "))};
  }
  return table;
}

}  // namespace millrace::kernels
