// How work on packed sequences is shared among threads. Results are kept a sequence (or a fixed chunk), so
// they do not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "pool.h"
#include "products.h"

namespace rlhf {

// Below this many tokens another thread costs more than it saves: 50 to 100 µs where it has gone to sleep
// since the last parallel region, as it has between two calls of a training step (measured), against a
// nanosecond a token.
constexpr int64_t kTokensAThread = 32768;

// Calls body(first, last) for ranges of sequences that hold about as many tokens each.
template <typename Offset, typename F>
void parallel_sequences(const Offset* cu_seqlens, int64_t sequences, const F& body,
                        int64_t tokens_a_thread = kTokensAThread) {
  const int64_t tokens = cu_seqlens[sequences];
  const int64_t parts =
      std::min<int64_t>({at::get_num_threads(), sequences, std::max<int64_t>(tokens / tokens_a_thread, 1)});
  if (parts <= 1) return body(0, sequences);
  const auto bound = [&](int64_t part) -> int64_t {
    if (part == parts) return sequences;
    return std::lower_bound(cu_seqlens, cu_seqlens + sequences, tokens * part / parts) - cu_seqlens;
  };
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    if (const int64_t first = bound(begin), last = bound(end); first < last) body(first, last);
  });
}

// Calls body(task) for 0 … tasks − 1, each by whichever thread is free next: put the long ones first. `work`
// in floating-point operations; below a million of them for each, other threads stay asleep. Every thread
// calls done() after its last task.
template <typename F, typename G>
void parallel_tasks(int64_t tasks, double work, const F& body, const G& done) {
  const int64_t worth = static_cast<int64_t>(std::min(work / 1e6, 1e6)) + 1;
  const int64_t threads = std::min<int64_t>({at::get_num_threads(), tasks, worth});
  std::atomic<int64_t> next{0};
  const auto take = [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks; task = next++) body(task);
    done();
  };
  if (threads <= 1) return take(0, 1);
  at::parallel_for(0, threads, 1, take);
}

namespace cpu {

// The same for tasks that multiply tiles: body(task, this thread's scratch).
template <typename F>
void each_task(int64_t tasks, double flops, int64_t scratch, const F& body) {
  parallel_tasks(tasks, flops, [&](int64_t task) { body(task, thread_scratch(scratch)); }, release_products);
}

}  // namespace cpu
}  // namespace rlhf
