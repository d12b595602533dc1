// Names that only this test knows: an /etc/hosts of its own, which the C library reads anew at each
// lookup.
#pragma once

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "tests/support/temp_dir.h"

namespace millrace::test {

class PrivateHosts {
 public:
  // Runs `body` on a thread with mounts of its own, which the threads that it starts share. Skips
  // the test where that right is missing.
  static void run(const std::function<void(PrivateHosts&)>& body) {
    std::string refusal;
    std::thread([&] {
      PrivateHosts hosts;
      const bool mounted =
          unshare(CLONE_NEWNS) == 0 &&
          mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
          mount(hosts.file().c_str(), "/etc/hosts", nullptr, MS_BIND, nullptr) == 0;
      if (mounted) {
        body(hosts);
      } else {
        refusal = std::strerror(errno);
      }
    }).join();
    if (!refusal.empty()) GTEST_SKIP() << "no mounts of our own: " << refusal;
  }

  // The whole file. Written in one go, in place: it is mounted.
  void write(const std::string& text) const { folder_.write("hosts", text); }

 private:
  PrivateHosts() { write(""); }
  std::string file() const { return folder_ / "hosts"; }
  TempDir folder_;
};

}  // namespace millrace::test
