// What the rest of fastseg needs to know of CUDA's devices without including CUDA's headers.
#pragma once

typedef struct CUstream_st* cudaStream_t;

namespace fastseg {

// Makes `device` current for its scope, so that launches reach the GPU that holds the data.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

}  // namespace fastseg
