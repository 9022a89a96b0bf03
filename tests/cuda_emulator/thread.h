// An emulated CUDA thread, what it waits for, and the arithmetic of the warp collectives.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cuda_runtime.h"

namespace cuda_emulator {

inline constexpr unsigned kWarp = 32;

enum class State : unsigned char { kNew, kReady, kAtBarrier, kAtCollective, kExited };

class Fiber;

struct Thread {
  State state = State::kNew;
  uint3 index{};
  unsigned rank = 0;
  Fiber* fiber = nullptr;  // holds the stack of a thread that waits

  // What the thread waits for, and the answer.
  Barrier barrier{};
  Collective collective{};
  Site site{};
  unsigned mask = 0;
  uint64_t value = 0;
  int argument = 0, width = 0;
  uint64_t result = 0;
};

inline std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

inline std::string hex(unsigned mask) {
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), "0x%08x", mask);
  return buffer;
}

inline std::string text(Site site) {
  const std::string path = site.file;
  return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(site.line);
}

inline const char* name_of(Barrier barrier) {
  static const char* const names[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and",
                                      "__syncthreads_count"};
  return names[static_cast<int>(barrier)];
}

inline const char* name_of(Collective collective) {
  static const char* const names[] = {"__syncwarp",       "__shfl_sync",     "__shfl_up_sync",
                                      "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync",
                                      "__any_sync",       "__all_sync",      "__match_any_sync"};
  return names[static_cast<int>(collective)];
}

// Whether all lanes of the thread's mask wait in the same collective as it does.
inline bool collective_is_complete(const Thread& thread, const Thread* warp) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((thread.mask >> lane & 1) == 0) continue;
    const Thread& other = warp[lane];
    if (other.state != State::kAtCollective || other.collective != thread.collective ||
        other.mask != thread.mask || other.site.line != thread.site.line ||
        other.width != thread.width) {
      return false;
    }
  }
  return true;
}

// The value of the lane that the thread's shuffle reads.
inline uint64_t shuffled(const Thread& thread, const Thread* warp) {
  const int lane = static_cast<int>(thread.rank % kWarp);
  const int segment = lane & ~(thread.width - 1);
  const int distance = thread.argument & 31;  // the hardware looks at five bits
  int source = lane;
  switch (thread.collective) {
    case Collective::kShuffle:
      source = segment | (thread.argument & (thread.width - 1));
      break;
    case Collective::kShuffleUp:
      if (lane - distance >= segment) source = lane - distance;
      break;
    case Collective::kShuffleDown:
      if (lane + distance < segment + thread.width) source = lane + distance;
      break;
    default:  // an exchange may reach into earlier segments, never into later ones
      if ((lane ^ distance) < segment + thread.width) source = lane ^ distance;
  }
  if ((thread.mask >> source & 1) == 0) {
    throw std::runtime_error(std::string(name_of(thread.collective)) + " (" + text(thread.site) +
                             "): lane " + std::to_string(lane) + " reads lane " +
                             std::to_string(source) + ", which the mask " + hex(thread.mask) +
                             " lacks");
  }
  return warp[source].value;
}

// What a complete collective returns to one of its lanes.
inline uint64_t collective_result(const Thread& thread, const Thread* warp) {
  uint64_t votes = 0, equal = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((thread.mask >> lane & 1) == 0) continue;
    if (warp[lane].value != 0) votes |= uint64_t{1} << lane;
    if (warp[lane].value == thread.value) equal |= uint64_t{1} << lane;
  }
  switch (thread.collective) {
    case Collective::kSync:
      return 0;
    case Collective::kBallot:
      return votes;
    case Collective::kAny:
      return votes != 0;
    case Collective::kAll:
      return votes == thread.mask;
    case Collective::kMatchAny:
      return equal;
    default:
      return shuffled(thread, warp);
  }
}

}  // namespace cuda_emulator
