// Who may have rights on a secret's file. The groups of a process are tried in children of root.
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "net/psk_tls.h"
#include "tests/support/temp_dir.h"

namespace millrace::net {
namespace {

constexpr uid_t kUser = 65532;
constexpr gid_t kGroup = 65533;

class SecretRights : public testing::Test {
 protected:
  void make(uid_t owner, gid_t group, mode_t mode) {
    std::ofstream(path_) << std::string(40, 's') << "\n";
    ASSERT_EQ(chown(path_.c_str(), owner, group), 0);
    ASSERT_EQ(chmod(path_.c_str(), mode), 0);
    ASSERT_EQ(chmod(dir_.string().c_str(), 0755), 0);
  }

  // Whether a process of this user and these groups takes the file.
  bool taken_by(uid_t user, gid_t main_group, std::vector<gid_t> groups) {
    const pid_t child = fork();
    if (child == 0) {
      if (setgroups(groups.size(), groups.data()) != 0 || setgid(main_group) != 0 ||
          setuid(user) != 0) {
        _exit(2);
      }
      _exit(read_secret_file(path_, "cell.secret_file") ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 2);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  }

  test::TempDir dir_;
  std::string path_ = dir_ / "secret";
};

TEST_F(SecretRights, OwnerAlone) {
  make(kUser, kUser, 0400);
  EXPECT_TRUE(taken_by(kUser, kUser, {}));
  make(kUser, kUser, 0440);
  EXPECT_FALSE(taken_by(kUser, kUser, {}));
  make(kUser + 1, kGroup, 0440);
  EXPECT_FALSE(taken_by(kUser, kGroup, {}));
}

TEST_F(SecretRights, RootsFileForAGroupOfThisProcess) {
  make(0, kGroup, 0440);
  EXPECT_TRUE(taken_by(kUser, kUser, {kGroup}));
  EXPECT_TRUE(taken_by(kUser, kGroup, {}));
  EXPECT_FALSE(taken_by(kUser, kUser, {kGroup + 1}));
  EXPECT_FALSE(taken_by(0, 0, {0}));  // root can read it, but has no part in the group
}

TEST_F(SecretRights, NoOtherRights) {
  for (const mode_t mode : {0444, 0460, 0450, 0441, 0442}) {
    make(0, kGroup, mode);
    EXPECT_FALSE(taken_by(kUser, kGroup, {})) << std::oct << mode;
  }
  make(0, 0, 0440);  // root's group is no group of this pod's
  EXPECT_FALSE(taken_by(kUser, 0, {}));
}

}  // namespace
}  // namespace millrace::net
