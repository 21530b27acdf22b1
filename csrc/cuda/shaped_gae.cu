// Advantages of packed sequences under a shaped reward, in one pass (formula: rlhf_core/kernels/gae.py).
//
// N packed tokens, B sequences, t a token, t⁺ the next valid one. The two recurrences of the formula are one
// in what comes from ahead, U:
//     U_t = γ·V_{t⁺} + γλ·A_{t⁺}     (score + γ·bootstrap at the last valid token)
//     A_t = (r_t − V_t) + U_t
// A valid token takes U to γλ·U + c, c = γλ·(r − V) + γ·V; a masked one leaves it. Such maps compose: they
// scan.
//
// A sequence is cut into tiles of 4 rows of 32 tokens, counted from its end. A warp takes a tile:
//   load     a token a lane and row, so that any offset is read in whole lines; one tile ahead of the scan
//   compute  the map of all later lanes of a row, by shuffles; then of later rows; then of the tile
//   store    kl at once; A and A + V when U of the tile is known
// Many sequences: a warp walks one. Few: eight warps take eight tiles of one and pass their maps through
// shared memory. The arithmetic is the same, so advantages do not depend on what else is in the batch.
//
// 4 rows: up to 16 floats of a lane in flight, and four independent chains of shuffles.

#include "shaped_gae.h"

#include "launch.h"
#include "moments.h"
#include "reduce.h"

namespace rlhf::cuda {
namespace {

constexpr int kRows = 4, kTile = kRows * kLanes;
// Of a processor: 80 registers each, which the kernel needs without spilling.
constexpr int kResident = 768;
constexpr int64_t kMaxBlocks =
    2048;  // more than fit at once on any device; each leaves 24 bytes for the last one

struct Workspace {
  Moments parts[kMaxBlocks];
  unsigned ticket;
};

// U ← slope·U + offset
struct Map {
  float slope, offset;
};
__device__ __forceinline__ Map identity() { return {1, 0}; }
__device__ __forceinline__ float apply(const Map& map, float ahead) {
  return fmaf(map.slope, ahead, map.offset);
}
__device__ __forceinline__ Map after(const Map& outer, const Map& inner) {
  return {outer.slope * inner.slope, apply(outer, inner.offset)};
}

// Nothing is computed from what is loaded, a comparison of the mask neither: it would wait for the load.
struct Tile {
  float value[kRows], reward[kRows], logprob[kRows], reference[kRows];
  unsigned mask[kRows];
  bool there[kRows];
};

__device__ __forceinline__ Tile load(const ShapedGae& task, int first, int begin) {
  Tile tile;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int token = first + row * kLanes + lane();
    const bool there = token >= begin;
    tile.there[row] = there;
    tile.mask[row] = !there ? 0 : task.mask ? task.mask[token] : 1;
    tile.value[row] = there ? task.values[token] : 0.0f;
    tile.reward[row] = there && task.rewards ? task.rewards[token] : 0.0f;
    tile.logprob[row] = there && task.logprobs ? task.logprobs[token] : 0.0f;
    tile.reference[row] = there && task.logprobs ? task.ref_logprobs[token] : 0.0f;
  }
  return tile;
}

// What a tile is to the scan: r − V of each token, the map of all that is later in its tile, and the tile's
// own.
struct Scanned {
  float gap[kRows];
  Map ahead[kRows];
  Map whole;
};

// Each map becomes that of all later lanes of its row, and `whole` that of the row. All rows side by side,
// for a shuffle takes as long as five other instructions.
__device__ __forceinline__ void scan_rows(Map (&maps)[kRows], Map (&whole)[kRows]) {
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const Map later = {__shfl_down_sync(kWholeWarp, maps[row].slope, offset),
                         __shfl_down_sync(kWholeWarp, maps[row].offset, offset)};
      maps[row] = lane() + offset < kLanes ? after(maps[row], later) : maps[row];
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    whole[row] = {__shfl_sync(kWholeWarp, maps[row].slope, 0), __shfl_sync(kWholeWarp, maps[row].offset, 0)};
    const Map later = {__shfl_down_sync(kWholeWarp, maps[row].slope, 1),
                       __shfl_down_sync(kWholeWarp, maps[row].offset, 1)};
    maps[row] = lane() + 1 < kLanes ? later : identity();
  }
}

__device__ __forceinline__ bool valid(const Tile& tile, int row) { return tile.mask[row] != 0; }

// Writes kl, takes its price off the reward, and leaves 0 for whatever is masked.
__device__ __forceinline__ void shape(const ShapedGae& task, int first, Tile& tile) {
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    tile.value[row] = valid(tile, row) ? tile.value[row] : 0.0f;
    tile.reward[row] = valid(tile, row) ? tile.reward[row] : 0.0f;
    float kl = 0;
    if (task.logprobs) kl = kl_term(tile.logprob[row] - tile.reference[row], task.estimator).value;
    kl = valid(tile, row) ? kl : 0.0f;
    if (task.kl_coef != 0) tile.reward[row] = fmaf(-task.kl_coef, kl, tile.reward[row]);  // 0·∞ would be NaN
    if (tile.there[row]) task.kl[first + row * kLanes + lane()] = kl;
  }
}

