// The parts of DLPack's C ABI (version 1.x) that fastseg reads, declared from its specification.
#pragma once

#include <cstdint>

namespace fastseg {
namespace dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3, kCUDAManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  DeviceType type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null = row-major
  uint64_t byte_offset;
};

struct ManagedTensor {  // capsule "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

// Found as the capsule "dlpack_exchange_api" in a tensor type's __dlpack_c_exchange_api__.
struct ExchangeAPI {
  Version version;
  ExchangeAPI* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* borrowed);  // no ownership, no synchronisation
  int (*current_work_stream)(DeviceType type, int32_t id, void** stream);
};

}  // namespace dlpack
}  // namespace fastseg
