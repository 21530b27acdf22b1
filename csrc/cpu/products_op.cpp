#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>

#include "products.h"

namespace rlhf::cpu {
namespace {

namespace blas = at::native::cpublas;

void multiply(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
              const float* a, const uint32_t* b, float* c) {
  blas::brgemm(m, n, k, lda, ldb, ldc, add, a, reinterpret_cast<const float*>(b), c, false);
}

void multiply(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const Bf16* a,
              const uint32_t* b, float* c) {
  blas::brgemm(m, n, k, lda, ldb, ldc, add, reinterpret_cast<const at::BFloat16*>(a),
               reinterpret_cast<const at::BFloat16*>(b), c, true);
}

void multiply(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
              const double* a, const uint64_t* b, double* c) {
  // By hand: torch exports no such product for float64, which is there for oracles.
  for (int64_t i = 0; i < m; ++i, c += ldc, a += lda) {
    if (!add) std::fill_n(c, n, 0.0);
    for (int64_t l = 0; l < k; ++l) {
      const double* row = reinterpret_cast<const double*>(b) + l * ldb;
      for (int64_t j = 0; j < n; ++j) c[j] += a[l] * row[j];
    }
  }
}

}  // namespace

template <typename E>
Product<E> product() {
  return &multiply;
}
template Product<float> product<float>();
template Product<Bf16> product<Bf16>();
template Product<double> product<double>();

void release_products() { blas::brgemm_release(); }

bool has_bf16_products() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

}  // namespace rlhf::cpu
