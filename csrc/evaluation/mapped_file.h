// A file's bytes as memory, which the system reads when they are touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace fastseg {

class MappedFile {
 public:
  // Borrows an open file of `size` bytes.
  MappedFile(int descriptor, int64_t size) : size_(size) {
    if (size == 0) return;
    data_ = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  }
  ~MappedFile() {
    if (size_ > 0) munmap(data_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return static_cast<const char*>(data_); }

  // Gives back the memory of the whole pages in [begin, end), which must not be needed any more:
  // touching them would read them from the file again.
  void give_back(const char* begin, const char* end) const {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t first = (begin - data() + page - 1) / page * page;
    const int64_t last = (end - data()) / page * page;
    if (first < last) madvise(static_cast<char*>(data_) + first, last - first, MADV_DONTNEED);
  }

 private:
  void* data_ = nullptr;
  int64_t size_;
};

}  // namespace fastseg
