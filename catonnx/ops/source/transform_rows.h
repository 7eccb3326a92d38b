// Vectors and the fast Walsh-Hadamard transform, written once for vectors of N floats; each instruction set compiles them in a source
// file of its own. Everything here has internal linkage and nothing comes from the standard library: an inline function
// that two instruction sets share would be linked once, for one of them.
//
// A run of channels is loaded once, scaled, transformed in registers and stored once. The Walsh-Hadamard transform of 2^k
// channels takes k stages v_i, v_j -> v_i + v_j, v_i - v_j with j = i + stride; strides within one vector are shuffles.
#pragma once

#include "transform.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(CATONNX_NEON)
#include <arm_neon.h>
#endif

namespace catonnx {
namespace {

#if defined(__AVX512F__)
constexpr int N = 16;
constexpr int REGISTERS = 16;  // vectors of a run that are transformed in registers at a time; a power of two
#elif defined(__AVX2__)
constexpr int N = 8;
constexpr int REGISTERS = 8;
#elif defined(CATONNX_NEON)
constexpr int N = 4;
constexpr int REGISTERS = 16;
#else
constexpr int N = 4;
constexpr int REGISTERS = 8;
#endif

typedef float V __attribute__((vector_size(4 * N)));
typedef float Unaligned __attribute__((vector_size(4 * N), aligned(4), may_alias));

// --- vectors in memory ----------------------------------------------------------------------------------------------

inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }

#if defined(__AVX512F__)
// The forms with a mask, for those without one make g++ 12 warn of its own headers.
inline V load(const Half* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(Half* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
inline V load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store(Half* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(CATONNX_NEON)
inline V load(const Half* p) { return (V)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
inline void store(Half* p, V v) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }
#else
union Bits {
  uint32_t integer;
  float number;
};

inline float widened(Half half) {
  const Bits two_to_112 = {(127u + 112u) << 23};
  Bits value = {(half.bits & 0x7fffu) << 13};  // exponent and mantissa in place, the exponent 112 too small
  if (value.integer >= 0x7c00u << 13) {
    value.integer |= 0x7f800000u;  // infinity or not a number
  } else {
    value.number *= two_to_112.number;  // exact, for subnormal numbers too
  }
  value.integer |= (half.bits & 0x8000u) << 16;
  return value.number;
}

inline Half narrowed(float number) {  // to nearest, ties to even
  Bits value;
  value.number = number;
  const uint32_t sign = value.integer >> 16 & 0x8000u;
  value.integer &= 0x7fffffffu;
  if (value.integer > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (value.integer >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (value.integer < 0x38800000u) {  // becomes subnormal: adding 0.5 rounds at 2^-24
    value.number += 0.5f;
    return {static_cast<uint16_t>(sign | (value.integer - 0x3f000000u))};
  }
  value.integer += 0xfffu + (value.integer >> 13 & 1u) - (112u << 23);
  return {static_cast<uint16_t>(sign | value.integer >> 13)};
}

inline V load(const Half* p) {
  V v;
  for (int i = 0; i < N; ++i) v[i] = widened(p[i]);
  return v;
}
inline void store(Half* p, V v) {
  for (int i = 0; i < N; ++i) p[i] = narrowed(v[i]);
}
#endif

// The first `count` of N lanes; the others are 0.
template <class T>
inline V load_some(const T* p, int64_t count) {
  T whole[N] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
  return load(whole);
}
template <class T>
inline void store_some(T* p, V v, int64_t count) {
  T whole[N];
  store(whole, v);
  for (int64_t i = 0; i < count; ++i) p[i] = whole[i];
}

static_assert(REGISTERS * N <= SAME, "so far a Scale is read at once");

// y = x, converted; x times scale if there is one.
template <class From, class To>
inline void copy(const From* x, Scale scale, int64_t count, To* y) {
  const bool scaled = scale.numbers != nullptr;
  int64_t i = 0;
  for (; i + N <= count; i += N) store(y + i, scaled ? load(x + i) * load(scale.from(i).numbers) : load(x + i));
  if (i == count) return;
  const V v = load_some(x + i, count - i);
  store_some(y + i, scaled ? v * load_some(scale.from(i).numbers, count - i) : v, count - i);
}
template <class From, class To>
inline void copy(const From* x, int64_t count, To* y) {
  copy(x, Scale{nullptr, true}, count, y);
}

// --- Walsh-Hadamard -------------------------------------------------------------------------------------------------

// Lane i of the result is lane i ^ stride of v.
template <int s>
inline V swapped(V v) {
#if defined(__clang__) && defined(__AVX512F__)
  return __builtin_shufflevector(v, v, 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s, 8 ^ s, 9 ^ s, 10 ^ s,
                                 11 ^ s, 12 ^ s, 13 ^ s, 14 ^ s, 15 ^ s);
#elif defined(__clang__) && defined(__AVX2__)
  return __builtin_shufflevector(v, v, 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s);
#elif defined(__clang__)
  return __builtin_shufflevector(v, v, 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s);
#else
  typedef int32_t Lanes __attribute__((vector_size(4 * N)));
  Lanes partner;
  for (int i = 0; i < N; ++i) partner[i] = i ^ s;
  return __builtin_shuffle(v, partner);
#endif
}

template <int stride>
inline V stage(V v) {
  V sign;
  for (int i = 0; i < N; ++i) sign[i] = i & stride ? -1.0f : 1.0f;
  return swapped<stride>(v) + sign * v;
}

// All stages within vectors of which `width` neighbouring lanes belong together.
template <int width>
inline V within(V v) {
  static_assert(width <= N, "a run of several vectors has stages between them too");
  if constexpr (width > 1) v = stage<1>(v);
  if constexpr (width > 2) v = stage<2>(v);
  if constexpr (width > 4) v = stage<4>(v);
  if constexpr (width > 8) v = stage<8>(v);
  return v;
}

// The stages between `count` vectors.
template <int count>
inline void between(V* v) {
#pragma GCC unroll 8
  for (int stride = 1; stride < count; stride *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) {
      if (i & stride) continue;
      const V sum = v[i] + v[i + stride];
      v[i + stride] = v[i] - v[i + stride];
      v[i] = sum;
    }
  }
}

// `count` vectors that lie one behind the other.
template <int count, class From, class To>
inline void transform_near(const From* x, const float* scale, To* y) {
  V v[count];
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) v[i] = load(x + i * N) * load(scale + i * N);
  between<count>(v);
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i) store(y + i * N, within<N>(v[i]));
}

// Stages between `count` vectors that lie `stride` floats apart, for all vectors of the first `stride` floats. Meanwhile
// as many numbers from `next` on are fetched, if there is one: what is read in passes no prefetcher fetches early enough.
template <int count, class Next, class To>
inline void transform_far(const float* x, int64_t stride, const Next* next, To* y) {
  for (int64_t at = 0; at < stride; at += N) {
    V v[count];
    if (next != nullptr) {
#pragma GCC unroll 16
      for (int i = 0; i < count; ++i) __builtin_prefetch(next + at * count + i * N, 0, 2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) v[i] = load(x + i * stride + at);
    between<count>(v);
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) store(y + i * stride + at, v[i]);
  }
}

template <class Next, class To>
void transform_far(int64_t count, const float* x, int64_t stride, const Next* next, To* y) {
  switch (count) {
    case 2: return transform_far<2>(x, stride, next, y);
    case 4: return transform_far<4>(x, stride, next, y);
    case 8: return transform_far<8>(x, stride, next, y);
    default: return transform_far<REGISTERS>(x, stride, next, y);
  }
}

// Where floats may stand in between: in the result if that is floats, so that memory is written in order.
inline float* between_passes(float* y, float*) { return y; }
inline float* between_passes(Half*, float* scratch) { return scratch; }

// Runs that are wider than what the registers hold.
template <class From, class To>
void hadamard_wide(const From* x, Scale scale, int64_t run, float* scratch, To* y) {
  float* const work = between_passes(y, scratch);
  int64_t stride = REGISTERS * N;
  for (int64_t at = 0; at < run; at += stride) transform_near<REGISTERS>(x + at, scale.from(at).numbers, work + at);
  while (stride < run) {
    const int64_t count = run / stride < REGISTERS ? run / stride : REGISTERS, group = stride * count;
    if (group == run) {
      transform_far(count, work, stride, x + run, y);
    } else {
      for (int64_t at = 0; at < run; at += group) {
        transform_far(count, work + at, stride, static_cast<From*>(nullptr), work + at);
      }
    }
    stride = group;
  }
}

template <int count, class From, class To>
void hadamard_near(const From* x, Scale scale, int64_t channels, To* y) {
  for (int64_t at = 0; at < channels; at += count * N) transform_near<count>(x + at, scale.from(at).numbers, y + at);
}

// Runs that are narrower than a vector.
template <int width, class From, class To>
void hadamard_narrow(const From* x, Scale scale, int64_t channels, To* y) {
  int64_t at = 0;
  for (; at + N <= channels; at += N) {
    store(y + at, within<width>(load(x + at) * load(scale.from(at).numbers)));
  }
  const int64_t left = channels - at;
  if (left == 0) return;
  store_some(y + at, within<width>(load_some(x + at, left) * load_some(scale.from(at).numbers, left)), left);
}

// All runs of one row.
template <class From, class To>
void hadamard(const From* x, Scale scale, int64_t channels, int64_t run, float* scratch, To* y) {
  if (run == 1) return hadamard_narrow<1>(x, scale, channels, y);
  if (run == 2) return hadamard_narrow<2>(x, scale, channels, y);
  if (run == 4) return hadamard_narrow<4>(x, scale, channels, y);
  if constexpr (N == 16) {
    if (run == 8) return hadamard_narrow<8>(x, scale, channels, y);
  }
  switch (run / N) {
    case 1: return hadamard_near<1>(x, scale, channels, y);
    case 2: return hadamard_near<2>(x, scale, channels, y);
    case 4: return hadamard_near<4>(x, scale, channels, y);
    case 8: return hadamard_near<8>(x, scale, channels, y);
    default: break;
  }
  if constexpr (REGISTERS == 16) {
    if (run == 16 * N) return hadamard_near<16>(x, scale, channels, y);
  }
  for (int64_t at = 0; at < channels; at += run) hadamard_wide(x + at, scale.from(at), run, scratch, y + at);
}

}  // namespace
}  // namespace catonnx
