// Attention of one new token a sequence over its cache and its prompt (formula:
// rlhf_core/kernels/decode_attention.py).
//
// B sequences, Hq query heads, Hk key heads, D head size. A sequence's keys come in splits of 256: those of
// its prompt, then those of its cache. A block takes a split and up to eight query heads of one key head, so
// that what it reads is read once for all of them:
//   scores   a group of lanes takes a key, 16 bytes a lane; q stays in registers
//   weights  a warp takes a head: maximum, exponentials, sum
//   values   a group takes a key again; groups are added up through shared memory
//   store    maximum, sum and unnormalised output, in float32
// A second kernel merges a head's splits in order. Where splits begin follows from a sequence's own lengths,
// and nothing is added up by whoever comes first: its result does not depend on the batch.
//
// Blocks of all sequences come one after another for the same split and head: those of one prompt then run
// together, and all but the first read its keys from the second-level cache.

#include "decode_attention.h"
#include "group.h"
#include "launch.h"
#include "piece.h"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kLanes;
constexpr int kSplit =
    256;  // long enough that parts are 1/16 of what is read for eight heads, and less for fewer
constexpr int kAhead =
    4;  // keys a group has asked for before it uses the first: 8 KiB a block are on their way

// What the host knows beside the task.
struct Plan {
  int prefix_splits, splits;  // the most that a sequence has of its prompt, and in all
  int group, tiles;           // query heads a key head; blocks that share them
  bool aligned;               // every row begins at a multiple of 16 bytes
};

// Rows of keys or values that a block reads.
struct Rows {
  const void* begin;
  int64_t stride;
};

__device__ __forceinline__ int within(int64_t x, int64_t most) {
  return static_cast<int>(x < 0 ? 0 : x < most ? x : most);
}
__device__ __forceinline__ int own_length(const DecodeAttention& task, int64_t sequence) {
  return within(task.lengths[sequence], task.slots);
}
// Of a prompt that there is not, 0.
__device__ __forceinline__ int prefix_length(const DecodeAttention& task, int64_t sequence) {
  if (task.prefix_of == nullptr) return 0;
  const int prompt = task.prefix_of[sequence];
  if (prompt < 0 || prompt >= task.prompts) return 0;
  return within(task.prefix_lengths ? task.prefix_lengths[prompt] : task.prefix_slots, task.prefix_slots);
}

// Where a block's keys and values are; gives how many.
template <typename T>
__device__ __forceinline__ int find(const DecodeAttention& task, const Plan& plan, int64_t sequence,
                                    int64_t head, int split, Rows& keys, Rows& values) {
  const auto rows = [&](const void* all, int64_t outer, int64_t head_stride, int64_t slot) {
    return Rows{static_cast<const T*>(all) + outer + head * head_stride, slot};
  };
  int first = split * kSplit, length;
  if (split < plan.prefix_splits) {
    length = prefix_length(task, sequence);
    const int64_t prompt = length > first ? task.prefix_of[sequence] : 0;
    keys = rows(task.prefix_k, prompt * task.prefix_k_prompt, task.prefix_k_head, task.prefix_k_slot);
    values = rows(task.prefix_v, prompt * task.prefix_v_prompt, task.prefix_v_head, task.prefix_v_slot);
  } else {
    first -= plan.prefix_splits * kSplit;
    length = own_length(task, sequence);
    keys = rows(task.k, sequence * task.k_sequence, task.k_head, task.k_slot);
    values = rows(task.v, sequence * task.v_sequence, task.v_head, task.v_slot);
  }
  keys.begin = static_cast<const T*>(keys.begin) + first * keys.stride;
  values.begin = static_cast<const T*>(values.begin) + first * values.stride;
  return length - first < kSplit ? length - first : kSplit;
}

// Every group of kWidth lanes goes over its keys, kAhead at a time; `use` gets each with 16 bytes of its row,
// all lanes of a warp together, also where there is no such key or no such part of it (zeros).
template <typename T, int kWidth, typename Use>
__device__ __forceinline__ void each_key(const Rows& rows, int count, int size, bool aligned, Use use) {
  using P = Piece<T>;
  constexpr int kPerWarp = kLanes / kWidth, kGroups = kThreads / kWidth;
  const int place = lane() / kWidth, offset = lane() % kWidth * P::kCount;
  const T* const begin = static_cast<const T*>(rows.begin) + offset;
  for (int base = warp() * kPerWarp; base < count; base += kGroups * kAhead) {
    P pieces[kAhead];
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      const int key = base + step * kGroups + place;
      pieces[step].clear();
      if (key < count && offset < size) pieces[step].load(begin + key * rows.stride, aligned);
    }
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      float row[P::kCount];
      pieces[step].widen(row);
      use(base + step * kGroups + place, row);
    }
  }
}

