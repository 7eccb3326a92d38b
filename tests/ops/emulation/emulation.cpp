#include <ucontext.h>

#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace emulated {
namespace {

constexpr int LANES = 32;
constexpr size_t STACK = 128 << 10;
constexpr unsigned MOST_CLUSTER = 8;
constexpr size_t FREE_SHARED = 48 << 10;

enum class State { ready, at_barrier, at_cluster, in_collective, done };

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes, present;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  State state = State::ready;
  void* brought = nullptr;
  std::vector<Copy> open;                 // not committed yet
  std::deque<std::vector<Copy>> pending;  // committed
};

struct Warp {
  const char* kind = nullptr;
  int arrived = 0;
};

// How threads take turns, and what went wrong last.
unsigned order = 0;
bool eager = false;
int processors = 1;
size_t most_shared = 99 << 10;  // that a block may have
std::string wrong = "no error";
const void* enlarged = nullptr;
size_t enlarged_to = 0;

ucontext_t scheduler;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
struct Block {  // of the cluster that runs
  dim3 place;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, std::free};
};
std::vector<Block> blocks;
size_t block_threads = 0;
const std::function<void()>* body = nullptr;
size_t current = 0;
bool failed = false;

Fiber& self() { return fibers[current]; }
size_t rank() { return current / block_threads; }  // of the block that the thread is of

void leave() { swapcontext(&self().context, &scheduler); }

void perform(const Copy& copy) {
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.present));
  std::memset(copy.to + copy.present, 0, static_cast<size_t>(copy.bytes - copy.present));
}

void begin() {
  (*body)();
  if (!self().open.empty()) fail("copies that nobody committed");
  self().state = State::done;
  leave();
}

void resume(size_t thread) {
  current = thread;
  threadIdx = dim3(static_cast<unsigned>(thread % block_threads), 0, 0);
  blockIdx = blocks[rank()].place;
  swapcontext(&scheduler, &fibers[thread].context);
}

// Whether all threads of the cluster, or of one of its blocks, wait at the same barrier or are done.
bool all_in(State state, size_t first = 0, size_t count = fibers.size()) {
  const auto begin = fibers.begin() + static_cast<std::ptrdiff_t>(first);
  return std::all_of(begin, begin + static_cast<std::ptrdiff_t>(count), [&](const Fiber& fiber) { return fiber.state == state; });
}

// Numbers 0 to `count` as the order has it.
std::vector<size_t> turns(size_t count, std::mt19937& random) {
  std::vector<size_t> numbers(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = order == 1 ? count - 1 - i : i;
  if (order > 1) std::shuffle(numbers.begin(), numbers.end(), random);
  return numbers;
}

void open_barrier(size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i) fibers[i].state = State::ready;
}

// Each warp of a block goes on alone until it waits for the others: as far ahead of them as it may.
void run_warps(size_t first, std::mt19937& random) {
  for (const size_t warp : turns(block_threads / LANES, random)) {
    for (bool moved = true; moved && !failed;) {
      moved = false;
      for (const size_t lane : turns(LANES, random)) {
        const size_t thread = first + warp * LANES + lane;
        if (fibers[thread].state != State::ready || failed) continue;
        resume(thread);
        moved = true;
      }
    }
  }
}

// And so does each block of a cluster.
void run_cluster(std::mt19937& random) {
  while (!failed && !all_in(State::done)) {
    for (const size_t block : turns(blocks.size(), random)) {
      const size_t first = block * block_threads;
      run_warps(first, random);
      while (!failed && all_in(State::at_barrier, first, block_threads)) {
        open_barrier(first, block_threads);
        run_warps(first, random);
      }
    }
    if (failed || all_in(State::done)) return;
    if (!all_in(State::at_cluster)) {
      wrong = "threads wait for others that never come";
      failed = true;
      return;
    }
    open_barrier(0, fibers.size());
  }
}

}  // namespace

void fail(const char* what) {
  wrong = what;
  failed = true;
  leave();
  std::abort();  // never resumed
}

unsigned char* shared_memory() { return blocks[rank()].shared.get(); }

void block_barrier() {
  self().state = State::at_barrier;
  leave();
}

void cluster_barrier() {
  self().state = State::at_cluster;
  leave();
}

const void* of_rank(const void* shared, int other) {
  if (other < 0 || static_cast<size_t>(other) >= blocks.size()) fail("a block that is not in the cluster");
  if (all_in(State::done, static_cast<size_t>(other) * block_threads, block_threads)) {
    fail("the shared memory of a block that has ended");
  }
  return blocks[static_cast<size_t>(other)].shared.get() + (static_cast<const unsigned char*>(shared) - shared_memory());
}

