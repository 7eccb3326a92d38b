// QuantizedMatMul on CUDA devices, without ONNX Runtime. All pointers are to the device, all work goes to `stream`.
#pragma once

#include <cstdint>

#include "transform_cuda.h"

namespace catonnx {

// A weight as product.h has it, its scales as the operator takes them.
template <class T>
struct CudaProduct {
  int64_t K, N, group;
  const uint8_t* codes;
  const T* scales;  // [N, G]
  bool channels;    // all groups of a column have the scale of its first: the sum over K is one whole number
};

// y [rows, N] from a int8 [rows, K] and a_scale [rows].
template <class T>
Problem multiply(const CudaProduct<T>& product, const int8_t* a, const float* a_scale, int64_t rows, T* y, Stream stream);

}  // namespace catonnx
