#pragma once

#include <ATen/core/Tensor.h>

namespace rlhf {

// An uninitialised dense tensor like x. A large one lies in memory that an earlier one left, where there is some.
//
// Fresh memory costs a page fault every 4 KiB: of 16 ms that shaped_gae took for 4 M tokens on two cores, 11 (measured).
// malloc gives large blocks back to the system at once, and torch's CPU allocator is malloc.
at::Tensor pooled_like(const at::Tensor& x);
at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options);

// At least so many bytes that are this thread's own until it asks again; they stay with it.
char* thread_scratch(int64_t bytes);

}  // namespace rlhf
