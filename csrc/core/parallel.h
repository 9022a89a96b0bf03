// parallel_for: the only place where CPU kernels meet threads.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastseg {

// True in a child made by fork(): OpenMP's pool did not survive, so loops run serially there.
bool in_forked_child();

inline int max_threads() {
#if defined(_OPENMP)
  return in_forked_child() || omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls f(begin, end) over [0, n) in chunks of `grain`, handed out dynamically. f must not throw.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks == 1 || max_threads() == 1) return f(int64_t{0}, n);
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    f(chunk * grain, std::min(n, (chunk + 1) * grain));
  }
#endif
}

}  // namespace fastseg
