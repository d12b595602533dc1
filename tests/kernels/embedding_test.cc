#include "kernels/embedding.h"

#include "kernels/dtype_name.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::testing {
namespace {

class EmbeddingTest : public EachSet {};
MILLRACE_TEST_EACH_SET(EmbeddingTest);

TEST_P(EmbeddingTest, RowsOfEveryType) {
  for (const DType dtype : all_dtypes()) {
    const TestWeight table = make_weight(dtype, 9, 512, 1);
    for (const std::vector<std::int32_t>& ids :
         {std::vector<std::int32_t>{}, {8}, {0, 8, 3, 3, 7}, std::vector<std::int32_t>(70, 5)}) {
      const auto t = static_cast<std::int64_t>(ids.size());
      std::vector<float> want;
      for (const std::int32_t id : ids) {
        want.insert(want.end(), &table.values[id * 512], &table.values[id * 512] + 512);
      }
      for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        std::vector<float> out = poisoned(t * 512);
        set().embedding({&pool}, ids, table.view, matrix(out.data(), t, 512));
        expect_same_bits(out, want, std::string(dtype_name(dtype)));
      }
    }
  }
}

TEST(EmbeddingContract, AnIdOutsideTheTableIsOurBug) {
  const TestWeight table = make_weight(DType::kF32, 4, 8, 1);
  std::vector<float> out(8);
  const std::vector<std::int32_t> beyond = {4};
  const std::vector<std::int32_t> negative = {-1};
  EXPECT_DEATH(check_embedding(beyond, table.view, matrix(out.data(), 1, 8)), "V=4");
  EXPECT_DEATH(check_embedding(negative, table.view, matrix(out.data(), 1, 8)), "V=4");
}

}  // namespace
}  // namespace millrace::kernels::testing
