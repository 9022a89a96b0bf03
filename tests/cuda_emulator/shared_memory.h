// The shared memory of the running block. It is filled with 0xff at the block's start (NaN as
// float, -1 as integer), so that what a kernel forgot to write shows in its results.
#pragma once

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_emulator {

inline constexpr unsigned char kPoison = 0xff;

// Starts at a multiple of 16 and of no more, as little as CUDA promises, and lies between canaries.
class DynamicShared {
 public:
  void* begin() { return storage_ + kCanaryBytes; }

  void start_launch(size_t bytes) {
    bytes_ = bytes;
    open();
    std::fill(storage_, storage_ + kCanaryBytes, kCanary);
    std::fill(end(), end() + kCanaryBytes, kCanary);
    close();
  }

  void start_block() { std::fill(storage_ + kCanaryBytes, end(), kPoison); }

  // With AddressSanitizer the faulty access itself is reported; without it the canaries tell.
  bool overrun() {
    open();
    const auto touched = [](unsigned char byte) { return byte != kCanary; };
    const bool result = std::any_of(storage_, storage_ + kCanaryBytes, touched) ||
                        std::any_of(end(), end() + kCanaryBytes, touched);
    close();
    return result;
  }

 private:
  static constexpr size_t kMaxBytes = 227 * 1024;
  static constexpr size_t kCanaryBytes = 1024;
  static constexpr unsigned char kCanary = 0xa5;

  unsigned char* end() { return storage_ + kCanaryBytes + bytes_; }

  void open() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(storage_, sizeof(storage_));
#endif
  }
  void close() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(storage_, kCanaryBytes);
    __asan_poison_memory_region(end(), sizeof(storage_) - kCanaryBytes - bytes_);
#endif
  }

  alignas(1024) [[maybe_unused]] unsigned char misalignment_[16];
  unsigned char storage_[kCanaryBytes + kMaxBytes + kCanaryBytes];
  size_t bytes_ = 0;
};

}  // namespace cuda_emulator

namespace cuda_emulator {

struct MemoryRange {
  char* begin;
  char* end;
};

// The sections of this binary that hold its __shared__ variables, read from the binary's file.
inline std::vector<MemoryRange> static_shared_ranges() {
  Dl_info info{};
  dladdr(&blockIdx, &info);
  std::ifstream file(info.dli_fname, std::ios::binary);
  if (!file) file.open("/proc/self/exe", std::ios::binary);
  const std::string image{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  Elf64_Ehdr header{};
  if (image.size() < sizeof(header)) throw std::runtime_error("CUDA emulator: no binary to read");
  memcpy(&header, image.data(), sizeof(header));
  const auto section = [&](size_t index) {
    Elf64_Shdr result{};
    memcpy(&result, image.data() + header.e_shoff + index * sizeof(result), sizeof(result));
    return result;
  };
  char* base = header.e_type == ET_EXEC ? nullptr : static_cast<char*>(info.dli_fbase);
  const char* names = image.data() + section(header.e_shstrndx).sh_offset;
  std::vector<MemoryRange> ranges;
  for (size_t i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr candidate = section(i);
    if (strncmp(names + candidate.sh_name, ".noinit", 7) != 0) continue;
    char* begin = base + candidate.sh_addr;
    ranges.push_back({begin, begin + candidate.sh_size});
  }
  return ranges;
}

// Volatile, so that it stays a loop of plain stores: the C library's memset would be stopped by
// the redzones that AddressSanitizer puts between the variables.
__attribute__((no_sanitize("address"))) inline void poison_static_shared() {
  static const std::vector<MemoryRange> ranges = static_shared_ranges();
  for (const MemoryRange& range : ranges) {
    volatile char* byte = range.begin;
    for (; reinterpret_cast<uintptr_t>(byte) % 8 != 0 && byte < range.end; ++byte) *byte = -1;
    for (; range.end - byte >= 8; byte += 8) *reinterpret_cast<volatile int64_t*>(byte) = -1;
    for (; byte < range.end; ++byte) *byte = -1;
  }
}

}  // namespace cuda_emulator
