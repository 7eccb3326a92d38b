// What both kernels of QuantizedMatMul share. A word of codes holds 8 channels, the even ones in low nibbles: its halves are
// taken as they lie, against activations put into the same order, even channels first. A code c is used as the byte 16 (c - 8),
// which takes one instruction for four; sums are 16 times too large until the end.
#pragma once

#include "cuda.cuh"

namespace catonnx {
namespace {

enum class Kind { float32, float16, bfloat16 };  // types of numbers

struct ProductTask {
  int K;
  int64_t N;
  int64_t row_bytes;  // of a column of the weight: a multiple of 8
  int groups;
  int shift;     // channel k has the scale k >> shift of its column
  int interval;  // a power of two: so many channels are summed in whole numbers
  const uint8_t* codes;
  const void* scales;  // [N, groups]
  Kind kind;           // of scales and y
  const int8_t* a;
  const float* a_scale;
  int64_t rows;
  void* y;
};

constexpr int EVEN = 0x6420, ODD = 0x7531;  // bytes of two words, for __byte_perm
constexpr int UNIT = 8;                     // channels of a word of codes

__device__ __forceinline__ uint32_t even_codes(uint32_t word) { return (word << 4 & 0xf0f0f0f0u) ^ 0x80808080u; }
__device__ __forceinline__ uint32_t odd_codes(uint32_t word) { return (word & 0xf0f0f0f0u) ^ 0x80808080u; }

__device__ __forceinline__ float scale_of(const ProductTask& task, int64_t column, int group) {
  const int64_t at = column * task.groups + group;
  if (task.kind == Kind::float16) return widen(static_cast<const __half*>(task.scales)[at]);
  if (task.kind == Kind::bfloat16) return widen(static_cast<const __nv_bfloat16*>(task.scales)[at]);
  return static_cast<const float*>(task.scales)[at];
}

__device__ __forceinline__ void write(const ProductTask& task, int64_t row, int64_t column, float value) {
  const int64_t at = row * task.N + column;
  if (task.kind == Kind::float16) {
    narrow(value, static_cast<__half*>(task.y)[at]);
  } else if (task.kind == Kind::bfloat16) {
    narrow(value, static_cast<__nv_bfloat16*>(task.y)[at]);
  } else {
    static_cast<float*>(task.y)[at] = value;
  }
}

// Activations `at` to `at + 8` of a row; 0 where there is no channel or no row.
__device__ __forceinline__ uint2 load_unit(const ProductTask& task, int64_t row, int at) {
  if (row >= task.rows || at >= task.K) return make_uint2(0, 0);
  const int8_t* const from = task.a + row * task.K + at;
  if (task.K % UNIT == 0) return *reinterpret_cast<const uint2*>(from);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < UNIT; ++i) {
    if (at + i < task.K) words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(from[i])) << 8 * (i % 4);
  }
  return make_uint2(words[0], words[1]);
}

}  // namespace
}  // namespace catonnx
