// Activations of one row as steps of 4 channels, for the kernels that take many rows: the even and then the odd channels
// of each run of 8. 16 channels at a time: never of two groups.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include <cstring>

#include "product_kernels.h"

namespace catonnx {
namespace {

#if defined(__aarch64__)
using Sixteen = int8x16_t;
using Sums4 = int32x4_t;

inline Sixteen load_16(const int8_t* from) { return vld1q_s8(from); }

inline void store_steps(Sixteen x, int8_t* to) {
  const uint8x16_t apart = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  vst1q_s8(to, vqtbl1q_s8(x, apart));
}

inline Sums4 no_sums() { return vdupq_n_s32(0); }
inline Sums4 add_up(Sums4 sums, Sixteen x) { return vpadalq_s16(sums, vpaddlq_s8(x)); }
inline int32_t eight_times(Sums4 sums) { return 8 * vaddvq_s32(sums); }
#else
using Sixteen = __m128i;
using Sums4 = __m128i;

inline Sixteen load_16(const int8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

inline void store_steps(Sixteen x, int8_t* to) {
  const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(x, apart));
}

inline Sums4 no_sums() { return _mm_setzero_si128(); }
inline Sums4 add_up(Sums4 sums, Sixteen x) {
  const __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi8(8), x);
  return _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
}
inline int32_t eight_times(Sums4 sums) {  // they are already
  const __m128i pairs = _mm_hadd_epi32(sums, sums);
  return _mm_cvtsi128_si32(_mm_hadd_epi32(pairs, pairs));
}
#endif

// Channels [k, k + 16) of a row of K, 0 beyond.
inline Sixteen load_some(const int8_t* row, int64_t k, int64_t K) {
  if (K - k >= 16) return load_16(row + k);
  alignas(16) int8_t some[16] = {};
  if (K > k) std::memcpy(some, row + k, static_cast<size_t>(K - k));
  return load_16(some);
}

}  // namespace
}  // namespace catonnx
