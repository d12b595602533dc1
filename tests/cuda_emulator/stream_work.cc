#include "tests/cuda_emulator/stream_work.h"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/settings.h"

namespace millrace::cuda_emulator {

namespace {

std::vector<std::weak_ptr<StreamWork>>& of_this_thread() {
  thread_local std::vector<std::weak_ptr<StreamWork>> all;
  return all;
}

}  // namespace

std::shared_ptr<StreamWork> StreamWork::make() {
  auto work = std::make_shared<StreamWork>();
  std::erase_if(of_this_thread(), [](const auto& other) { return other.expired(); });
  of_this_thread().push_back(work);
  return work;
}

void StreamWork::add(Work work) {
  work_.push_back(std::move(work));
  ++added_;
  if (!settings().lazy) finish();
}

void StreamWork::run_until(std::uint64_t moment) {
  if (settings().lazy && settings().stalled) return;
  while (done_ < moment) {
    const Work next = std::move(work_.front());
    work_.pop_front();
    ++done_;
    next();
  }
}

void StreamWork::finish_all() noexcept {
  for (const auto& entry : of_this_thread()) {
    try {
      if (const auto work = entry.lock()) work->finish();
    } catch (const std::exception& e) {
      fmt::print(stderr, "emulated stream: {}\n", e.what());
    }
  }
}

}  // namespace millrace::cuda_emulator
