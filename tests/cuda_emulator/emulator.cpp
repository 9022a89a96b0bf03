// Runs a CUDA grid on one CPU thread: block after block, every thread of a block on a fiber that
// runs until it waits at a barrier or a warp collective, or exits. README.md tells what this finds.
#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "launch_order.h"
#include "shared_memory.h"
#include "thread.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_emulator {
namespace {

void fiber_main();

class Scheduler {
 public:
  void run(const LaunchConfig& config, void (*body)(void*), void* context);
  uint64_t barrier(Barrier kind, int predicate, Site site);
  uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width,
                      Site site);
  void run_threads_on_this_fiber();
  void* dynamic_shared() { return dynamic_shared_.begin(); }

 private:
  void check(const LaunchConfig& config) const;
  void run_block(uint3 block);
  void resume(Thread& thread);
  void suspend();
  void set_current(Thread& thread);
  void make_ready(std::vector<unsigned>& ranks);
  void finish_collective(const Thread& last);
  void abandon_waiting_fibers();
  std::string describe_stuck_threads() const;
  std::string where() const;

  const LaunchConfig* config_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  LaunchOrder order_;
  std::vector<Thread> threads_;  // of the running block, by rank
  std::vector<unsigned> ready_;  // ranks that can run, the next one last
  std::vector<unsigned> newly_ready_;
  Thread* current_ = nullptr;
  unsigned at_barrier_ = 0, exited_ = 0;
  std::string error_;  // of the first thread that failed
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_fibers_;
  Context host_;  // the stack of whoever called run()
  Fiber* running_fiber_ = nullptr;
  DynamicShared dynamic_shared_;
};

Scheduler& scheduler() {
  static Scheduler* instance = new Scheduler;  // never destroyed: kernels may run at exit
  return *instance;
}

void fiber_main() { scheduler().run_threads_on_this_fiber(); }

// ---- Launch ------------------------------------------------------------------------------------

void Scheduler::check(const LaunchConfig& config) const {
  const auto reject = [&](const std::string& reason) {
    throw std::runtime_error(
        std::string("CUDA emulator: kernel '") + config.name + "' cannot be launched with grid " +
        text(config.grid) + ", block " + text(config.block) + ", " +
        std::to_string(config.dynamic_shared_bytes) + " bytes of dynamic shared memory: " + reason);
  };
  const dim3 grid = config.grid, block = config.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) {
    reject("a block has 1 to 1024 threads, at most 64 in z");
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0) {
    reject("a grid has 1 to (2147483647, 65535, 65535) blocks");
  }
  int device_limit = 0;
  cudaDeviceGetAttribute(&device_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  if (config.dynamic_shared_bytes > static_cast<size_t>(device_limit)) {
    reject("the emulated device has " + std::to_string(device_limit) +
           " bytes (FASTSEG_EMULATOR_ARCH selects another)");
  }
}

void Scheduler::run(const LaunchConfig& config, void (*body)(void*), void* context) {
  check(config);
  config_ = &config;
  body_ = body;
  context_ = context;
  order_ = LaunchOrder::from_environment();
  blockDim = config.block;
  gridDim = config.grid;
  threads_.assign(size_t{config.block.x} * config.block.y * config.block.z, Thread{});
  for (unsigned rank = 0; rank < threads_.size(); ++rank) {
    threads_[rank].rank = rank;
    threads_[rank].index = {rank % blockDim.x, rank / blockDim.x % blockDim.y,
                            rank / (blockDim.x * blockDim.y)};
  }
  dynamic_shared_.start_launch(config.dynamic_shared_bytes);

  std::vector<uint64_t> blocks(uint64_t{gridDim.x} * gridDim.y * gridDim.z);
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  order_.arrange(blocks.begin(), blocks.end());
  for (const uint64_t block : blocks) {
    run_block({static_cast<unsigned>(block % gridDim.x),
               static_cast<unsigned>(block / gridDim.x % gridDim.y),
               static_cast<unsigned>(block / gridDim.x / gridDim.y)});
  }
}

