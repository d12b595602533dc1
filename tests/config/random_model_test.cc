#include "config/random_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/model_config_internal.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

TEST(RandomModel, HasTheSizesOfTheReleasedModels) {
  // Parameters as their publishers count them.
  const ParameterCounts large = count_parameters(load_model_config("random:24b-a2b").value());
  EXPECT_EQ(large.total, 23'843'661'440);
  EXPECT_EQ(large.active, 2'326'881'920);
  const ParameterCounts small = count_parameters(load_model_config("random:8b-a1b:5").value());
  EXPECT_NEAR(static_cast<double>(small.total), 8.34e9, 0.005e9);
}

TEST(RandomModel, ShapesAreConsistent) {
  for (const char* path : {"random:24b-a2b", "random:8b-a1b", "random:tiny"}) {
    const ModelConfig c = load_model_config(path).value();
    EXPECT_FALSE(model_config_detail::check_consistency(c, path)) << path;
    EXPECT_EQ(c.q_width(), c.hidden_size) << path;
  }
}

TEST(RandomModel, SeedsAreRead) {
  EXPECT_EQ(parse_random_model("random:tiny")->seed, 0U);
  EXPECT_EQ(parse_random_model("random:tiny:18446744073709551615")->seed, ~std::uint64_t{0});
}

TEST(RandomModel, OthersAreRefusedWithTheShapesThereAre) {
  for (const char* path :
       {"random:", "random:huge", "random:tiny:", "random:tiny:x", "random:tiny:-1",
        "random:tiny:1:2", "random:tiny:18446744073709551616"}) {
    EXPECT_TRUE(is_random_model(path));
    const auto got = load_model_config(path);
    ASSERT_FALSE(got) << path;
    EXPECT_EQ(got.error().field, "model.path");
    EXPECT_THAT(got.error().message, HasSubstr("24b-a2b 8b-a1b tiny"));
  }
  EXPECT_FALSE(is_random_model("models/random:tiny"));
}

}  // namespace
}  // namespace millrace
