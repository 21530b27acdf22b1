// Runs the threads of a block as fibers: each until it waits for others, in the order that was asked for.

#include <setjmp.h>
#include <stdio.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 * 1024;

enum class State { ready, at_warp_barrier, at_block_barrier, done };

struct Fiber {
  State state;
  bool started;
  unsigned turn;  // of its warp's exchange
  jmp_buf context;
};

struct Warp {
  int waiting;
  uint64_t slots[2][kLanes];
};

Fiber fibers[kMaxThreads];
Warp warps[kMaxThreads / kLanes];
std::unique_ptr<char[]> stacks(new char[kMaxThreads * kStack]);
int threads, current, waiting;  // of the block that runs
jmp_buf scheduler;
const std::function<void()>* body;
unsigned order = 0;  // 0: ascending

std::vector<unsigned> ordered(unsigned count, unsigned salt) {
  std::vector<unsigned> all(count);
  std::iota(all.begin(), all.end(), 0u);
  if (order) std::shuffle(all.begin(), all.end(), std::mt19937(order + salt));
  return all;
}

void enter() {
  (*body)();
  fibers[current].state = State::done;
  _longjmp(scheduler, 1);
}

// setjmp and longjmp between fibers, for swapcontext calls the system; a context is made once, to get a
// stack.
void resume(int thread) {
  current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[thread];
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks.get() + thread * kStack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

void wait(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (!_setjmp(fiber.context)) _longjmp(scheduler, 1);
}

void release(int first, int last, State state) {
  for (int thread = first; thread < last; ++thread)
    if (fibers[thread].state == state) fibers[thread].state = State::ready;
}

bool run_warp(int warp, const std::vector<unsigned>& lanes) {
  bool progress = false;
  for (unsigned lane : lanes) {
    const int thread = warp * kLanes + static_cast<int>(lane);
    if (fibers[thread].state != State::ready) continue;
    resume(thread);
    progress = true;
  }
  return progress;
}

bool run_block(unsigned salt) {
  std::fill(fibers, fibers + threads, Fiber{});
  std::fill(std::begin(warps), std::end(warps), Warp{});
  waiting = 0;
  const std::vector<unsigned> lanes = ordered(kLanes, salt), all = ordered(threads / kLanes, salt);
  // A warp runs as far as it can before the next one: it then overtakes the others by as much as a GPU's may.
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned warp : all)
      while (run_warp(warp, lanes)) progress = true;
  }
  return std::all_of(fibers, fibers + threads, [](const Fiber& fiber) { return fiber.state == State::done; });
}

}  // namespace

cudaError_t run(dim3 grid, dim3 block, const std::function<void()>& thread) {
  if (grid.x == 0 || block.x == 0 || block.x > kMaxThreads || block.x % kLanes) return cudaErrorInvalidValue;
  blockDim = block, gridDim = grid, threads = block.x, body = &thread;
  for (unsigned index : ordered(grid.x, 0)) {
    blockIdx = {index, 0, 0};
    if (!run_block(index)) {
      fprintf(stderr, "block %u of %u: not all threads came to a barrier\n", index, grid.x);
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

void block_barrier() {
  if (++waiting < threads) return wait(State::at_block_barrier);
  waiting = 0;
  release(0, threads, State::at_block_barrier);
}

void warp_barrier() {
  const int warp = current / kLanes;
  if (++warps[warp].waiting < kLanes) return wait(State::at_warp_barrier);
  warps[warp].waiting = 0;
  release(warp * kLanes, (warp + 1) * kLanes, State::at_warp_barrier);
}

uint64_t* exchange() { return warps[current / kLanes].slots[fibers[current].turn++ % 2]; }

}  // namespace emulator

// 0: blocks and threads in ascending order; another number: shuffled by it.
extern "C" void emulator_order(unsigned seed) { emulator::order = seed; }

// Whether it notices what it is there to notice: a barrier in one branch only.
extern "C" bool emulator_checks_itself() {
  const auto one_branch = [] {
    if (threadIdx.x < 32) __syncthreads();
  };
  return emulator::run(dim3(1), dim3(64), one_branch) == cudaErrorLaunchFailure;
}
