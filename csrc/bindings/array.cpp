#include "bindings/array.h"

#include <pybind11/numpy.h>

#include "core/dlpack.h"

namespace fastseg {
namespace {

DType dtype_of(dlpack::DataType type, const char* name) {
  const int key = type.lanes == 1 ? type.code * 256 + type.bits : -1;
  switch (key) {
    case dlpack::kFloat * 256 + 32:
      return DType::f32;
    case dlpack::kFloat * 256 + 64:
      return DType::f64;
    case dlpack::kFloat * 256 + 16:
      return DType::f16;
    case dlpack::kBfloat * 256 + 16:
      return DType::bf16;
    case dlpack::kInt * 256 + 64:
      return DType::i64;
    case dlpack::kInt * 256 + 32:
      return DType::i32;
    case dlpack::kInt * 256 + 16:
      return DType::i16;
    case dlpack::kInt * 256 + 8:
      return DType::i8;
    case dlpack::kUInt * 256 + 64:
      return DType::u64;
    case dlpack::kUInt * 256 + 32:
      return DType::u32;
    case dlpack::kUInt * 256 + 16:
      return DType::u16;
    case dlpack::kUInt * 256 + 8:
      return DType::u8;
    case dlpack::kBool * 256 + 8:
      return DType::boolean;
    default:
      throw py::type_error(message(name, " has an unsupported DLPack type: code ", int(type.code),
                                   ", ", int(type.bits), " bits, ", type.lanes, " lanes"));
  }
}

// The exchange API of a tensor type, null where the type has none. Types are few and immortal in
// practice, and calls hold the GIL, so one remembered type serves nearly every call.
const dlpack::ExchangeAPI* exchange_api(py::handle object) {
  static PyTypeObject* known_type = nullptr;
  static const dlpack::ExchangeAPI* known_api = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == known_type) return known_api;
  const py::object capsule =
      py::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", py::none());
  const dlpack::ExchangeAPI* api = nullptr;
  if (PyCapsule_CheckExact(capsule.ptr())) {
    api = static_cast<const dlpack::ExchangeAPI*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) throw py::error_already_set();
    if (api->version.major != 1) api = nullptr;
  }
  Py_INCREF(type);
  Py_XDECREF(known_type);
  known_type = type;
  known_api = api;
  return api;
}

}  // namespace

Array::Array(py::handle object, const char* name) : name_(name) {
  if (read_exchange_api(object)) return;
  if (py::isinstance<py::array>(object)) {
    read_numpy(object);
  } else if (py::hasattr(object, "__dlpack__")) {
    read_capsule(object);
  } else {
    throw py::type_error(message(name, " must be a tensor (a NumPy array or anything with ",
                                 "__dlpack__), got ", Py_TYPE(object.ptr())->tp_name));
  }
}

bool Array::read_exchange_api(py::handle object) {
  const dlpack::ExchangeAPI* api = exchange_api(object);
  if (api == nullptr) return false;
  dlpack::Tensor tensor;
  if (api->tensor_from_object(object.ptr(), &tensor) != 0) throw py::error_already_set();
  read(&tensor);
  return true;
}

void Array::read_numpy(py::handle object) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype type = array.dtype();
  const char order = type.byteorder();
  const bool swapped = order == '>' || order == '!';
  constexpr const char* kinds = "fiub";
  constexpr uint8_t codes[] = {dlpack::kFloat, dlpack::kInt, dlpack::kUInt, dlpack::kBool};
  const char* kind = std::strchr(kinds, type.kind());
  if (kind == nullptr || swapped) {
    throw py::type_error(
        message(name_, " has an unsupported NumPy dtype: ", py::cast<std::string>(py::str(type))));
  }
  dtype_ = dtype_of({codes[kind - kinds], static_cast<uint8_t>(8 * type.itemsize()), 1}, name_);
  data_ = const_cast<void*>(array.data());
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    FASTSEG_CHECK(array.strides(d) % type.itemsize() == 0, name_,
                  " has a stride that is no multiple of its element's size");
    size_.push_back(array.shape(d));
    stride_.push_back(array.strides(d) / type.itemsize());
  }
}

// Frameworks without the exchange API, torch before 2.10 among them. The caller's stream is the
// one that the kernel runs on, so the producer need not synchronise (stream=-1).
void Array::read_capsule(py::handle object) {
  py::object source = py::reinterpret_borrow<py::object>(object);
  if (py::getattr(source, "requires_grad", py::bool_(false)).cast<bool>()) {
    source = source.attr("detach")();
  }
  const auto device = source.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  owner_ = device.first == dlpack::kCPU ? source.attr("__dlpack__")()
                                        : source.attr("__dlpack__")(py::arg("stream") = -1);
  void* managed = PyCapsule_GetPointer(owner_.ptr(), "dltensor");
  if (managed == nullptr) throw py::error_already_set();
  read(&static_cast<dlpack::ManagedTensor*>(managed)->tensor);
}

void Array::read(const void* dlpack_tensor) {
  const auto& tensor = *static_cast<const dlpack::Tensor*>(dlpack_tensor);
  dtype_ = dtype_of(tensor.dtype, name_);
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  switch (tensor.device.type) {
    case dlpack::kCPU:
    case dlpack::kCUDAHost:
      device_ = kCpuDevice;
      break;
    case dlpack::kCUDA:
    case dlpack::kCUDAManaged:
      device_ = tensor.device.id;
      break;
    default:
      throw py::type_error(message(name_, " lies on an unsupported device (DLPack device type ",
                                   int(tensor.device.type), "); fastseg reads CPU and CUDA"));
  }
  size_.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides != nullptr) {
    stride_.assign(tensor.strides, tensor.strides + tensor.ndim);
    return;
  }
  stride_.assign(tensor.ndim, 1);
  for (int d = tensor.ndim - 2; d >= 0; --d) stride_[d] = stride_[d + 1] * size_[d + 1];
}

std::string Array::shape() const {
  std::string text = "[";
  for (int64_t size : size_) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

const Array& Array::expect_shape(std::initializer_list<int64_t> sizes) const {
  bool matches = sizes.size() == size_.size();
  std::string expected;
  for (size_t d = 0; d < sizes.size(); ++d) {
    const int64_t wanted = sizes.begin()[d];
    if (matches && wanted >= 0 && wanted != size_[d]) matches = false;
    expected += (d > 0 ? ", " : "") + (wanted < 0 ? std::string("*") : std::to_string(wanted));
  }
  FASTSEG_CHECK(matches, name_, " must have shape [", expected, "], got ", shape());
  return *this;
}

const Array& Array::expect_dtype(std::initializer_list<DType> dtypes) const {
  std::string expected;
  for (DType dtype : dtypes) {
    if (dtype == dtype_) return *this;
    expected += (expected.empty() ? "" : " or ") + std::string(fastseg::name_of(dtype));
  }
  FASTSEG_CHECK(false, name_, " must be ", expected, ", got ", fastseg::name_of(dtype_));
  return *this;
}

const Array& Array::expect_device(const Array& other) const {
  FASTSEG_CHECK(device_ == other.device_, name_, " must lie on the same device as ", other.name_,
                " (CUDA device ", other.device_, ", -1 = CPU), got ", device_);
  return *this;
}

}  // namespace fastseg
