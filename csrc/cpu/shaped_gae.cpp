// The scan of shaped_gae, a sequence at a time, backwards:
//
//   δ_t = r_t + γ·V(next valid) − V_t;  A_t = δ_t + γλ·A(next valid)
//
// A vector holds L successive tokens. With c = γλ its A follows from its δ in log2 L steps, whose order does not depend
// on where the sequence lies or what is beside it, and from the A of the token after it:
//
//   x ← x + c·x(1 later);  x ← x + c²·x(2 later);  x ← x + c⁴·x(4 later); …      A = x + (c^L … c²  c¹)·A(after)
//
// so the chain from vector to vector is one multiplication and one addition. Masked tokens do not take part: a chunk
// that has some is first packed to its valid tokens (in L1), scanned, and spread again. Compiled once an instruction
// set (isa.h).

#include "shaped_gae.h"

#include <math.h>

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

constexpr int64_t kAhead = 256;  // tokens prefetched: the processor does not follow so many streams by itself
constexpr int64_t kChunk = 256;  // tokens packed together: seven buffers of float32 stay in a 32 KiB L1

// What a vector needs to know of the valid tokens after it. Vectors, because to put a number into a lane goes by memory.
template <typename T>
struct Carry {
  Pack<T> advantage;   // of the next valid token, in every lane
  Pack<T> value;       // the same in lane 0
  Pack<T> score;       // in the last lane, until the last valid token got it
  Pack<double> total;  // of the advantages so far
};

template <typename T>
struct Inputs {
  const T *values, *rewards, *logprobs, *ref_logprobs;
};
template <typename T>
struct Outputs {
  T *advantages, *returns, *kl;
  bool stream;  // returns and kl, past the cache

  Outputs after(int64_t tokens) const { return {advantages + tokens, returns + tokens, kl + tokens, stream}; }
};

template <typename T>
Inputs<T> after(const Inputs<T>& in, int64_t tokens) {
  return {in.values + tokens, in.rewards ? in.rewards + tokens : nullptr, in.logprobs ? in.logprobs + tokens : nullptr,
          in.ref_logprobs ? in.ref_logprobs + tokens : nullptr};
}

template <typename T>
struct Powers {
  Pack<T> after;  // c^L … c² c¹
  T one, two, four, eight;
};

template <typename T>
Powers<T> powers_of(T c) {
  Powers<T> powers{{}, c, c * c, (c * c) * (c * c), (c * c) * (c * c) * ((c * c) * (c * c))};
  T power = 1;
  for (int64_t lane = Pack<T>::count - 1; lane >= 0; --lane) powers.after.set(lane, power *= c);
  return powers;
}

RLHF_FN Floats scanned(Floats x, const Powers<float>& powers) {
  x = x + later<1>(x) * powers.one;
  x = x + later<2>(x) * powers.two;
  x = x + later<4>(x) * powers.four;
  return x + later<8>(x) * powers.eight;
}
RLHF_FN Doubles scanned(Doubles x, const Powers<double>& powers) {
  x = x + later<1>(x) * powers.one;
  x = x + later<2>(x) * powers.two;
  return x + later<4>(x) * powers.four;
}

