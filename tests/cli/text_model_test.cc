#include "cli/text_model.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/temp_dir.h"

namespace millrace {
namespace {

Result<net::SamplingDefaults> defaults_of(const std::string& generation_config) {
  test::TempDir folder;
  std::ofstream(folder / "generation_config.json") << generation_config;
  return load_sampling_defaults(folder.string());
}

TEST(SamplingDefaults, ComeFromGenerationConfig) {
  const auto d = defaults_of(R"({"temperature": 0.1, "top_k": 50, "top_p": 0.9, "min_p": 0.15,
                                 "repetition_penalty": 1.05, "eos_token_id": 7, "do_sample": true})");
  ASSERT_TRUE(d) << d.error().to_string();
  EXPECT_FLOAT_EQ(d->temperature, 0.1F);
  EXPECT_EQ(d->top_k, 50);
  EXPECT_FLOAT_EQ(d->top_p, 0.9F);
  EXPECT_FLOAT_EQ(d->min_p, 0.15F);
  EXPECT_FLOAT_EQ(d->repetition_penalty, 1.05F);
}

TEST(SamplingDefaults, AreTheApisWhenNothingIsSaid) {
  for (const auto& d :
       {defaults_of(R"({"eos_token_id": 7})"), load_sampling_defaults("/no/such/folder"),
        load_sampling_defaults("model.gguf")}) {
    ASSERT_TRUE(d);
    EXPECT_EQ(d->temperature, 1.0F);
    EXPECT_EQ(d->top_k, 0);
  }
  EXPECT_EQ(defaults_of(R"({"do_sample": false})")->temperature, 0.0F);
}

TEST(SamplingDefaults, OutOfRangeIsRefusedByName) {
  const auto d = defaults_of(R"({"top_p": 3})");
  ASSERT_FALSE(d);
  EXPECT_NE(d.error().field.find("sampling.top_p"), std::string::npos) << d.error().field;
  EXPECT_FALSE(defaults_of("[1"));
}

TEST(TextModel, SampleHasTokenizerAndTemplate) {
  const auto text = load_text_model(std::string(MILLRACE_SOURCE_DIR) + "/models/sample");
  ASSERT_TRUE(text) << text.error().to_string();
  EXPECT_TRUE(text->chat_template.has_value());
  EXPECT_EQ(text->tokenizer.bos(), 1);
  EXPECT_FALSE(load_text_model("/no/such/folder"));
}

}  // namespace
}  // namespace millrace
