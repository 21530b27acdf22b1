#pragma once

#include <stdint.h>
#include <string.h>

namespace rlhf {

// Of bytes that are 0 or 1, how many are 1; eight at a time.
static inline __attribute__((always_inline, unused)) int64_t count_true(const bool* mask, int64_t length) {
  int64_t count = 0, at = 0;
  for (; at + 8 <= length; at += 8) {
    uint64_t bytes;
    memcpy(&bytes, mask + at, 8);
    count += static_cast<int64_t>((bytes * 0x0101010101010101ull) >> 56);
  }
  for (; at < length; ++at) count += mask[at];
  return count;
}

}  // namespace rlhf
