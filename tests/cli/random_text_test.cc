#include "cli/random_text.h"

#include <gtest/gtest.h>

#include "cli/text_model.h"

namespace millrace {
namespace {

TEST(RandomText, EveryIdOfTheVocabularyHasText) {
  const auto text = load_text_model("random:24b-a2b");
  ASSERT_TRUE(text) << text.error().to_string();
  EXPECT_EQ(text->tokenizer.vocab_size(), 65'536);
  EXPECT_FALSE(text->chat_template.has_value());
  for (std::int32_t id = 0; id < 65'536; ++id) {
    ASSERT_FALSE(text->tokenizer.id_to_piece(id).empty()) << id;
  }
  EXPECT_EQ(text->tokenizer.id_to_piece(300), " 300");
}

TEST(RandomText, TextGoesThereAndBackAsBytes) {
  const auto tokenizer = random_tokenizer("random:tiny");
  ASSERT_TRUE(tokenizer) << tokenizer.error().to_string();
  const std::string text = "In the beginning 1:1 \xc3\xa9\n";
  const auto ids = tokenizer->encode(text, {.add_special = true});
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->size(), text.size() + 1);
  EXPECT_EQ(ids->front(), 1);
  EXPECT_EQ(tokenizer->decode(*ids, true), text);
}

}  // namespace
}  // namespace millrace
