#include "kernels/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace millrace::kernels {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// A sanitizer watches the ends of what malloc hands out, not of maps.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMapLarge = false;
#else
constexpr bool kMapLarge = true;
#endif

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

// Pages of zeros that take no memory before they are touched. Mapped with room for the alignment;
// the rest is given back.
std::byte* map_zeros(std::size_t bytes) {
  const std::size_t room = bytes + kHugePage;
  void* map = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  const auto begin = reinterpret_cast<std::uintptr_t>(map);
  const std::uintptr_t data = round_up(begin, kHugePage);
  if (data > begin) ::munmap(map, data - begin);
  if (const std::size_t rest = begin + room - (data + bytes); rest > 0) {
    ::munmap(reinterpret_cast<void*>(data + bytes), rest);
  }
  // Only advice: without transparent huge pages the buffer is merely slower.
  ::madvise(reinterpret_cast<void*>(data), bytes, MADV_HUGEPAGE);
  return reinterpret_cast<std::byte*>(data);
}

}  // namespace

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (kMapLarge && bytes >= kHugePage) {
    const std::size_t mapped = round_up(bytes, kHugePage);
    memory_ = {map_zeros(mapped), Free{mapped}};
    return;
  }
  const std::size_t capacity = round_up(bytes, kBufferAlignment);
  memory_ = {static_cast<std::byte*>(std::aligned_alloc(kBufferAlignment, capacity)), Free{}};
  if (memory_ == nullptr) throw std::bad_alloc();
  std::memset(memory_.get(), 0, capacity);
}

void Buffer::Free::operator()(std::byte* p) const noexcept {
  if (mapped_bytes > 0) {
    ::munmap(p, mapped_bytes);
  } else {
    std::free(p);
  }
}

}  // namespace millrace::kernels
