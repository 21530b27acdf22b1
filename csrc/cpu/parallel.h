// How work on packed sequences is shared among threads. Results are kept a sequence (or a fixed chunk), so they do not
// depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

namespace rlhf {

// Below this many tokens another thread costs more than it saves: 50 to 100 µs where it has gone to sleep since the last
// parallel region, as it has between two calls of a training step (measured), against a nanosecond a token.
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

}  // namespace rlhf
