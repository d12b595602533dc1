#include "kernels/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace millrace::kernels {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kBufferAlignment;
  const std::size_t capacity = round_up(bytes, kBufferAlignment);
  memory_.reset(
      static_cast<std::byte*>(std::aligned_alloc(alignment, round_up(capacity, alignment))));
  if (memory_ == nullptr) throw std::bad_alloc();
  // Only advice: without transparent huge pages the buffer is merely slower.
  if (alignment == kHugePage) madvise(memory_.get(), capacity, MADV_HUGEPAGE);
  std::memset(memory_.get(), 0, capacity);
}

void Buffer::Free::operator()(std::byte* p) const noexcept { std::free(p); }

}  // namespace millrace::kernels