// One vector of valid tokens, `count` of them in its upper lanes.
template <typename T, bool whole>
RLHF_FN void step(const ShapedGae<T>& task, const Powers<T>& powers, const Inputs<T>& in, const Outputs<T>& out,
                  int64_t at, int64_t count, Carry<T>& carry) {
  using V = Pack<T>;
  constexpr int64_t L = Pack<T>::count;
  const int64_t first = L - count;
  const auto take = [&](const T* from) {
    __builtin_prefetch(from + at - kAhead);
    return whole ? load<T>(from + at) : load_part<T>(from + at, count, first);
  };
  const auto give = [&](T* to, V lanes) {
    if constexpr (whole) {
      store<T>(to + at, lanes);
    } else {
      store_part<T>(to + at, lanes, count, first);
    }
  };
  const V value = take(in.values);
  V reward = in.rewards ? take(in.rewards) : V{};
  V kl{};
  if (in.logprobs) {
    kl = kl_term(take(in.logprobs) - take(in.ref_logprobs), task.estimator).value;
    if (task.kl_coef != 0) reward = reward - kl * task.kl_coef;  // 0·∞ would be NaN
  }
  const V delta = (reward + carry.score) + later<1>(value, carry.value) * task.gamma - value;
  const V advantage = scanned(delta, powers) + powers.after * carry.advantage;
  give(out.advantages, advantage);
  if (whole && out.stream) {
    stream<T>(out.kl + at, kl);
    stream<T>(out.returns + at, advantage + value);
  } else {
    give(out.kl, kl);
    give(out.returns, advantage + value);
  }
  if constexpr (whole) {
    carry = {first_everywhere(advantage), value, V{}, carry.total + widened(advantage)};
  } else {
    const V there = load_part<T>(out.advantages + at, count);  // without what the lanes below first hold
    carry = {V::all_of(advantage[first]), V::all_of(value[first]), V{}, carry.total + widened(there)};
  }
}

// Tokens [0, tokens), all valid.
template <typename T>
void scan(const ShapedGae<T>& task, const Powers<T>& powers, const Inputs<T>& in, const Outputs<T>& out,
          int64_t tokens, Carry<T>& carry) {
  constexpr int64_t L = Pack<T>::count;
  Carry<T> here = carry;  // a copy that stays in registers
  int64_t at = tokens;
  for (; at >= L; at -= L) step<T, true>(task, powers, in, out, at - L, L, here);
  if (at > 0) step<T, false>(task, powers, in, out, 0, at, here);
  carry = here;
}

template <typename T>
void pack(T* to, const T* from, const bool* mask, int64_t tokens) {
  int64_t end = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    to[end] = from[token];  // overwritten by the next one where it is masked
    end += mask[token];
  }
}

// Without a branch, which a ragged mask would have mispredicted.
template <typename T>
void spread(T* to, const T* from, const bool* mask, int64_t tokens) {
  using Bits = typename IntegerOf<T>::type;
  int64_t at = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    to[token] = same_bits<T>(static_cast<Bits>(same_bits<Bits>(from[at]) & -static_cast<Bits>(mask[token])));
    at += mask[token];
  }
}

template <typename T>
void clear(T* to, int64_t tokens) {
  for (int64_t token = 0; token < tokens; ++token) to[token] = 0;
}

// Tokens [0, tokens) of which `valid` are valid, at most kChunk.
template <typename T>
void scan_packed(const ShapedGae<T>& task, const Powers<T>& powers, const Inputs<T>& in, const Outputs<T>& out,
                 const bool* mask, int64_t tokens, int64_t valid, Carry<T>& carry) {
  T values[kChunk], rewards[kChunk], logprobs[kChunk], ref_logprobs[kChunk];
  T advantages[kChunk + 1], returns[kChunk + 1], kl[kChunk + 1];  // spread looks one past the last
  pack(values, in.values, mask, tokens);
  if (in.rewards) pack(rewards, in.rewards, mask, tokens);
  if (in.logprobs) pack(logprobs, in.logprobs, mask, tokens);
  if (in.logprobs) pack(ref_logprobs, in.ref_logprobs, mask, tokens);
  const Inputs<T> packed{values, in.rewards ? rewards : nullptr, in.logprobs ? logprobs : nullptr, ref_logprobs};
  advantages[valid] = returns[valid] = kl[valid] = 0;
  scan(task, powers, packed, Outputs<T>{advantages, returns, kl, false}, valid, carry);
  spread(out.advantages, advantages, mask, tokens);
  spread(out.returns, returns, mask, tokens);
  spread(out.kl, kl, mask, tokens);
}

