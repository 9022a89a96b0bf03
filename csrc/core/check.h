// FASTSEG_CHECK: bad input raises std::invalid_argument (Python's ValueError) with its values.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastseg {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

}  // namespace fastseg

#define FASTSEG_CHECK(condition, ...) \
  do { \
    if (!(condition)) throw std::invalid_argument(::fastseg::message(__VA_ARGS__)); \
  } while (false)
