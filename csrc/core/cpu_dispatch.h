// Run-time choice of the instruction set. CMake compiles every *_cpu.cpp once per variant with
// FASTSEG_ISA = baseline | avx2 | avx512 (x86-64) or baseline alone (elsewhere). Kernels live in
// namespace fastseg::FASTSEG_ISA; FASTSEG_CPU_LAUNCHER(name, Params) at the end of the file
// makes fastseg::name(const Params&) call the best variant that this processor has.
//
// Baseline objects come first in link order, so that an inline function of the standard library
// that the linker merges is the one every processor can run.
#pragma once

namespace fastseg {

enum class CpuVariant { baseline, avx2, avx512 };

// The variant in use: the best one, or the one that the environment's FASTSEG_CPU names.
CpuVariant active_cpu_variant();
const char* name_of(CpuVariant variant);

}  // namespace fastseg

#if !defined(FASTSEG_ISA_BASELINE)
#define FASTSEG_CPU_LAUNCHER(launcher, Params)
#elif defined(FASTSEG_X86_VARIANTS)
#define FASTSEG_CPU_LAUNCHER(launcher, Params) \
  namespace fastseg { \
  namespace avx2 { \
  void launcher(const Params&); \
  } \
  namespace avx512 { \
  void launcher(const Params&); \
  } \
  void launcher(const Params& params) { \
    switch (active_cpu_variant()) { \
      case CpuVariant::avx512: \
        return avx512::launcher(params); \
      case CpuVariant::avx2: \
        return avx2::launcher(params); \
      case CpuVariant::baseline: \
        return baseline::launcher(params); \
    } \
  } \
  }
#else
#define FASTSEG_CPU_LAUNCHER(launcher, Params) \
  namespace fastseg { \
  void launcher(const Params& params) { baseline::launcher(params); } \
  }
#endif