// Sums of kCount numbers over kWidth lanes. At each step a lane passes half of them on and keeps the other:
// it ends with the sums [first, first + kLeft), which takes as many shuffles as there are sums, and not
// log2(kWidth) times as many.
template <int kCount, int kWidth>
struct LaneSums {
  static constexpr int kLeft = kCount > kWidth ? kCount / kWidth : 1;
  static constexpr int kCopies = kWidth > kCount ? kWidth / kCount : 1;  // lanes that end with the same ones
  int first;

  __device__ __forceinline__ explicit LaneSums(float (&sums)[kCount]) : first(0) {
    int left = kCount;
#pragma unroll
    for (int offset = kWidth / 2; offset > 0; offset /= 2) {
      if (left == 1) {
        sums[0] += __shfl_xor_sync(kWholeWarp, sums[0], offset);
        continue;
      }
      left /= 2;
      const bool upper = lane() & offset;
      first += upper ? left : 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= left) break;
        const float passed = upper ? sums[i] : sums[i + left];
        sums[i] = (upper ? sums[i + left] : sums[i]) + __shfl_xor_sync(kWholeWarp, passed, offset);
      }
    }
  }
};

// The maximum and the sum of exponentials of one head's scores, which become their exponentials.
template <int kHeads>
__device__ __forceinline__ float2 weigh(float* scores, int count) {
  float top = -INFINITY, total = 0;
  for (int key = lane(); key < count; key += kLanes) top = fmaxf(top, scores[key * kHeads]);
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, offset));
  const float base = top == -INFINITY ? 0.0f : top;
  for (int key = lane(); key < count; key += kLanes) {
    const float weight = expf(scores[key * kHeads] - base);
    scores[key * kHeads] = weight;
    total += weight;
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) total += __shfl_xor_sync(kWholeWarp, total, offset);
  return {top, total};
}

// [B,Hq,splits] of outputs [D], then of maxima and sums.
struct Parts {
  float* outputs;
  float2* statistics;
};
__host__ __device__ __forceinline__ int64_t number_of_parts(const DecodeAttention& task, const Plan& plan) {
  return task.sequences * task.heads * plan.splits;
}

// This lane's 16 bytes of every head's query; zeros past the last head.
template <typename T, int kWidth, int kHeads>
__device__ __forceinline__ void load_queries(const T* begin, int64_t stride, int heads, int size,
                                             bool aligned, float (&q)[kHeads][Piece<T>::kCount]) {
  const int offset = lane() % kWidth * Piece<T>::kCount;
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    Piece<T> piece;
    piece.clear();
    if (head < heads && offset < size) piece.load(begin + head * stride + offset, aligned);
    piece.widen(q[head]);
  }
}

// Adds up, by way of `sums`, what each group found of its keys; heads are `stride` numbers apart.
template <typename T, int kWidth, int kHeads>
__device__ __forceinline__ void store_outputs(const float (&mine)[kHeads][Piece<T>::kCount], float* sums,
                                              int heads, int size, float* outputs, int64_t stride) {
  constexpr int kCount = Piece<T>::kCount, kRow = kWidth * kCount;  // of a group and head
#pragma unroll
  for (int head = 0; head < kHeads; ++head)
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[(head * kThreads + threadIdx.x) * kCount + i] = mine[head][i];
  __syncthreads();
  for (int place = threadIdx.x; place < heads * size; place += kThreads) {
    const int head = place / size, at = place % size;
    float total = 0;
#pragma unroll
    for (int group = 0; group < kThreads / kWidth; ++group)
      total += sums[head * kThreads * kCount + group * kRow + at];
    outputs[head * stride + at] = total;
  }
}

