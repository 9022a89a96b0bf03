// The execution model: what a launch, a barrier and a warp collective do. See emulator.cpp.
#pragma once

#include <tuple>

#include "types.h"

namespace cuda_emulator {

// The source line of a barrier or collective, for error messages and to tell barriers apart.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Barrier { kSync, kOr, kAnd, kCount };
enum class Collective {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny
};

// Blocks the calling thread until the whole block is there; returns the predicates' reduction.
int block_barrier(Barrier kind, int predicate, Site site);

// Blocks the calling thread until all lanes of the mask are there; `value` holds the bits of the
// lane's value (or predicate), `argument` the source lane, distance or lane mask of a shuffle.
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, int width,
                         Site site);

// The block's dynamic shared memory.
void* dynamic_shared();

// Ends the launch with a std::runtime_error that names the kernel, the block and the thread.
[[noreturn]] void fail(const char* reason);

struct LaunchConfig {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  size_t dynamic_shared_bytes;
};

// Calls body(context) once for each thread of each block.
void run(const LaunchConfig& config, void (*body)(void*), void* context);

template <class... P>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
            size_t dynamic_shared_bytes, const std::tuple<P...>& parameters) {
  auto one_thread = [&] { std::apply(kernel, parameters); };
  run(
      {name, reinterpret_cast<const void*>(kernel), grid, block, dynamic_shared_bytes},
      [](void* context) { (*static_cast<decltype(one_thread)*>(context))(); }, &one_thread);
}

}  // namespace cuda_emulator
