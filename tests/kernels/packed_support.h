// The packed kernels to test: all that this CPU can run, and the panels on emulated AMX tiles, with
// AVX2 and with AVX-512 around them.
#pragma once

#include "kernels/packed_amx.h"
#include "kernels/packed_gemm.h"
#include "kernels/packed_table.h"
#include "tests/kernels/amx_emulator.h"
#include "tests/kernels/support.h"

#ifdef MILLRACE_AMX_EMULATED
namespace millrace::kernels::amx_emulated_avx2 {
PackedKernels packed_kernels(const PackedKernels& rest);
}
namespace millrace::kernels::amx_emulated_avx512 {
PackedKernels packed_kernels(const PackedKernels& rest);
}
#endif

namespace millrace::kernels::testing {

struct EmulatedSet {
  const PackedKernels* packed;
  const KernelTable* table;
};

#ifdef MILLRACE_AMX_EMULATED

template <Isa isa, auto kKernels>
struct EmulatedOver {
  static const PackedKernels& packed() {
    static const PackedKernels kPacked = kKernels(packed_kernels(isa_name(isa)));
    return kPacked;
  }
  static const KernelTable& set() { return cpu_table(isa); }
  static EmulatedSet get() { return {&packed(), &PackedTable<&packed, &set>::table()}; }
};

// Those whose other instructions this CPU has. Asks the emulator for permission, as a process must.
inline std::vector<EmulatedSet> emulated_sets() {
  constexpr AmxSystem kEmulator = {[] { return true; }, &amx_emulator::request,
                                   &amx_emulator::permitted};
  std::vector<EmulatedSet> sets;
  if (ask_amx(kEmulator) != AmxSupport::kUsable) return sets;
  if (isa_supported(Isa::kAvx2)) {
    sets.push_back(EmulatedOver<Isa::kAvx2, &amx_emulated_avx2::packed_kernels>::get());
  }
  if (isa_supported(Isa::kAvx512)) {
    sets.push_back(EmulatedOver<Isa::kAvx512, &amx_emulated_avx512::packed_kernels>::get());
  }
  return sets;
}

#else

inline std::vector<EmulatedSet> emulated_sets() { return {}; }

#endif

inline std::vector<const PackedKernels*> kernels_here() {
  const auto all = all_packed_kernels();
  std::vector<const PackedKernels*> kernels(all.begin(), all.end());
  for (const EmulatedSet& set : emulated_sets()) kernels.push_back(set.packed);
  return kernels;
}

inline std::vector<const KernelTable*> packed_tables() {
  std::vector<const KernelTable*> tables = cpu_sets();
  for (const EmulatedSet& set : emulated_sets()) tables.push_back(set.table);
  return tables;
}

// A test for each of kernels_here(). Whatever it did, no tiles may be left in use.
class PackedKernelsTest : public ::testing::TestWithParam<const PackedKernels*> {
 protected:
  const PackedKernels& kernels() const { return *GetParam(); }
  // The portable set rounds products apart: its sums are its own.
  bool fused() const { return kernels().name != "portable"; }

  std::vector<float> run(const std::vector<float>& x, std::int64_t t, const WeightView& w,
                         const Context& context = {}) const {
    std::vector<float> y = poisoned(t * w.rows);
    packed_gemm(kernels(), context, matrix(x.data(), t, w.cols), w, Accumulate::kStore,
                matrix(y.data(), t, w.rows));
    return y;
  }

  void TearDown() override { EXPECT_FALSE(amx_emulator::in_use()); }
};

inline std::string kernels_name(const ::testing::TestParamInfo<const PackedKernels*>& info) {
  return std::string(info.param->name);
}

inline std::vector<float> reference(const std::vector<float>& x, std::int64_t t,
                                    const WeightView& w) {
  std::vector<float> y = poisoned(t * w.rows);
  reference_table().gemm({}, matrix(x.data(), t, w.cols), w, Accumulate::kStore,
                         matrix(y.data(), t, w.rows));
  return y;
}

}  // namespace millrace::kernels::testing
