// From a run-time DType to a compile-time type: dispatch_*(dtype, "name", [&](auto zero) {
//   using T = decltype(zero); ... });
#pragma once

#include "core/check.h"
#include "core/types.h"

namespace fastseg {

inline const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16", "int64",
                                   "int32",   "int16",   "int8",    "uint8",    "uint16",
                                   "uint32",  "uint64",  "bool"};
  return names[static_cast<int>(dtype)];
}

inline bool is_floating(DType dtype) { return dtype <= DType::bf16; }

inline int bytes_of(DType dtype) {
  constexpr int bytes[] = {4, 8, 2, 2, 8, 4, 2, 1, 1, 2, 4, 8, 1};
  return bytes[static_cast<int>(dtype)];
}

template <class F>
void dispatch_floating(DType dtype, const char* argument, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::f16:
      return f(half_t{});
    case DType::bf16:
      return f(bfloat16_t{});
    default:
      FASTSEG_CHECK(false, argument, " must be floating point, got ", name_of(dtype));
  }
}

// Boolean and integer types by their width alone: enough to tell zero from non-zero.
template <class F>
void dispatch_width(DType dtype, const char* argument, F&& f) {
  FASTSEG_CHECK(!is_floating(dtype), argument, " must be boolean or integer, got ", name_of(dtype));
  switch (bytes_of(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

}  // namespace fastseg
