// SHA-256 against the values of FIPS 180-4's examples, and lists that are not as they should be.
#include "cli/checksums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr const char* kNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr const char* kMillionA =
    "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

class Checksums : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) {
    return folder_.write(name, content);
  }
  Result<SumCheck> check(const std::string& sums, int threads = 3) {
    return check_sums(folder_.string(), write(kSumsName, sums), threads,
                      [this](std::uint64_t done, std::uint64_t total) {
                        EXPECT_GE(done, done_);
                        EXPECT_LE(done, total);
                        done_ = done;
                      });
  }
  static std::string line(const std::string& sum, const std::string& name) {
    return sum + "  " + name + "\n";
  }

  test::TempDir folder_;
  std::uint64_t done_ = 0;
};

TEST_F(Checksums, KnownValues) {
  const auto sum = [this](const std::string& content) {
    return sha256_of_file(write("file", content), [](std::uint64_t) {}).value();
  };
  EXPECT_EQ(sum("abc"), kAbc);
  EXPECT_EQ(sum(""), kNothing);
  EXPECT_EQ(sum(std::string(1'000'000, 'a')), kMillionA);
  EXPECT_EQ(sha256_of_file(folder_ / "none", [](std::uint64_t) {}).error().code,
            ErrorCode::kNotFound);
}

TEST_F(Checksums, AllIsWell) {
  write("a.json", "abc");
  write("model.safetensors", std::string(1'000'000, 'a'));
  write("README.md", "not read by models, so it need not be listed");
  for (const int threads : {1, 2, 9}) {
    done_ = 0;
    const auto found = check(line(kAbc, "a.json") + kMillionA + " *./model.safetensors\n", threads);
    ASSERT_TRUE(found);
    EXPECT_THAT(found->problems, ElementsAre());
    EXPECT_EQ(found->files, 2U);
    EXPECT_EQ(found->bytes, 1'000'003U);
    EXPECT_EQ(done_, 1'000'003U);
  }
}

TEST_F(Checksums, EachFileThatIsNotWholeIsNamed) {
  write("a.json", "abd");
  write("b.gguf", "not listed");
  const auto found = check(line(kAbc, "a.json") + line(kNothing, "gone.bin"));
  ASSERT_TRUE(found);
  EXPECT_THAT(found->problems,
              ElementsAre(HasSubstr(std::string("listed ") + kAbc), HasSubstr("b.gguf: is not in "),
                          HasSubstr("gone.bin: No such file")));
}

TEST_F(Checksums, OfOneFileOnlyItself) {
  const std::string one = write("one.gguf", "abc");
  write("other.gguf", "x");
  const std::string sums = write(kSumsName, line(kAbc, "one.gguf") + line(kNothing, "gone.gguf"));
  const auto nothing = [](std::uint64_t, std::uint64_t) {};
  EXPECT_THAT(check_sums(one, sums, 2, nothing).value().problems, ElementsAre());
  EXPECT_THAT(check_sums(folder_ / "other.gguf", sums, 2, nothing).value().problems,
              ElementsAre(HasSubstr("other.gguf: is not in ")));
}

TEST_F(Checksums, BadListsAreRefusedWithTheirLine) {
  const auto refusal = [this](const std::string& sums) {
    const auto found = check(sums);
    return found ? std::string("accepted") : found.error().to_string();
  };
  const std::string good = line(kAbc, "a");
  EXPECT_THAT(refusal(""), HasSubstr("names no file"));
  EXPECT_THAT(refusal(good + "\n"), HasSubstr("SHA256SUMS:2: must be 64"));
  EXPECT_THAT(refusal(good + good), HasSubstr(":2: a is here twice"));
  EXPECT_THAT(refusal(good + line(kNothing, "./a")), HasSubstr(":2: a is here twice"));
  EXPECT_THAT(refusal(std::string(kAbc) + "  "), HasSubstr(":1: must be 64"));
  EXPECT_THAT(refusal(std::string(kAbc) + " -a\n"), HasSubstr(":1: must be 64"));
  EXPECT_THAT(refusal("X" + good.substr(1)), HasSubstr(":1: must be 64"));
  EXPECT_THAT(refusal(line(kAbc, "/etc/passwd")), HasSubstr(":1: the name leads out"));
  EXPECT_THAT(refusal(line(kAbc, "x/../../y")), HasSubstr(":1: the name leads out"));
}

}  // namespace
}  // namespace millrace
