# Adds the CUDA kernels to the target _C: compiled by nvcc, or for the CPU by the emulator.
if(FASTSEG_CUDA_EMULATOR)
  # nvcc allows vector loads through cast pointers; `#pragma unroll` is nvcc's; the assembler
  # warns of the section that the emulator's __shared__ puts a kernel template's variables in.
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-x;c++;-fno-strict-aliasing;-Wno-unknown-pragmas;-Wa,--no-warn")
  file(GLOB emulator_sources tests/cuda_emulator/*.cpp)
  target_sources(_C PRIVATE ${cuda_sources} ${emulator_sources})
  target_include_directories(_C BEFORE PRIVATE tests/cuda_emulator/include)
  target_compile_definitions(_C PRIVATE FASTSEG_CUDA_EMULATOR FASTSEG_WITH_CUDA
    FASTSEG_CUDA_VERSION="emulator" FASTSEG_CUDA_ARCHS="emulator")
  return()
endif()

if(FASTSEG_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  set(use_cuda ${CMAKE_CUDA_COMPILER})
else()
  set(use_cuda ${FASTSEG_CUDA})
endif()
if(NOT use_cuda)
  message(STATUS "fastseg: building for the CPU alone (nvcc not found or FASTSEG_CUDA=0)")
  return()
endif()

if(NOT FASTSEG_CUDA_ARCHS)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities RESULT_VARIABLE no_gpu ERROR_QUIET
    OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(no_gpu)
    set(FASTSEG_CUDA_ARCHS 75 80 86 89 90)
  else()
    string(REPLACE "." "" capabilities "${capabilities}")
    string(REPLACE "\n" ";" FASTSEG_CUDA_ARCHS "${capabilities}")
  endif()
endif()
list(REMOVE_DUPLICATES FASTSEG_CUDA_ARCHS)
list(SORT FASTSEG_CUDA_ARCHS COMPARE NATURAL)

# Machine code for each architecture, and PTX of the newest for GPUs to come.
list(TRANSFORM FASTSEG_CUDA_ARCHS APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET FASTSEG_CUDA_ARCHS -1 newest)
list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 17)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

list(JOIN FASTSEG_CUDA_ARCHS " " arch_text)
message(STATUS "fastseg: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${arch_text} and PTX ${newest}")
add_library(cuda_kernels OBJECT ${cuda_sources})
target_link_libraries(cuda_kernels PRIVATE fastseg_flags)
target_compile_options(cuda_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
  --fmad=false --extended-lambda --expt-relaxed-constexpr -lineinfo -Xfatbin=-compress-all>)
target_compile_definitions(cuda_kernels PRIVATE FASTSEG_CUDA_ARCHS="${arch_text}")
target_sources(_C PRIVATE $<TARGET_OBJECTS:cuda_kernels>)
set_target_properties(_C PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_link_libraries(_C PRIVATE CUDA::cudart_static)
target_compile_definitions(_C PRIVATE FASTSEG_WITH_CUDA
  FASTSEG_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}" FASTSEG_CUDA_ARCHS="${arch_text}")