template <typename T, int kWidth, int kHeads>
__global__ void __launch_bounds__(kThreads, 3)
    attend(const __grid_constant__ DecodeAttention task, const __grid_constant__ Plan plan, Parts parts) {
  constexpr int kCount = Piece<T>::kCount;
  alignas(16) __shared__ float scores[kSplit * kHeads];
  alignas(16) __shared__ float sums[kHeads * kThreads * kCount];
  const int size = static_cast<int>(task.size);
  int64_t block = blockIdx.x;
  const int64_t sequence = block % task.sequences;
  block /= task.sequences;
  const int tile = static_cast<int>(block % plan.tiles);
  block /= plan.tiles;
  const int64_t key_head = block % task.key_heads;
  const int split = static_cast<int>(block / task.key_heads);
  Rows keys, values;
  const int count = find<T>(task, plan, sequence, key_head, split, keys, values);
  if (count <= 0) return;
  const int left = plan.group - tile * kHeads, heads = left < kHeads ? left : kHeads;
  const int64_t first_head = key_head * plan.group + tile * kHeads;

  float q[kHeads][kCount];
  const int64_t query = sequence * task.q_sequence + first_head * task.q_head;
  load_queries<T, kWidth, kHeads>(static_cast<const T*>(task.q) + query, task.q_head, heads, size,
                                  plan.aligned, q);
  each_key<T, kWidth>(keys, count, size, plan.aligned, [&](int key, const float(&row)[kCount]) {
    float found[kHeads] = {};
#pragma unroll
    for (int head = 0; head < kHeads; ++head)
#pragma unroll
      for (int i = 0; i < kCount; ++i) found[head] = fmaf(q[head][i], row[i], found[head]);
    const LaneSums<kHeads, kWidth> over_lanes(found);
    if (key >= count || lane() % over_lanes.kCopies != 0) return;
#pragma unroll
    for (int i = 0; i < over_lanes.kLeft; ++i)
      scores[key * kHeads + over_lanes.first + i] = found[i] * task.scale;
  });
  __syncthreads();

  const int64_t part = (sequence * task.heads + first_head) * plan.splits + split;  // of the first head
  for (int head = warp(); head < kHeads; head += kWarps) {
    const float2 found = weigh<kHeads>(scores + head, count);
    if (lane() == 0 && head < heads) parts.statistics[part + head * plan.splits] = found;
  }
  __syncthreads();

  float mine[kHeads][kCount] = {};
  each_key<T, kWidth>(values, count, size, plan.aligned, [&](int key, const float(&row)[kCount]) {
    if (key >= count) return;
#pragma unroll
    for (int head = 0; head < kHeads; ++head)
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        mine[head][i] = fmaf(scores[key * kHeads + head], row[i], mine[head][i]);
  });
  store_outputs<T, kWidth, kHeads>(mine, sums, heads, size, parts.outputs + part * size, plan.splits * size);
}

// A warp takes a head of a sequence.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge(const __grid_constant__ DecodeAttention task, const __grid_constant__ Plan plan, Parts parts) {
  constexpr int kMost = 4;  // of D, a lane
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp();
  if (row >= task.sequences * task.heads) return;
  const int size = static_cast<int>(task.size);
  const int64_t sequence = row / task.heads;
  const int of_prefix = (prefix_length(task, sequence) + kSplit - 1) / kSplit;
  const int count = of_prefix + (own_length(task, sequence) + kSplit - 1) / kSplit;
  const auto part = [&](int i) {
    return row * plan.splits + (i < of_prefix ? i : plan.prefix_splits + i - of_prefix);
  };
  float top = -INFINITY;
  for (int i = 0; i < count; ++i) top = fmaxf(top, parts.statistics[part(i)].x);
  const float base = top == -INFINITY ? 0.0f : top;
  float total = 0, found[kMost] = {};
  for (int i = 0; i < count; ++i) {
    const float2 statistics = parts.statistics[part(i)];
    const float weight = expf(statistics.x - base);
    total = fmaf(weight, statistics.y, total);
#pragma unroll
    for (int step = 0; step < kMost; ++step) {
      const int at = lane() + step * kLanes;
      if (at < size) found[step] = fmaf(weight, parts.outputs[part(i) * size + at], found[step]);
    }
  }
  T* const out = static_cast<T*>(task.out) + row * size;
