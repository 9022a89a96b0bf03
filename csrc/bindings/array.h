// Tensor arguments of the Python bindings: anything that speaks DLPack or is a NumPy array becomes
// a View, without a copy.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "core/check.h"
#include "core/device.h"
#include "core/dispatch.h"
#include "core/view.h"

namespace fastseg {

namespace py = pybind11;

// Borrows the memory of a Python tensor; valid while the Array lives. `name` is the argument's
// name in error messages.
class Array {
 public:
  Array(py::handle object, const char* name);

  const char* name() const { return name_; }
  int ndim() const { return static_cast<int>(size_.size()); }
  int64_t size(int dim) const { return size_[dim]; }
  DType dtype() const { return dtype_; }
  int device() const { return device_; }
  std::string shape() const;

  // The array as an N-dimensional View; ValueError when it has another number of dimensions.
  template <int N>
  View<N> view() const {
    FASTSEG_CHECK(ndim() == N, name_, " must have ", N, " dimensions, got shape ", shape());
    View<N> view;
    view.data = data_;
    view.dtype = dtype_;
    view.device = device_;
    for (int d = 0; d < N; ++d) {
      view.size[d] = size_[d];
      view.stride[d] = stride_[d];
    }
    return view;
  }

  // ValueError unless the sizes are these; -1 matches any size.
  const Array& expect_shape(std::initializer_list<int64_t> sizes) const;
  const Array& expect_dtype(std::initializer_list<DType> dtypes) const;
  const Array& expect_device(const Array& other) const;

 private:
  bool read_exchange_api(py::handle object);
  void read_numpy(py::handle object);
  void read_capsule(py::handle object);
  void read(const void* dlpack_tensor);

  const char* name_;
  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  int device_ = kCpuDevice;
  std::vector<int64_t> size_, stride_;
  py::object owner_;  // keeps a DLPack capsule alive
};

template <class Params>
using CpuLauncher = void (*)(const Params&);
template <class Params>
using CudaLauncher = void (*)(const Params&, cudaStream_t);

// FASTSEG_CUDA(launcher): the launcher, or null in a build without CUDA.
#if defined(FASTSEG_WITH_CUDA)
#define FASTSEG_CUDA(launcher) launcher
#else
#define FASTSEG_CUDA(launcher) nullptr
#endif

// Runs an op where its data lies, without the GIL. Under the CUDA emulator, data in host memory
// goes to the CUDA launcher.
template <class Params>
void launch_on([[maybe_unused]] int device, [[maybe_unused]] uintptr_t stream, const Params& params,
               [[maybe_unused]] CpuLauncher<Params> cpu,
               [[maybe_unused]] CudaLauncher<std::common_type_t<Params>> cuda) {
  py::gil_scoped_release release;
#if defined(FASTSEG_CUDA_EMULATOR)
  cuda(params, nullptr);
#else
  if (device == kCpuDevice) return cpu(params);
#if defined(FASTSEG_WITH_CUDA)
  DeviceGuard guard(device);
  cuda(params, reinterpret_cast<cudaStream_t>(stream));
#else
  throw std::runtime_error(
      "fastseg was built without CUDA; install nvcc and reinstall with FASTSEG_CUDA=1");
#endif
#endif
}

}  // namespace fastseg
