#include "core/cpu_dispatch.h"

#include <cstdlib>
#include <string>

#include "core/check.h"

namespace fastseg {
namespace {

CpuVariant best_variant() {
#if defined(FASTSEG_X86_VARIANTS)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return CpuVariant::avx512;
  if (has_avx2) return CpuVariant::avx2;
#endif
  return CpuVariant::baseline;
}

CpuVariant chosen_variant() {
  const CpuVariant best = best_variant();
  const char* requested = std::getenv("FASTSEG_CPU");
  if (requested == nullptr || *requested == '\0') return best;
  for (CpuVariant variant : {CpuVariant::baseline, CpuVariant::avx2, CpuVariant::avx512}) {
    if (std::string(requested) == name_of(variant) && variant <= best) return variant;
  }
  FASTSEG_CHECK(false, "FASTSEG_CPU=", requested, " is not available; this processor runs up to ",
                name_of(best));
  return best;
}

}  // namespace

CpuVariant active_cpu_variant() {
  static const CpuVariant variant = chosen_variant();
  return variant;
}

const char* name_of(CpuVariant variant) {
  constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(variant)];
}

}  // namespace fastseg