template <typename T>
void scan_masked(const ShapedGae<T>& task, const Powers<T>& powers, const Inputs<T>& in, const Outputs<T>& out,
                 const bool* mask, int64_t tokens, Carry<T>& carry) {
  for (int64_t end = tokens; end > 0; end -= kChunk) {
    const int64_t begin = end > kChunk ? end - kChunk : 0, count = end - begin;
    const int64_t valid = count_true(mask + begin, count);
    const Outputs<T> to = out.after(begin);
    if (valid == count) {
      scan(task, powers, after(in, begin), to, count, carry);
    } else if (valid == 0) {
      clear(to.advantages, count);
      clear(to.returns, count);
      clear(to.kl, count);
    } else {
      scan_packed(task, powers, after(in, begin), to, mask + begin, count, valid, carry);
    }
  }
}

// Of `valid` advantages that add up to `total`; the others among the tokens are 0. The second of two passes, over what
// is still in the cache: squared distances from a rounded mean, then what rounding it and the zeros brought is taken off.
template <typename T>
Moments moments_of(const T* advantages, int64_t tokens, int64_t valid, double total) {
  using V = Pack<T>;
  if (valid == 0) return {0, 0, 0};
  const double mean = total / static_cast<double>(valid);
  const T about = static_cast<T>(mean);
  Doubles sums{};
  int64_t token = 0;
  for (; token < tokens; token += V::count) {
    const bool whole = token + V::count <= tokens;
    const V distance = (whole ? load(advantages + token) : load_part(advantages + token, tokens - token)) - about;
    sums = sums + widened(distance * distance);
  }
  const double zeros = static_cast<double>(token - valid), from = mean - static_cast<double>(about);
  const double squares =
      sum(sums) - zeros * static_cast<double>(about * about) - from * from * static_cast<double>(valid);
  return {valid, mean, squares > 0 ? squares : 0};
}

template <typename T>
T clipped(T score, T limit) {
  // NaN passes through, as torch.clamp has it.
  return score > limit ? limit : score < -limit ? -limit : score;
}

template <typename T>
void run(const ShapedGae<T>& task, int64_t first, int64_t last, Moments* moments) {
  const Powers<T> powers = powers_of(task.gamma_lam);
  const Inputs<T> in{task.values, task.rewards, task.logprobs, task.ref_logprobs};
  // From the last one on, so that memory is read in one direction throughout.
  for (int64_t row = last - 1; row >= first; --row) {
    const int64_t begin = task.cu_seqlens[row], tokens = task.cu_seqlens[row + 1] - begin;
    const bool* mask = task.mask ? task.mask + begin : nullptr;
    // Vectors end where the sequence does.
    const bool aligned = reinterpret_cast<uintptr_t>(task.returns + begin + tokens) % 64 == 0 &&
                         reinterpret_cast<uintptr_t>(task.kl + begin + tokens) % 64 == 0;
    const Outputs<T> out{task.advantages + begin, task.returns + begin, task.kl + begin, task.stream && aligned};
    Carry<T> carry{};
    if (task.bootstrap) carry.value.set(0, task.bootstrap[row]);
    carry.score.set(Pack<T>::count - 1, clipped(task.scores[row], task.score_clip));
    const int64_t valid = mask ? count_true(mask, tokens) : tokens;
    if (valid == tokens) {
      scan(task, powers, after(in, begin), out, tokens, carry);
    } else {
      scan_masked(task, powers, after(in, begin), out, mask, tokens, carry);
    }
    moments[row] = moments_of(out.advantages, tokens, valid, sum(carry.total));
  }
  if (task.stream) finish_stream();
}

}  // namespace

void shaped_gae(const ShapedGae<float>& task, int64_t first, int64_t last, Moments* moments) {
  run(task, first, last, moments);
}

void shaped_gae(const ShapedGae<double>& task, int64_t first, int64_t last, Moments* moments) {
  run(task, first, last, moments);
}

}  // namespace rlhf::cpu::RLHF_ISA
