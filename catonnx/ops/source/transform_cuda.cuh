// Rows that fit into one block: scaled, transformed and rounded in one pass. A thread holds vectors of 8 channels, vector j
// of thread t being number j * threads + t of the row. Walsh-Hadamard stages within a vector are in registers, those
// between the lanes of a warp are shuffles, those between runs of 256 channels go through shared memory, and so does the
// other factor of a Kronecker product.
#pragma once

#include "cuda.cuh"
#include "transform_cuda.h"

namespace catonnx {
namespace {

constexpr int VECTOR = 8;                // channels that a thread loads at once
constexpr int MOST_THREADS = 1024;
constexpr int WARP_CHANNELS = WARP * VECTOR;  // that are transformed without shared memory
constexpr int VECTORS = 2;  // of a thread
constexpr int MOST_CHANNELS = VECTORS * VECTOR * MOST_THREADS;
constexpr int MAXIMA = 2 * WARP;         // words of shared memory for the largest numbers of warps, of two rows

template <class T>
struct RowTask {
  const T* x;  // [rows, channels]
  int64_t rows;
  int channels, inner, outer;  // runs of outer * inner channels
  float factor;
  const T* scale;  // [period, channels], or [1]; null for none
  bool one_scale;
  int64_t period;  // row r is part r % period of what the scale is for
  const T* first;
  int side, step;
};

// The types of transform_cuda.h as CUDA has them.
inline const float* numbers(const float* x) { return x; }
inline float* numbers(float* x) { return x; }
inline const __half* numbers(const Half* x) { return reinterpret_cast<const __half*>(x); }
inline __half* numbers(Half* x) { return reinterpret_cast<__half*>(x); }
inline const __nv_bfloat16* numbers(const Bfloat16* x) { return reinterpret_cast<const __nv_bfloat16*>(x); }
inline __nv_bfloat16* numbers(Bfloat16* x) { return reinterpret_cast<__nv_bfloat16*>(x); }
template <class T>
using Number = std::remove_pointer_t<decltype(numbers(static_cast<T*>(nullptr)))>;

// Where numbers go: to memory as they are, or rounded.
template <class Y>
struct Plain {
  static constexpr bool rounded = false;
  Y* y;
};

struct Rounded {
  static constexpr bool rounded = true;
  int8_t* codes;
  float* scales;
  float levels, clip;
};

// --- 8 channels at a time -------------------------------------------------------------------------------------------

// Channels `at` to `at + 8` of a row; what is not there is 0. Rows are aligned where channels are a multiple of 8.
template <class T>
__device__ __forceinline__ void load_channels(const T* row, int at, int channels, float (&v)[VECTOR]) {
  if (channels % VECTOR == 0 && at < channels) return load(row + at, v);
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) v[i] = at + i < channels ? widen(row[at + i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void load_factors(const RowTask<T>& task, int64_t row, int at, float (&f)[VECTOR]) {
  if (task.scale == nullptr || task.one_scale) {
    const float one = task.scale == nullptr ? 1.0f : widen(task.scale[0]);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) f[i] = one;
  } else {
    const int64_t part = task.period == 1 ? 0 : row % task.period;
    load_channels(task.scale + part * task.channels, at, task.channels, f);
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) f[i] *= task.factor;
}

template <class Y>
__device__ __forceinline__ void store_channels(const float (&v)[VECTOR], Y* row, int at, int channels) {
  if (channels % VECTOR == 0 && at < channels) return store(v, row + at);
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
    if (at + i < channels) narrow(v[i], row[at + i]);
  }
}

// --- the fast Walsh-Hadamard transform ------------------------------------------------------------------------------

template <int COUNT>
__device__ __forceinline__ void stages(float (&v)[COUNT], int widest) {
#pragma unroll
  for (int stride = 1; stride < COUNT; stride *= 2) {
    if (stride < widest) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        if ((i & stride) == 0) {
          const float sum = v[i] + v[i | stride];
          v[i | stride] = v[i] - v[i | stride];
          v[i] = sum;
        }
      }
    }
  }
}

