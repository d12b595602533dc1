// A worker driven plan by plan: every split of a prompt into chunks gives, at every position, the
// logits of Transformers, and the same bits as every other split.
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_golden.h"
#include "tests/support/sole_worker.h"

namespace millrace {
namespace {

using testing::SoleWorker;

std::vector<float> floats_of_base64(const std::string& text) {
  std::vector<unsigned char> bytes(text.size() / 4 * 3);
  const int n = EVP_DecodeBlock(bytes.data(), reinterpret_cast<const unsigned char*>(text.data()),
                                static_cast<int>(text.size()));
  EXPECT_GT(n, 0);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

class ChunkSplits : public ::testing::TestWithParam<std::string> {};

TEST_P(ChunkSplits, EveryPositionIsTransformersAndEverySplitTheSameBits) {
  const nlohmann::json data = testing::tiny_golden(GetParam());
  const Result<CellSetup> setup = make_cell_setup(testing::test_config(testing::random_checkpoint(
      GetParam(), data.at("make_random_checkpoint_arguments").get<std::vector<std::string>>())));
  ASSERT_TRUE(setup) << setup.error().to_string();
  const nlohmann::json& prompt = data.at("every_position");
  const auto ids = prompt.at("ids").get<std::vector<std::int32_t>>();
  const std::vector<float> logits =
      floats_of_base64(prompt.at("logits_f32_base64").get<std::string>());
  const auto vocab = static_cast<std::size_t>(setup->model.vocab_size);
  ASSERT_EQ(ids.size(), 40U);
  ASSERT_EQ(logits.size(), ids.size() * vocab);

  SoleWorker worker(*setup);
  const auto whole = worker.run(ids, {ids.size()});
  ASSERT_EQ(whole.size(), ids.size());
  double worst = 0;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    double sum = 0;
    for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(double{logits[t * vocab + v]});
    for (std::size_t v = 0; v < vocab; ++v) {
      const double expected = double{logits[t * vocab + v]} - std::log(sum);
      worst = std::max(worst, std::abs(double{whole[t].at(v)} - expected));
    }
  }
  EXPECT_LT(worst, 1e-4);  // absolute, of logits whose norm is above 1
  RecordProperty("worst_difference", std::to_string(worst));

  for (std::size_t cut = 1; cut < ids.size(); ++cut) {
    EXPECT_EQ(worker.run(ids, {cut, ids.size() - cut}), whole) << "cut after " << cut;
  }
  EXPECT_EQ(worker.run(ids, std::vector<std::size_t>(ids.size(), 1)), whole) << "token by token";
  EXPECT_EQ(worker.run(ids, std::vector<std::size_t>(ids.size() / 2, 2)), whole) << "by twos";
}

INSTANTIATE_TEST_SUITE_P(Models, ChunkSplits, ::testing::Values("dense", "moe", "moe-untied"));

}  // namespace
}  // namespace millrace