void Scheduler::run_block(uint3 block) {
  blockIdx = block;
  poison_static_shared();
  dynamic_shared_.start_block();
  at_barrier_ = exited_ = 0;
  error_.clear();
  newly_ready_.clear();
  for (Thread& thread : threads_) {
    thread.state = State::kNew;
    newly_ready_.push_back(thread.rank);
  }
  ready_.clear();
  make_ready(newly_ready_);

  while (!ready_.empty() && error_.empty()) {
    Thread& next = threads_[ready_.back()];
    ready_.pop_back();
    resume(next);
  }
  if (error_.empty() && exited_ != threads_.size()) error_ = describe_stuck_threads();
  if (error_.empty() && dynamic_shared_.overrun()) {
    error_ = where() + "a thread wrote outside the " +
             std::to_string(config_->dynamic_shared_bytes) + " bytes of dynamic shared memory";
  }
  if (!error_.empty()) {
    abandon_waiting_fibers();
    throw std::runtime_error(error_);
  }
}

std::string Scheduler::where() const {
  return std::string("CUDA emulator: kernel '") + config_->name + "', block " + text(blockIdx) +
         ": ";
}

std::string Scheduler::describe_stuck_threads() const {
  struct Group {
    unsigned count = 0;
    uint3 first{};
  };
  std::map<std::string, Group> groups;
  for (const Thread& thread : threads_) {
    std::string what = "exited";
    if (thread.state == State::kAtBarrier) {
      what = std::string("wait at ") + name_of(thread.barrier) + " (" + text(thread.site) + ")";
    } else if (thread.state == State::kAtCollective) {
      what = std::string("wait at ") + name_of(thread.collective) + " (" + text(thread.site) +
             ") for the lanes of mask " + hex(thread.mask);
    }
    Group& group = groups[what];
    if (group.count++ == 0) group.first = thread.index;
  }
  std::string message = where() + "deadlock, not all threads of a barrier or collective arrive:";
  for (const auto& [what, group] : groups) {
    message += " " + std::to_string(group.count) + " of " + std::to_string(threads_.size()) +
               " threads " + what + ", the first is thread " + text(group.first) + ";";
  }
  message.back() = '.';
  return message;
}

void Scheduler::abandon_waiting_fibers() {
  for (Thread& thread : threads_) {
    if (thread.fiber == nullptr) continue;
    thread.fiber->abandon();
    idle_fibers_.push_back(thread.fiber);
    thread.fiber = nullptr;
  }
}

// ---- Switching between threads -----------------------------------------------------------------

void Scheduler::set_current(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
}

// Called on the scheduler's stack.
void Scheduler::resume(Thread& thread) {
  set_current(thread);
  running_fiber_ = thread.fiber;
  if (running_fiber_ == nullptr) {
    if (idle_fibers_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_fibers_.push_back(fibers_.back().get());
    }
    running_fiber_ = idle_fibers_.back();
    idle_fibers_.pop_back();
    running_fiber_->prepare(fiber_main);
  }
  thread.fiber = nullptr;
  host_.switch_to(*running_fiber_);
}

// Called on a fiber: the current thread waits.
void Scheduler::suspend() {
  current_->fiber = running_fiber_;
  running_fiber_->switch_to(host_);
}

// A fiber's whole life: the thread it was started for and then, without a switch, whatever new
// threads are next. A kernel without barriers thus needs one fiber.
void Scheduler::run_threads_on_this_fiber() {
  running_fiber_->announce_arrival(&host_);
  for (;;) {
    try {
      body_(context_);
    } catch (const std::exception& exception) {
      error_ = where() + "thread " + text(current_->index) + ": " + exception.what();
    } catch (...) {
      error_ = where() + "thread " + text(current_->index) + " threw an unknown exception";
    }
    current_->state = State::kExited;
    ++exited_;
    if (!error_.empty() || ready_.empty() || threads_[ready_.back()].state != State::kNew) break;
    set_current(threads_[ready_.back()]);
    ready_.pop_back();
  }
  idle_fibers_.push_back(running_fiber_);
  running_fiber_->switch_to(host_, /*last=*/true);
}

