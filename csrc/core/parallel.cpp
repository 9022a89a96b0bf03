#include "core/parallel.h"

#include <pthread.h>

namespace fastseg {
namespace {

bool forked_child = false;

[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked_child = true; });

}  // namespace

bool in_forked_child() { return forked_child; }

}  // namespace fastseg
