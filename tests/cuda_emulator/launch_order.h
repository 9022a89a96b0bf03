// The order in which threads and blocks run, from FASTSEG_EMULATOR_ORDER.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>

namespace cuda_emulator {

class LaunchOrder {
 public:
  static LaunchOrder from_environment() {
    const char* variable = std::getenv("FASTSEG_EMULATOR_ORDER");
    const std::string value = variable == nullptr ? "forward" : variable;
    const std::string seed = value.rfind("shuffle:", 0) == 0 ? value.substr(8) : "1";
    const bool seed_is_number = seed.find_first_not_of("0123456789") == std::string::npos &&
                                !seed.empty() && seed.size() <= 9;
    LaunchOrder order;
    order.reverse_ = value == "reverse";
    order.shuffle_ = value.rfind("shuffle", 0) == 0;
    const bool known = value == "forward" || value == "reverse" || value == "shuffle" ||
                       value.rfind("shuffle:", 0) == 0;
    if (!known || !seed_is_number) {
      throw std::runtime_error("FASTSEG_EMULATOR_ORDER is '" + value +
                               "', must be forward, reverse, shuffle or shuffle:SEED");
    }
    if (order.shuffle_) order.random_.seed(static_cast<unsigned>(std::stoul(seed)));
    return order;
  }

  template <class Iterator>
  void arrange(Iterator begin, Iterator end) {
    if (reverse_) std::reverse(begin, end);
    if (shuffle_) std::shuffle(begin, end, random_);
  }

 private:
  bool reverse_ = false, shuffle_ = false;
  std::mt19937 random_;
};

}  // namespace cuda_emulator