// Stages up to WARP_CHANNELS of the vectors that a warp holds.
__device__ __forceinline__ void stages_of_warp(float (&v)[VECTOR], int inner) {
  stages(v, inner);
#pragma unroll
  for (int lanes = 1; lanes < WARP; lanes *= 2) {
    if (lanes * VECTOR < inner) {
      const float sign = threadIdx.x & lanes ? -1.0f : 1.0f;
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) v[i] = fmaf(sign, v[i], __shfl_xor_sync(ALL_LANES, v[i], lanes));
    }
  }
}

// The stages from `stride` to `stride * RADIX`, of a row in shared memory.
template <int RADIX>
__device__ __forceinline__ void stages_in_shared(float* row, int channels, int stride) {
  for (int item = threadIdx.x; item < channels / RADIX; item += blockDim.x) {
    const int low = item % stride;
    float* const from = row + (item - low) * RADIX + low;
    float v[RADIX];
#pragma unroll
    for (int i = 0; i < RADIX; ++i) v[i] = from[i * stride];
    stages(v, RADIX);
#pragma unroll
    for (int i = 0; i < RADIX; ++i) from[i * stride] = v[i];
  }
  __syncthreads();
}

__device__ __forceinline__ void wide_stages(float* row, int channels, int inner) {
  for (int stride = WARP_CHANNELS; stride < inner;) {
    const int left = inner / stride;
    if (left >= 16) {
      stages_in_shared<16>(row, channels, stride);
      stride *= 16;
    } else if (left == 8) {
      return stages_in_shared<8>(row, channels, stride);
    } else if (left == 4) {
      return stages_in_shared<4>(row, channels, stride);
    } else {
      return stages_in_shared<2>(row, channels, stride);
    }
  }
}

// --- the other factor of a Kronecker product ------------------------------------------------------------------------

// Channels `at` to `at + 8` of first^T x, for every run x [outer, inner] of a row in shared memory.
template <class T>
__device__ __forceinline__ void mix_outer(const RowTask<T>& task, const float* row, int at, float (&v)[VECTOR]) {
  const int run = task.outer * task.inner;
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) v[i] = 0.0f;
  if (at >= task.channels) return;
  if (task.inner % VECTOR == 0) {  // all 8 in one row of x
    const int from = at / run * run, column = (at - from) / task.inner, place = (at - from) % task.inner;
    for (int k = 0; k < task.outer; ++k) {
      const float weight = widen(task.first[static_cast<int64_t>(k) * task.step * task.side + column * task.step]);
      float x[VECTOR];
      load(row + from + k * task.inner + place, x);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) v[i] = fmaf(weight, x[i], v[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
    const int channel = at + i;
    if (channel >= task.channels) break;
    const int from = channel / run * run, column = (channel - from) / task.inner, place = (channel - from) % task.inner;
    for (int k = 0; k < task.outer; ++k) {
      const float weight = widen(task.first[static_cast<int64_t>(k) * task.step * task.side + column * task.step]);
      v[i] = fmaf(weight, row[from + k * task.inner + place], v[i]);
    }
  }
}

// --- rounding -------------------------------------------------------------------------------------------------------

// How the numbers of one row are rounded, see quantize_row.h. The bits of |x| are ordered like |x|, with infinity and then NaN
// on top: none gets lost in a maximum.
struct Rounder {
  __device__ Rounder(const Rounded& out, uint32_t top) : levels(out.levels) {
    scale = out.clip * __uint_as_float(top) / out.levels;
    finite = scale <= 3.402823466e38f;
    if (scale == 0.0f) scale = 1.0f;
    inverse = 1.0f / scale;
    quick = scale > 1e-30f && scale < 1e30f;
  }

  __device__ __forceinline__ uint32_t code(float x) const {
    if (!finite) return 0;
    float v;
    if (quick) {  // the quotient, rounded once: what a division gives, for less
      v = x * inverse;
      v = fmaf(fmaf(-v, scale, x), inverse, v);
    } else {
      v = x / scale;
    }
    v = fminf(fmaxf(v, -levels - 1.0f), levels);
    // Around 1.5 * 2^23 floats are 1 apart: the addition rounds half to even, and the low bits are the whole number.
    return __float_as_uint(v + 12582912.0f) & 0xffu;
  }

  __device__ float written() const { return finite ? scale : __uint_as_float(0x7fc00000u); }

  float levels, scale, inverse;
  bool finite, quick;
};

__device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ __forceinline__ void store_codes(const Rounder& rounder, const float (&v)[VECTOR], int8_t* row, int at,
                                            int channels) {
  if (channels % VECTOR == 0 && at < channels) {
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) words[i / 4] |= rounder.code(v[i]) << 8 * (i % 4);
    *reinterpret_cast<uint2*>(row + at) = make_uint2(words[0], words[1]);
    return;
  }
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
    if (at + i < channels) row[at + i] = static_cast<int8_t>(rounder.code(v[i]));
  }
}

