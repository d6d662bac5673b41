// Aligned buffers. Large ones ask for huge pages before the first touch: small pages can cost more
// to fault in than a kernel takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mrt {

constexpr size_t CACHE_LINE = 64;
constexpr size_t HUGE_PAGE = size_t{2} << 20;

// Raised instead of std::bad_alloc because the user should learn how much was asked for.
struct OutOfMemory : std::exception {
  explicit OutOfMemory(size_t bytes) : message("needs " + std::to_string(bytes) + " bytes of memory") {}
  const char* what() const noexcept override { return message.c_str(); }
  std::string message;
};

// Asks for huge pages where `bytes` at `data` hold some. Advice, before the first touch: a refusal changes nothing.
inline void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) {
    const size_t alignment = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<unsigned char*>(std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment)));
    if (!data_) throw OutOfMemory(bytes);
    if (alignment == HUGE_PAGE) advise_huge_pages(data_.get(), rounded);
    size_ = bytes;
  }
  size_t size() const { return size_; }
  unsigned char* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> data_;
  size_t size_ = 0;
};

// Carves arrays out of one buffer, each on its own cache line. Without one it only counts: the
// same code gives the size.
class Arena {
 public:
  explicit Arena(unsigned char* base = nullptr) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return array;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace mrt
