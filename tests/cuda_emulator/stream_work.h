// What is given to an emulated stream and not done yet. At first work is done at once; with
// set_lazy() as late as it may: when somebody waits for it, or has asked for it often enough.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

namespace millrace::cuda_emulator {

class StreamWork {
 public:
  using Work = std::function<void()>;

  // Belongs to the calling thread: finish_all() of that thread reaches it.
  static std::shared_ptr<StreamWork> make();

  void add(Work work);
  // How much has been added: what a moment of the stream is known by.
  std::uint64_t added() const { return added_; }
  bool done(std::uint64_t moment) const { return done_ >= moment; }
  // Does the work added before `moment`, in order. Nothing while the device is stalled.
  void run_until(std::uint64_t moment);
  void finish() { run_until(added_); }

  // Everything that the calling thread's streams still have to do, as freeing memory waits for.
  static void finish_all() noexcept;

 private:
  std::deque<Work> work_;
  std::uint64_t added_ = 0;
  std::uint64_t done_ = 0;
};

}  // namespace millrace::cuda_emulator
