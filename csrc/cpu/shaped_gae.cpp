// The scan of shaped_gae over a block of sequences: sequential in time, one sequence a SIMD lane.
//
// Sequences are aligned at their ends and walked backwards a tile of kSteps tokens at a time:
//   load     tile[step][row] ← r_t = rewards_t − kl_coef·kl_t and V_t; kl_t goes out; a masked token counts
//   as absent scan     δ_t = r_t + γ·V(next valid) − V_t;  A_t = δ_t + γλ·A(next valid)     all rows of a
//   step at once store    A_t and A_t + V_t
// In registers a row carries A and V of its next valid token, and its score until the last valid token took
// it. Compiled once an instruction set (isa.h); tuning is yet to come.

#include "shaped_gae.h"

#include <math.h>

namespace rlhf::cpu::RLHF_ISA {
namespace {

constexpr int64_t kSteps = 64;  // a tile is 4 KiB of float32: five of them stay in a 32 KiB L1

template <typename T>
struct Tile {
  alignas(64) T reward[kSteps][kRows];
  alignas(64) T value[kSteps][kRows];
  alignas(64) T advantage[kSteps][kRows];
  // 1 or 0, as wide as its neighbours so that a select needs no conversion
  alignas(64) T valid[kSteps][kRows];
};

template <typename T>
struct Carry {
  alignas(64) T advantage[kRows];
  alignas(64) T next_value[kRows];
  alignas(64) T score[kRows];
};

inline float exp_minus_one(float x) { return ::expm1f(x); }
inline double exp_minus_one(double x) { return ::expm1(x); }

template <typename T>
T kl_of(const ShapedGae<T>& task, int64_t token) {
  const T d = task.logprobs[token] - task.ref_logprobs[token];
  switch (task.estimator) {
    case KlEstimator::k1:
      return d;
    case KlEstimator::k2:
      return T(0.5) * d * d;
    default:
      return exp_minus_one(-d) + d;
  }
}

template <typename T>
T clipped(T score, T limit) {
  // Written so that NaN passes through, as torch.clamp does.
  return score > limit ? limit : score < -limit ? -limit : score;
}

template <typename T>
void start(const ShapedGae<T>& task, int64_t first, int64_t last, Carry<T>& carry) {
  for (int64_t row = 0; row < kRows; ++row) {
    const bool there = first + row < last;
    carry.advantage[row] = 0;
    carry.next_value[row] = there && task.bootstrap ? task.bootstrap[first + row] : T(0);
    carry.score[row] = there ? clipped(task.scores[first + row], task.score_clip) : T(0);
  }
}

// Tokens end−1, end−2, … of one sequence into steps 0, 1, … of its lane; steps past its beginning count as
// masked.
template <typename T>
void load(const ShapedGae<T>& task, int64_t end, int64_t count, int64_t row, Tile<T>& tile) {
  for (int64_t step = 0; step < kSteps; ++step) {
    const int64_t token = end - 1 - step;
    const bool valid = step < count && (!task.mask || task.mask[token]);
    const T kl = valid && task.logprobs ? kl_of(task, token) : T(0);
    T reward = valid && task.rewards ? task.rewards[token] : T(0);
    if (task.kl_coef != 0) reward -= task.kl_coef * kl;  // 0·∞ would be NaN
    if (step < count) task.kl[token] = kl;
    tile.reward[step][row] = reward;
    tile.value[step][row] = valid ? task.values[token] : T(0);
    tile.valid[step][row] = valid ? T(1) : T(0);
  }
}

template <typename T>
void scan(const ShapedGae<T>& task, Tile<T>& tile, Carry<T>& carry) {
  for (int64_t step = 0; step < kSteps; ++step) {
    for (int64_t row = 0; row < kRows; ++row) {
      const bool valid = tile.valid[step][row] != 0;
      const T value = tile.value[step][row];
      const T delta =
          (tile.reward[step][row] + carry.score[row]) + task.gamma * carry.next_value[row] - value;
      const T advantage = delta + task.gamma_lam * carry.advantage[row];
      tile.advantage[step][row] = valid ? advantage : T(0);
      carry.advantage[row] = valid ? advantage : carry.advantage[row];
      carry.next_value[row] = valid ? value : carry.next_value[row];
      carry.score[row] = valid ? T(0) : carry.score[row];
    }
  }
}

template <typename T>
void store(const ShapedGae<T>& task, int64_t end, int64_t count, int64_t row, const Tile<T>& tile) {
  for (int64_t step = 0; step < count; ++step) {
    task.advantages[end - 1 - step] = tile.advantage[step][row];
    task.returns[end - 1 - step] = tile.advantage[step][row] + tile.value[step][row];
  }
}

// Σ f(advantage) over the valid tokens of [begin, end), in kSums independent sums so that the order is fixed
// and SIMD can follow it.
constexpr int64_t kSums = 8;

template <typename T, typename F>
double sum_valid(const ShapedGae<T>& task, int64_t begin, int64_t end, F f) {
  double sums[kSums] = {};
  for (int64_t token = begin; token < end; token += kSums) {
    const int64_t width = end - token < kSums ? end - token : kSums;
    for (int64_t lane = 0; lane < width; ++lane) {
      const bool valid = !task.mask || task.mask[token + lane];
      sums[lane] += valid ? f(static_cast<double>(task.advantages[token + lane])) : 0.0;
    }
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// Two passes over advantages that are still in the cache.
template <typename T>
Moments moments(const ShapedGae<T>& task, int64_t begin, int64_t end) {
  const double count = sum_valid(task, begin, end, [](double) { return 1.0; });
  if (count == 0) return {0, 0, 0};
  const double mean = sum_valid(task, begin, end, [](double a) { return a; }) / count;
  const double squares = sum_valid(task, begin, end, [mean](double a) { return (a - mean) * (a - mean); });
  return {static_cast<int64_t>(count), mean, squares};
}

template <typename T>
Moments run(const ShapedGae<T>& task, int64_t first, int64_t last) {
  const int32_t* offsets = task.cu_seqlens;
  int64_t longest = 0;
  for (int64_t row = first; row < last; ++row) {
    const int64_t length = offsets[row + 1] - offsets[row];
    longest = length > longest ? length : longest;
  }
  Tile<T> tile = {};
  Carry<T> carry;
  start(task, first, last, carry);
  for (int64_t done = 0; done < longest; done += kSteps) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t row = 0; row < last - first; ++row) {
        const int64_t left = offsets[first + row + 1] - offsets[first + row] - done;
        const int64_t count = left < 0 ? 0 : left < kSteps ? left : kSteps;
        const int64_t end = offsets[first + row + 1] - done;
        pass == 0 ? load(task, end, count, row, tile) : store(task, end, count, row, tile);
      }
      if (pass == 0) scan(task, tile, carry);
    }
  }
  return moments(task, offsets[first], offsets[last]);
}

}  // namespace

Moments shaped_gae_rows(const ShapedGae<float>& task, int64_t first, int64_t last) {
  return run(task, first, last);
}

Moments shaped_gae_rows(const ShapedGae<double>& task, int64_t first, int64_t last) {
  return run(task, first, last);
}

}  // namespace rlhf::cpu::RLHF_ISA
