#include "kernels/table.h"

#include <gtest/gtest.h>

namespace millrace::kernels {
namespace {

TEST(KernelTable, EverySetIsComplete) {
  EXPECT_TRUE(missing_slots(reference_table()).empty());
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Amx}) {
    if (!isa_supported(isa)) continue;
    EXPECT_TRUE(missing_slots(cpu_table(isa)).empty()) << isa_name(isa);
    EXPECT_EQ(cpu_table(isa).name, isa_name(isa));
    const Isa bits = isa == Isa::kAvx512Amx ? Isa::kAvx512 : isa;
    EXPECT_EQ(numeric_name(cpu_table(isa)), isa_name(bits));
  }
}

TEST(KernelTable, MissingSlotsAreNamed) {
  KernelTable table = reference_table();
  table.gemm = nullptr;
  table.combine = nullptr;
  EXPECT_EQ(missing_slots(table), (std::vector<std::string_view>{"gemm", "combine"}));
  EXPECT_EQ(missing_slots(KernelTable{}).size(), 16U);
}

TEST(KernelTable, SelectsByTheWordOfTheConfiguration) {
  EXPECT_EQ(*select_table("auto"), &cpu_table(best_isa()));
  EXPECT_EQ(*select_table("reference"), &reference_table());
  EXPECT_EQ(*select_table("portable"), &cpu_table(Isa::kPortable));
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Amx}) {
    const auto table = select_table(isa_name(isa));
    ASSERT_EQ(table.has_value(), isa_supported(isa));
    if (!table) {
      EXPECT_EQ(table.error().code, ErrorCode::kUnsupported);
    }
  }
  const auto unknown = select_table("avx1024");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().field, "kernels");
  EXPECT_NE(unknown.error().message.find("avx1024"), std::string::npos);
}

}  // namespace
}  // namespace millrace::kernels