void collective(const char* kind, void* brought, const std::function<void(void* const*)>& finish) {
  Warp& warp = warps[current / LANES];
  if (warp.arrived > 0 && std::strcmp(warp.kind, kind) != 0) fail("lanes of a warp at different instructions");
  warp.kind = kind;
  self().brought = brought;
  if (++warp.arrived < LANES) {
    self().state = State::in_collective;
    return leave();
  }
  warp.arrived = 0;
  void* all[LANES];
  const size_t first = current / LANES * LANES;
  for (int lane = 0; lane < LANES; ++lane) all[lane] = fibers[first + lane].brought;
  finish(all);
  for (int lane = 0; lane < LANES; ++lane) fibers[first + lane].state = State::ready;
}

void copy(void* to, const void* from, int bytes, int present) {
  const auto aligned = [&](const void* at) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; };
  if (!aligned(to) || (!aligned(from) && present > 0)) fail("a copy that is not aligned");
  if (present < 0 || present > bytes) fail("a copy of a part that cannot be");
  const Copy made = {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, present};
  if (eager) perform(made);
  self().open.push_back(made);
}

void commit_copies() { self().pending.push_back(std::move(self().open)), self().open.clear(); }

void await_copies(int pending) {
  for (auto& groups = self().pending; groups.size() > static_cast<size_t>(pending); groups.pop_front()) {
    if (eager) continue;
    for (const Copy& one : groups.front()) perform(one);
  }
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const unsigned threads = config.blockDim.x;
  const dim3 grid = config.gridDim;
  const unsigned cluster = config.numAttrs > 0 ? config.attrs[0].val.clusterDim.x : 1;
  const size_t allowed = enlarged != nullptr ? enlarged_to : FREE_SHARED;
  enlarged = nullptr;
  failed = false;
  if (threads == 0 || threads > 1024 || threads % LANES != 0 || config.dynamicSmemBytes > allowed || grid.x == 0 ||
      grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || cluster == 0 || cluster > MOST_CLUSTER ||
      grid.x % cluster != 0) {
    wrong = "an invalid launch";
    return cudaErrorInvalidValue;
  }
  if (config.stream == nullptr) {
    wrong = "a launch outside of the session's stream";
    return cudaErrorInvalidValue;
  }
  std::mt19937 random(order);
  body = &kernel;
  blockDim = config.blockDim;
  gridDim = grid;
  const size_t bytes = std::max<size_t>(16, (config.dynamicSmemBytes + 15) / 16 * 16);
  const uint64_t clusters = static_cast<uint64_t>(grid.x) / cluster * grid.y * grid.z;
  block_threads = threads;
  for (uint64_t i = 0; i < clusters && !failed; ++i) {
    const uint64_t first = (order == 1 ? clusters - 1 - i : i) * cluster;
    blocks.clear();
    blocks.resize(cluster);
    for (uint64_t block = first; block < first + cluster; ++block) {
      Block& made = blocks[block - first];
      made.place = dim3(static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                        static_cast<unsigned>(block / grid.x / grid.y));
      // Of its own, so that a sanitizer knows its end; and aligned as on a GPU.
      made.shared.reset(static_cast<unsigned char*>(std::aligned_alloc(16, bytes)));
      std::memset(made.shared.get(), 0xff, bytes);
    }
    warps.assign(cluster * threads / LANES, {});
    while (fibers.size() < cluster * threads) fibers.emplace_back();
    fibers.resize(cluster * threads);
    for (Fiber& fiber : fibers) {
      fiber.state = State::ready;
      fiber.open.clear();
      fiber.pending.clear();
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, begin, 0);
    }
    run_cluster(random);
  }
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace emulated

const char* cudaGetErrorString(cudaError_t) { return emulated::wrong.c_str(); }

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  emulated::wrong = "too much shared memory";
  if (static_cast<size_t>(value) > emulated::most_shared) return cudaErrorInvalidValue;
  emulated::enlarged = kernel;
  emulated::enlarged_to = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrMultiProcessorCount: *value = emulated::processors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(emulated::most_shared); break;
    case cudaDevAttrClusterLaunch: *value = 1; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    default: *value = 6;
  }
  return cudaSuccess;
}

// Threads take turns forwards (0), backwards (1), or shuffled by a seed; copies to shared memory happen at once or late. Of few
// processors each takes several rows. Blocks may have `shared` KiB of shared memory.
extern "C" __attribute__((visibility("default"))) void catonnx_emulation(unsigned order, bool eager, int processors,
                                                                         int shared) {
  emulated::order = order;
  emulated::eager = eager;
  emulated::processors = processors;
  emulated::most_shared = static_cast<size_t>(shared) << 10;
}

// From now on streams are captured, or not.
extern "C" __attribute__((visibility("default"))) void catonnx_capture(bool capturing) { emulated::capturing = capturing; }
