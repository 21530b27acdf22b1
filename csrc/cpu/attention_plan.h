// What there is to do for a call of attention: sequences, tiles of queries, chunks of keys; in plain numbers,
// on the host.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../checks.h"
#include "attention.h"

namespace rlhf {

using cpu::Chunk;
using cpu::Sequence;
using cpu::Tile;

struct Seen {  // by the queries [first, last) of a sequence: own keys [begin, end)
  int64_t begin, end;
};

struct AttentionPlan {
  std::vector<Sequence> sequences;
  std::vector<int64_t> first_response,
      last_response;  // of each sequence that is a prompt, among the sequences
  std::vector<Tile> tiles;
  std::vector<int64_t> first_tile;  // [B+1]
  std::vector<Chunk> chunks;
  int64_t blocks = 0, slots = 0, rows = 0;
  double pairs = 0;  // of a query and a key it sees, for one head
  bool causal;
  int64_t window, tile_tokens;

  AttentionPlan(const at::Tensor& cu_seqlens, const MaybeTensor& responses_per_prompt, int64_t tokens,
                bool causal_, int64_t window_, int64_t tile_tokens_)
      : causal(causal_), window(window_), tile_tokens(tile_tokens_) {
    lay_out(cu_seqlens, tokens);
    if (responses_per_prompt.has_value()) join(*responses_per_prompt);
    for (size_t b = 0; b < sequences.size(); ++b) {
      Sequence& s = sequences[b];
      first_tile.push_back(static_cast<int64_t>(tiles.size()));
      const int64_t number = static_cast<int64_t>(b);
      for (int64_t first = 0; first < s.length; first += tile_tokens) tiles.push_back(tile(number, first));
    }
    first_tile.push_back(static_cast<int64_t>(tiles.size()));
    for (size_t b = 0; b < sequences.size(); ++b) cut(static_cast<int64_t>(b));
  }

  // Keys of a chunk: a quarter of a long sequence, so that dQ is summed from few parts. Of the sequence
  // alone, never of how many threads there are.
  static int64_t chunk_keys(int64_t length) {
    const int64_t quarter = (length + 3) / 4;
    return std::max<int64_t>(256, (quarter + cpu::kKeys - 1) / cpu::kKeys * cpu::kKeys);
  }

  // Tiles by falling work.
  std::vector<int64_t> longest_first() const {
    std::vector<int64_t> order(tiles.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return keys_of(a) > keys_of(b); });
    return order;
  }

 private:
  void lay_out(const at::Tensor& cu_seqlens, int64_t tokens) {
    const int32_t* offsets = cu_seqlens.const_data_ptr<int32_t>();
    const int64_t count = cu_seqlens.size(0) - 1;
    TORCH_CHECK_VALUE(offsets[0] == 0, "cu_seqlens: expected to begin with 0, got ", offsets[0]);
    TORCH_CHECK_VALUE(offsets[count] <= tokens, "cu_seqlens: expected to end with at most the ", tokens,
                      " tokens, got ", offsets[count]);
    for (int64_t b = 0; b < count; ++b) {
      const int64_t begin = offsets[b], length = offsets[b + 1] - offsets[b];
      TORCH_CHECK_VALUE(length >= 0, "cu_seqlens: expected non-decreasing offsets, got ", offsets[b],
                        " before ", offsets[b + 1]);
      sequences.push_back({begin, length, 0, 0, blocks, 0});
      blocks += (length + cpu::kKeys - 1) / cpu::kKeys;
    }
    rows = offsets[count];
    first_response.assign(count, 0);
    last_response.assign(count, 0);
  }

  void join(const at::Tensor& responses_per_prompt) {
    const at::Tensor dense = responses_per_prompt.contiguous();
    const int32_t* counts = dense.const_data_ptr<int32_t>();
    int64_t total = dense.size(0);
    for (int64_t p = 0; p < dense.size(0); ++p) {
      TORCH_CHECK_VALUE(counts[p] >= 0, "responses_per_prompt: expected numbers ≥ 0, got ", counts[p]);
      total += counts[p];
    }
    const int64_t count = static_cast<int64_t>(sequences.size());
    TORCH_CHECK_VALUE(total == count, "responses_per_prompt: expected prompts and responses to be ", count,
                      ", got ", total);
    int64_t at = 0;
    for (int64_t p = 0; p < dense.size(0); ++p) {
      const int64_t prompt = at++;
      first_response[prompt] = at;
      for (int64_t r = 0; r < counts[p]; ++r, ++at) {
        sequences[at].prompt = sequences[prompt].begin;
        sequences[at].prompt_length = sequences[prompt].length;
        sequences[at].prompt_block = sequences[prompt].block;
      }
      last_response[prompt] = at;
    }
  }

  // Of `length` keys whose first one has position 0, those that queries at positions [first, last) see.
  Seen seen(int64_t first, int64_t last, int64_t length) const {
    Seen found{0, causal ? std::min(last, length) : length};
    if (window) found.begin = std::clamp<int64_t>(first - window + 1, 0, length);
    if (window) found.end = std::min(found.end, last - 1 + window);
    return {found.begin, std::max(found.end, found.begin)};
  }

  Tile tile(int64_t number, int64_t first) {
    const Sequence& s = sequences[number];
    const int64_t last = std::min(first + tile_tokens, s.length);
    const Seen own = seen(first, last, s.length);
    const Seen prompt = seen(s.prompt_length + first, s.prompt_length + last, s.prompt_length);
    const auto chunks_of = [](const Seen& keys, int64_t length, int64_t& chunk, int64_t& count) {
      const int64_t size = chunk_keys(length);
      chunk = keys.begin / size;
      count = keys.end > keys.begin ? (keys.end - 1) / size + 1 - chunk : 0;
    };
    Tile made{number, first, slots, 0, 0, 0, 0};
    chunks_of(own, s.length, made.own_chunk, made.own_chunks);
    chunks_of(prompt, s.prompt_length, made.prompt_chunk, made.prompt_chunks);
    slots += made.own_chunks + made.prompt_chunks;
    pairs += static_cast<double>(last - first) *
             static_cast<double>(own.end - own.begin + prompt.end - prompt.begin);
    return made;
  }

  void cut(int64_t number) {
    const Sequence& s = sequences[number];
    const int64_t size = chunk_keys(s.length);
    for (int64_t first = 0, chunk = 0; first < s.length; first += size, ++chunk)
      chunks.push_back({number, chunk, first, std::min(size, s.length - first),
                        causal ? first_tile[number] + first / tile_tokens : first_tile[number],
                        first_tile[number + 1], first_tile[first_response[number]],
                        first_tile[last_response[number]]});
  }

  int64_t keys_of(int64_t tile) const {
    const Sequence& s = sequences[tiles[tile].sequence];
    return s.prompt_length + (causal ? std::min(tiles[tile].first + tile_tokens, s.length) : s.length);
  }
};

}  // namespace rlhf