__device__ __forceinline__ Scanned scan(const ShapedGae& task, const Tile& tile) {
  Scanned scanned;
  Map rows[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const float gap = tile.reward[row] - tile.value[row];
    const Map mine = {task.gamma_lam, fmaf(task.gamma_lam, gap, task.gamma * tile.value[row])};
    scanned.gap[row] = gap;
    scanned.ahead[row] = valid(tile, row) ? mine : identity();
  }
  scan_rows(scanned.ahead, rows);
  scanned.whole = identity();
#pragma unroll
  for (int row = kRows - 1; row >= 0; --row) {
    scanned.ahead[row] = after(scanned.ahead[row], scanned.whole);
    scanned.whole = after(rows[row], scanned.whole);
  }
  return scanned;
}

__device__ __forceinline__ void store(const ShapedGae& task, int first, const Tile& tile,
                                      const Scanned& scanned, float ahead, Samples& samples) {
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int token = first + row * kLanes + lane();
    const float found = scanned.gap[row] + apply(scanned.ahead[row], ahead);
    const float advantage = valid(tile, row) ? found : 0.0f;
    if (tile.there[row]) {
      task.advantages[token] = advantage;
      task.returns[token] = advantage + tile.value[row];
    }
    if (valid(tile, row)) samples.add(advantage);
  }
}

// U at the end of a sequence.
__device__ __forceinline__ float ahead_of_all(const ShapedGae& task, int64_t sequence) {
  const float score = clamp(task.scores[sequence], -task.score_clip, task.score_clip);
  return task.bootstrap ? fmaf(task.gamma, task.bootstrap[sequence], score) : score;
}

// U of this warp's tile; `ahead` becomes that of the next tiles.
template <int kWarps>
__device__ __forceinline__ float pass(const Map& mine, float& ahead, int& turn) {
  float of_tile = ahead;
  if constexpr (kWarps == 1) {
    ahead = apply(mine, ahead);
  } else {
    __shared__ Map maps[2][kWarps];  // two turns, so that one barrier a turn is enough
    turn ^= 1;
    if (lane() == 0) maps[turn][warp()] = mine;
    __syncthreads();
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      of_tile = other == warp() ? ahead : of_tile;
      ahead = apply(maps[turn][other], ahead);
    }
  }
  return of_tile;
}

template <int kWarps>
__global__ void __launch_bounds__(Group<kWarps>::kThreads, kResident / Group<kWarps>::kThreads)
    shaped_gae(const __grid_constant__ ShapedGae task, Workspace* workspace) {
  using G = Group<kWarps>;
  constexpr int kStride = kWarps * kTile;
  Samples samples = {};
  int turn = 0;
  for (int64_t sequence = G::first(); sequence < task.sequences; sequence += G::step()) {
    const Bounds bounds = bounds_of(task.cu_seqlens, sequence, task.tokens);
    int first = bounds.end - (G::rank() / kLanes + 1) * kTile;  // of this warp's tile
    float ahead = ahead_of_all(task, sequence);
    Tile tile = load(task, first, bounds.begin);
    for (int left = bounds.end - bounds.begin; left > 0; left -= kStride) {
      const Tile next = load(task, first - kStride, bounds.begin);
      shape(task, first, tile);
      const Scanned scanned = scan(task, tile);
      store(task, first, tile, scanned, pass<kWarps>(scanned.whole, ahead, turn), samples);
      tile = next;
      first -= kStride;
    }
  }
  Moments moments = samples.moments();
  if (grid_merged<G::kThreads>(moments, workspace->parts, &workspace->ticket)) {
    *task.count = static_cast<int64_t>(moments.count);
    *task.mean = static_cast<float>(moments.mean);
    *task.var = moments.count > 0 ? static_cast<float>(moments.squares / moments.count) : 0.0f;
  }
}

template <int kWarps>
cudaError_t start(const ShapedGae& task, Workspace* workspace, cudaStream_t stream) {
  using G = Group<kWarps>;
  return launch(shaped_gae<kWarps>, blocks_for(task.sequences, G::kGroups, kMaxBlocks), G::kThreads, stream,
                task, workspace);
}

}  // namespace
}  // namespace rlhf::cuda

extern "C" size_t rlhf_shaped_gae_workspace() { return sizeof(rlhf::cuda::Workspace); }

extern "C" cudaError_t rlhf_shaped_gae(const rlhf::cuda::ShapedGae* task, void* workspace,
                                       cudaStream_t stream) {
  using namespace rlhf::cuda;
  Workspace* const space = static_cast<Workspace*>(workspace);
  const cudaError_t error = cudaMemsetAsync(&space->ticket, 0, sizeof(space->ticket), stream);
  if (error != cudaSuccess) return error;
  return warp_each(task->tokens, task->sequences) ? start<1>(*task, space, stream)
                                                  : start<kLong>(*task, space, stream);
}
