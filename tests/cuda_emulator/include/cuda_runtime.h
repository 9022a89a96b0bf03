// Stands in for the CUDA toolkit's header of the same name when g++ compiles a .cu file for the
// emulator: put this folder first on the include path and define FASTSEG_CUDA_EMULATOR.
#pragma once

#ifndef FASTSEG_CUDA_EMULATOR
#error "the emulator's cuda_runtime.h needs -DFASTSEG_CUDA_EMULATOR; a real build must not find it"
#endif

#include "cuda_emulator/device_functions.h"
#include "cuda_emulator/device_math.h"
#include "cuda_emulator/runtime_api.h"
#include "cuda_emulator/scheduler.h"
#include "cuda_emulator/types.h"
