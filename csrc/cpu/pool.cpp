#include "pool.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <mutex>

namespace rlhf {
namespace {

constexpr size_t kPage = size_t{1} << 21;  // a huge page; what blocks are rounded up to, so that sizes meet again
constexpr size_t kSmallest = size_t{1} << 20;
constexpr size_t kKept = size_t{1} << 28;  // bytes that wait here at most

class Pool {
 public:
  void* take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (const auto found = free_.find(bytes); found != free_.end()) {
        void* block = found->second;
        free_.erase(found);
        kept_ -= bytes;
        report(block, static_cast<int64_t>(bytes));
        return block;
      }
    }
    void* block = aligned_alloc(kPage, bytes);
    TORCH_CHECK(block != nullptr, "out of memory: cannot allocate ", bytes, " bytes");
#ifdef MADV_HUGEPAGE
    madvise(block, bytes, MADV_HUGEPAGE);  // advice: where it is not taken, nothing is lost
#endif
    report(block, static_cast<int64_t>(bytes));
    return block;
  }

  void give(void* block, size_t bytes) {
    report(block, -static_cast<int64_t>(bytes));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + bytes <= kKept) {
        free_.emplace(bytes, block);
        kept_ += bytes;
        return;
      }
    }
    free(block);
  }

 private:
  // torch's profiler shows what tensors hold, as it does of torch's own allocator.
  static void report(void* block, int64_t bytes) {
    if (c10::memoryProfilingEnabled()) c10::reportMemoryUsageToProfiler(block, bytes, 0, 0, at::kCPU);
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  size_t kept_ = 0;
};

Pool& pool() {
  static Pool* const one = new Pool;  // never destroyed: tensors may outlive any order of exit
  return *one;
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t wanted = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (wanted < kSmallest) return at::empty(sizes, options);
  const size_t bytes = (wanted + kPage - 1) / kPage * kPage;
  void* block = pool().take(bytes);
  return at::from_blob(block, sizes, [bytes](void* p) { pool().give(p, bytes); }, options);
}

at::Tensor pooled_like(const at::Tensor& x) { return pooled_empty(x.sizes(), x.options()); }

char* thread_scratch(int64_t bytes) {
  struct Block {
    char* memory = nullptr;
    int64_t bytes = 0;
    ~Block() { free(memory); }
  };
  static thread_local Block block;
  if (block.bytes < bytes) {
    free(block.memory);
    block.bytes = (bytes + 4095) / 4096 * 4096;
    block.memory = static_cast<char*>(aligned_alloc(64, block.bytes));
    TORCH_CHECK(block.memory != nullptr, "out of memory: cannot allocate ", block.bytes, " bytes");
  }
  return block.memory;
}

}  // namespace rlhf