#pragma unroll
  for (int step = 0; step < kMost; ++step) {
    const int at = lane() + step * kLanes;
    if (at < size) narrow(count ? found[step] / total : 0.0f, out[at]);
  }
}

int splits_of(int64_t slots) { return static_cast<int>((slots + kSplit - 1) / kSplit); }

bool all_aligned(const DecodeAttention& task, int64_t bytes) {
  const void* const pointers[] = {task.q, task.k, task.v, task.prefix_k, task.prefix_v};
  const int64_t strides[] = {
      task.q_sequence,    task.q_head,          task.k_sequence,    task.k_slot,          task.k_head,
      task.v_sequence,    task.v_slot,          task.v_head,        task.prefix_k_prompt, task.prefix_k_slot,
      task.prefix_k_head, task.prefix_v_prompt, task.prefix_v_slot, task.prefix_v_head};
  bool aligned = true;
  for (const void* pointer : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  for (int64_t stride : strides) aligned = aligned && stride * bytes % 16 == 0;
  return aligned;
}

Plan plan_of(const DecodeAttention& task) {
  Plan plan{};
  plan.prefix_splits = task.prompts ? splits_of(task.prefix_slots) : 0;
  plan.splits = plan.prefix_splits + splits_of(task.slots);
  plan.group = static_cast<int>(task.heads / task.key_heads);
  plan.aligned = all_aligned(task, task.dtype == Float::float32 ? 4 : 2);
  return plan;
}

template <typename T, int kWidth, int kHeads>
cudaError_t start(const DecodeAttention& task, Plan plan, const Parts& parts, cudaStream_t stream) {
  plan.tiles = (plan.group + kHeads - 1) / kHeads;
  const int64_t blocks = task.sequences * task.key_heads * plan.tiles * plan.splits;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (blocks > 0) {
    const cudaError_t error = launch(attend<T, kWidth, kHeads>, blocks, kThreads, stream, task, plan, parts);
    if (error != cudaSuccess) return error;
  }
  return launch(merge<T>, (task.sequences * task.heads + kWarps - 1) / kWarps, kThreads, stream, task, plan,
                parts);
}

template <typename T, int kWidth>
cudaError_t with_width(const DecodeAttention& task, const Plan& plan, const Parts& parts,
                       cudaStream_t stream) {
  if (plan.group == 1) return start<T, kWidth, 1>(task, plan, parts, stream);
  return plan.group <= 4 ? start<T, kWidth, 4>(task, plan, parts, stream)
                         : start<T, kWidth, 8>(task, plan, parts, stream);
}

// Lanes that share a row: as many as it has pieces of 16 bytes, or the next power of two.
template <typename T>
cudaError_t with_type(const DecodeAttention& task, const Plan& plan, const Parts& parts,
                      cudaStream_t stream) {
  constexpr int kCount = Piece<T>::kCount;
  if (task.size == 32) return with_width<T, 32 / kCount>(task, plan, parts, stream);
  if (task.size == 64) return with_width<T, 64 / kCount>(task, plan, parts, stream);
  if (task.size == 96 || task.size == 128) return with_width<T, 128 / kCount>(task, plan, parts, stream);
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace rlhf::cuda

extern "C" size_t rlhf_decode_attention_workspace(const rlhf::cuda::DecodeAttention* task) {
  using namespace rlhf::cuda;
  if (task->sequences * task->heads == 0) return 0;
  return number_of_parts(*task, plan_of(*task)) * (task->size * sizeof(float) + sizeof(float2));
}

extern "C" cudaError_t rlhf_decode_attention(const rlhf::cuda::DecodeAttention* task, void* workspace,
                                             cudaStream_t stream) {
  using namespace rlhf::cuda;
  if (task->sequences * task->heads == 0) return cudaSuccess;
  const Plan plan = plan_of(*task);
  float* const outputs = static_cast<float*>(workspace);
  const Parts parts{outputs, reinterpret_cast<float2*>(outputs + number_of_parts(*task, plan) * task->size)};
  switch (task->dtype) {
    case Float::float32:
      return with_type<float>(*task, plan, parts, stream);
    case Float::bfloat16:
      return with_type<__nv_bfloat16>(*task, plan, parts, stream);
    case Float::float16:
      return with_type<__half>(*task, plan, parts, stream);
  }
  return cudaErrorInvalidValue;
}
