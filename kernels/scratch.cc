#include "kernels/scratch.h"

#include "kernels/buffer.h"

namespace millrace::kernels {

std::byte* thread_scratch() {
  thread_local Buffer scratch(kScratchBytes);
  return scratch.data();
}

}  // namespace millrace::kernels