// The largest `own` of all threads of the block. `maxima` is used by the rows before the last and after the next too.
__device__ __forceinline__ uint32_t largest_of_block(uint32_t own, uint32_t* maxima) {
  const int lane = threadIdx.x % WARP;
  own = __reduce_max_sync(ALL_LANES, own);
  if (lane == 0) maxima[threadIdx.x / WARP] = own;
  __syncthreads();
  return __reduce_max_sync(ALL_LANES, lane < static_cast<int>(blockDim.x) / WARP ? maxima[lane] : 0u);
}

// --- rows -----------------------------------------------------------------------------------------------------------

inline bool through_shared(int64_t inner, int64_t outer) { return inner > WARP_CHANNELS || outer > 1; }

// Threads are whole warps.
template <class T, class Out>
__global__ void __launch_bounds__(MOST_THREADS) rows_kernel(RowTask<T> task, Out out) {
  uint32_t* const maxima = reinterpret_cast<uint32_t*>(shared_memory());
  float* const shared = reinterpret_cast<float*>(maxima + MAXIMA);
  const bool wide = task.inner > WARP_CHANNELS, kronecker = task.outer > 1;
  const auto place = [](int j) { return static_cast<int>((j * blockDim.x + threadIdx.x) * VECTOR); };
  uint32_t turn = 0;
  for (int64_t row = blockIdx.x; row < task.rows; row += gridDim.x) {
    const T* const x = task.x + row * task.channels;
    float v[VECTORS][VECTOR];
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
      float factors[VECTOR];
      load_channels(x, place(j), task.channels, v[j]);
      load_factors(task, row, place(j), factors);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) v[j][i] *= factors[i];
      stages_of_warp(v[j], task.inner);
    }
    if (wide || kronecker) {
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) store_channels(v[j], shared, place(j), task.channels);
      __syncthreads();
      if (wide) wide_stages(shared, task.channels, task.inner);
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) {
        if (kronecker) {
          mix_outer(task, shared, place(j), v[j]);
        } else {
          load_channels(shared, place(j), task.channels, v[j]);
        }
      }
      if (kronecker) __syncthreads();  // others read what the next row overwrites
    }
    if constexpr (Out::rounded) {
      uint32_t top = 0;
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) top = max(top, magnitude(v[j][i]));
      }
      const Rounder rounder(out, largest_of_block(top, maxima + turn * WARP));
      turn ^= 1;
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) {
        store_codes(rounder, v[j], out.codes + row * task.channels, place(j), task.channels);
      }
      if (threadIdx.x == 0) out.scales[row] = rounder.written();
    } else {
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) store_channels(v[j], out.y + row * task.channels, place(j), task.channels);
    }
  }
}

}  // namespace
}  // namespace catonnx