void Scheduler::make_ready(std::vector<unsigned>& ranks) {
  order_.arrange(ranks.begin(), ranks.end());
  ready_.insert(ready_.end(), ranks.rbegin(), ranks.rend());
}

// ---- Barriers and collectives ------------------------------------------------------------------

uint64_t Scheduler::barrier(Barrier kind, int predicate, Site site) {
  Thread& self = *current_;
  self.state = State::kAtBarrier;
  self.barrier = kind;
  self.site = site;
  self.value = predicate != 0;
  if (++at_barrier_ < threads_.size()) {
    suspend();
    return self.result;
  }

  uint64_t count = 0;
  for (const Thread& thread : threads_) {
    count += thread.value;
    if (thread.barrier != kind || thread.site.line != site.line ||
        strcmp(thread.site.file, site.file) != 0) {
      throw std::runtime_error("divergent barriers: this thread is at " +
                               std::string(name_of(kind)) + " (" + text(site) + "), thread " +
                               text(thread.index) + " at " + name_of(thread.barrier) + " (" +
                               text(thread.site) + ")");
    }
  }
  uint64_t result = count;
  if (kind == Barrier::kOr) result = count != 0;
  if (kind == Barrier::kAnd) result = count == threads_.size();
  at_barrier_ = 0;
  newly_ready_.clear();
  for (Thread& thread : threads_) {
    thread.state = State::kReady;
    thread.result = result;
    if (&thread != &self) newly_ready_.push_back(thread.rank);
  }
  make_ready(newly_ready_);
  return result;
}

uint64_t Scheduler::collective(Collective kind, unsigned mask, uint64_t value, int argument,
                               int width, Site site) {
  Thread& self = *current_;
  const unsigned lane = self.rank % kWarp;
  const size_t lanes = std::min<size_t>(kWarp, threads_.size() - (self.rank - lane));
  const auto reject = [&](const std::string& reason) {
    throw std::runtime_error(std::string(name_of(kind)) + " (" + text(site) + "): " + reason);
  };
  if ((mask >> lane & 1) == 0) {
    reject("its mask " + hex(mask) + " lacks the calling lane " + std::to_string(lane));
  }
  if (lanes < kWarp && (mask >> lanes) != 0) {
    reject("its mask " + hex(mask) + " names lanes beyond the last thread of the block");
  }
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    reject("width " + std::to_string(width) + " is no power of two up to 32");
  }
  self.state = State::kAtCollective;
  self.collective = kind;
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  self.width = width;
  self.site = site;
  if (collective_is_complete(self, &self - lane)) {
    finish_collective(self);
  } else {
    suspend();
  }
  return self.result;
}

void Scheduler::finish_collective(const Thread& last) {
  Thread* warp = &threads_[last.rank - last.rank % kWarp];
  newly_ready_.clear();
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((last.mask >> lane & 1) == 0) continue;
    Thread& thread = warp[lane];
    thread.result = collective_result(thread, warp);
    if (&thread != &last) newly_ready_.push_back(thread.rank);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((last.mask >> lane & 1) != 0) warp[lane].state = State::kReady;
  }
  make_ready(newly_ready_);
}

std::mutex launch_mutex;

}  // namespace

void run(const LaunchConfig& config, void (*body)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  scheduler().run(config, body, context);
}

int block_barrier(Barrier kind, int predicate, Site site) {
  return static_cast<int>(scheduler().barrier(kind, predicate, site));
}

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, int width,
                         Site site) {
  return scheduler().collective(kind, mask, value, argument, width, site);
}

void* dynamic_shared() { return scheduler().dynamic_shared(); }

void fail(const char* reason) { throw std::runtime_error(reason); }

}  // namespace cuda_emulator
