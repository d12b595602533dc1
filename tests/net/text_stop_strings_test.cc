#include "net/text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

#include "net/text/utf8.h"

namespace millrace::text {
namespace {

StopStrings stops(std::vector<std::string> strings) {
  return StopStrings::create(std::move(strings)).value();
}

struct Outcome {
  std::string text;
  bool stopped = false;
  std::size_t index = 0;
};

// The definition, without any streaming: the first position at which some stop string ends; among
// those that end there, the longest.
Outcome by_definition(const std::vector<std::string>& strings, const std::string& text,
                      bool include) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t best = 0, index = 0;
    for (std::size_t i = 0; i < strings.size(); ++i) {
      const std::string& s = strings[i];
      if (s.size() > best && s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0) {
        best = s.size();
        index = i;
      }
    }
    if (best > 0) return {text.substr(0, include ? end : end - best), true, index};
  }
  return {text, false, 0};
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  const StopStrings s = stops({"END", "\n\nUser:"});
  StopMatcher m(s, false);
  EXPECT_EQ(m.push("hello E").text, "hello ");
  EXPECT_EQ(m.push("N").text, "");
  EXPECT_EQ(m.push("emy").text, "ENemy");
  EXPECT_EQ(m.push("\n\nUse").text, "");
  EXPECT_EQ(m.push("less\n").text, "\n\nUseless");
  EXPECT_EQ(m.flush(), "\n");
}

TEST(StopStrings, CutsBeforeTheStopOrBehindIt) {
  const StopStrings s = stops({"</s>"});
  for (const bool include : {false, true}) {
    StopMatcher m(s, include);
    EXPECT_EQ(m.push("abc<").text, "abc");
    const StopResult r = m.push("/s>tail");
    EXPECT_TRUE(r.stopped);
    EXPECT_EQ(r.text, include ? "</s>" : "");
    EXPECT_EQ(m.released(), include ? 7u : 3u);
    EXPECT_EQ(m.push("more").text, "");
    EXPECT_TRUE(m.push("more").stopped);
    EXPECT_EQ(m.flush(), "");
  }
}

TEST(StopStrings, NoStopsPassEverything) {
  const StopStrings s = stops({});
  StopMatcher m(s, false);
  EXPECT_EQ(m.push("anything").text, "anything");
  EXPECT_EQ(m.flush(), "");
}

TEST(StopStrings, AgreesWithTheDefinitionForEveryCut) {
  std::mt19937 rng(11);
  const auto word = [&](int max) {
    std::string out;
    const int n = 1 + static_cast<int>(rng() % max);
    for (int i = 0; i < n; ++i)
      out += std::array<const char*, 4>{"a", "b", "\xC3\xA4", "\xC3\xA5"}[rng() % 4];
    return out;
  };
  int matched = 0;
  for (int round = 0; round < 4000; ++round) {
    std::vector<std::string> strings;
    for (unsigned i = 0; i <= rng() % 4; ++i) strings.push_back(word(5));
    const std::string text = word(20);
    const bool include = rng() % 2;
    const Outcome want = by_definition(strings, text, include);
    const StopStrings s = stops(strings);
    StopMatcher m(s, include);
    std::string got;
    for (std::size_t at = 0; at < text.size() && !m.stopped();) {
      const std::size_t end =
          at + code_point_offset(std::string_view(text).substr(at), 1 + rng() % 4);
      const StopResult r = m.push(std::string_view(text).substr(at, end - at));
      EXPECT_FALSE(find_invalid_utf8(r.text));
      got += r.text;
      if (r.stopped) {
        EXPECT_EQ(strings[r.stop_index], strings[want.index]);
      }
      at = end;
    }
    EXPECT_EQ(m.stopped(), want.stopped);
    got += m.flush();
    ASSERT_EQ(got, want.text);
    ASSERT_EQ(m.released(), want.text.size());
    matched += want.stopped;
  }
  EXPECT_GT(matched, 1000);
}

TEST(StopStrings, RefusesBadStrings) {
  EXPECT_FALSE(StopStrings::create({""}));
  EXPECT_EQ(StopStrings::create({"ok", "\xFF"}).error().field, "stop[1]");
  EXPECT_FALSE(StopStrings::create({std::string(257, 'x')}));
  EXPECT_FALSE(StopStrings::create(std::vector<std::string>(17, "x")));
}

}  // namespace
}  // namespace millrace::text
