// Which instruction set the CPU kernels run with: chosen at run time, never by the build host.
//
// A kernel source is compiled once an instruction set, each time with RLHF_ISA naming the namespace its
// functions go to (rlhf::cpu::RLHF_ISA). Such a source includes no C++ library header with inline functions:
// the linker keeps one copy of each of those, and it may be the one with AVX-512 in it.
#pragma once

namespace rlhf::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best that was compiled in and that this processor and its operating system support; RLHF_CPU_ISA lowers
// it.
Isa isa();

const char* name(Isa isa);

}  // namespace rlhf::cpu

#ifdef RLHF_HAVE_AVX2
#define RLHF_ISAS(X) X(baseline) X(avx2) X(avx512)
#else
#define RLHF_ISAS(X) X(baseline)
#endif

// Calls function(...) of the namespace of the instruction set in use.
#ifdef RLHF_HAVE_AVX2
#define RLHF_DISPATCH(function, ...)                                                           \
  (::rlhf::cpu::isa() == ::rlhf::cpu::Isa::avx512 ? ::rlhf::cpu::avx512::function(__VA_ARGS__) \
   : ::rlhf::cpu::isa() == ::rlhf::cpu::Isa::avx2 ? ::rlhf::cpu::avx2::function(__VA_ARGS__)   \
                                                  : ::rlhf::cpu::baseline::function(__VA_ARGS__))
#else
#define RLHF_DISPATCH(function, ...) (::rlhf::cpu::baseline::function(__VA_ARGS__))
#endif
