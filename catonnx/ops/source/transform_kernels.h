// Small products, and the three transforms made of them and of the Walsh-Hadamard transform: one TransformKernels for the
// instruction set of the source file that includes this. See transform_rows.h.
#pragma once

#include "transform_outer.h"
#include "transform_rows.h"

namespace catonnx {
namespace {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 6, TILE_COLUMNS = 4;  // vectors of sums that stay in registers
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 6, TILE_COLUMNS = 2;
#elif defined(CATONNX_NEON)
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 4;
#else
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 2;
#endif
static_assert(TILE_ROWS <= MOST_TILE_ROWS, "scratch_floats() counts on it");

// c = a b, where a is [rows, inner] and b is [inner, vectors N]; strides are those of the rows.
template <int rows, int vectors>
inline void tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, float* c,
                 int64_t c_stride) {
  V sums[rows][vectors] = {};
  for (int64_t k = 0; k < inner; ++k) {
    V right[vectors];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * b_stride + j * N);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const float left = a[i * a_stride + k];
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) store(c + i * c_stride + j * N, sums[i][j]);
  }
}

template <int rows>
void multiply_rows(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, int64_t columns,
                   float* c, int64_t c_stride) {
  int64_t at = 0;
  for (; at + TILE_COLUMNS * N <= columns; at += TILE_COLUMNS * N) {
    tile<rows, TILE_COLUMNS>(a, a_stride, b + at, b_stride, inner, c + at, c_stride);
  }
  // The rows of b and c are padded, so the last vector may be a part.
  for (; at < columns; at += N) tile<rows, 1>(a, a_stride, b + at, b_stride, inner, c + at, c_stride);
}

// c = a b for any number of rows.
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows, int64_t inner,
              int64_t columns, float* c, int64_t c_stride) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS) {
    multiply_rows<TILE_ROWS>(a + i * a_stride, a_stride, b, b_stride, inner, columns, c + i * c_stride, c_stride);
  }
  for (; i < rows; ++i) {
    multiply_rows<1>(a + i * a_stride, a_stride, b, b_stride, inner, columns, c + i * c_stride, c_stride);
  }
}

// y_v = (x_v * scale_(v mod period)) matrix, for `count` runs x_v that begin `stride` apart.
template <class From, class To>
void multiply_runs(const From* x, int64_t stride, int64_t count, Scale scale, int64_t period,
                   const float* matrix, int64_t size, float* scratch, To* y, int64_t y_stride) {
  const int64_t width = padded(size);
  float *const in = scratch, *const out = scratch + TILE_ROWS * width;
  int64_t place = 0;  // v mod period
  for (int64_t v = 0; v < count; v += TILE_ROWS) {
    const int64_t rows = count - v < TILE_ROWS ? count - v : TILE_ROWS;
    for (int64_t i = 0; i < rows; ++i) {
      copy(x + (v + i) * stride, scale.from(place * size), size, in + i * width);
      place = place + 1 == period ? 0 : place + 1;
    }
    multiply(in, width, matrix, width, rows, size, size, out, width);
    for (int64_t i = 0; i < rows; ++i) copy(out + i * width, size, y + (v + i) * y_stride);
  }
}

// Where a product may be written at once: in the result, if that is floats.
inline float* in_place(float* y) { return y; }
inline float* in_place(Half*) { return nullptr; }

// y = first^T x, both [outer, inner] with rows of padded(inner).
void multiply_outer(const TransformView& view, const float* x, float* y) {
  const int64_t width = padded(view.inner);
  if (view.kind == Outer::twelve) return outer_twelve(x, width, y);
  if (view.kind == Outer::thirty_six) return outer_thirty_six(x, width, y);
  multiply(view.first, view.outer, x, width, view.outer, view.outer, view.inner, y, width);
}

// One run x [outer, inner]: y = first^T ((x * scale) matrix).
template <class T>
void kronecker_run(const TransformView& view, const T* x, Scale scale, float* scratch, T* y) {
  const int64_t outer = view.outer, inner = view.inner, width = padded(inner);
  float *const half = scratch, *const out = half + outer * width, *const rest = out + outer * width;
  if (view.hadamard && width == inner) {
    hadamard(x, scale, view.run, inner, rest, half);
  } else if (view.hadamard) {
    for (int64_t i = 0; i < outer; ++i) {
      hadamard(x + i * inner, scale.from(i * inner), inner, inner, rest, half + i * width);
    }
  } else {
    multiply_runs(x, inner, outer, scale, outer, view.matrix, inner, rest, half, width);
  }
  float* const whole = width == inner ? in_place(y) : nullptr;
  multiply_outer(view, half, whole == nullptr ? out : whole);
  if (whole != nullptr) return;
  for (int64_t i = 0; i < outer; ++i) copy(out + i * width, inner, y + i * inner);
}

template <class T>
void transform_rows(const TransformView& view, const T* x, int64_t rows, float* scratch, T* y) {
  const int64_t channels = view.channels, runs = channels / view.run, size = view.inner;
  if (view.kind != Outer::none) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t at = 0; at < channels; at += view.run) {
        kronecker_run(view, x + row * channels + at, view.scale.from(at), scratch, y + row * channels + at);
      }
    }
  } else if (view.hadamard) {
    for (int64_t row = 0; row < rows; ++row) {
      hadamard(x + row * channels, view.scale, channels, size, scratch, y + row * channels);
    }
  } else if (view.per_run) {
    for (int64_t i = 0; i < runs; ++i) {
      multiply_runs(x + i * size, channels, rows, view.scale.from(i * size), 1, view.matrix + i * size * padded(size), size,
                    scratch, y + i * size, channels);
    }
  } else {
    multiply_runs(x, size, rows * runs, view.scale, runs, view.matrix, size, scratch, y, size);
  }
}

void widen(const Half* x, int64_t count, float* y) { copy(x, count, y); }
void narrow(const float* x, int64_t count, Half* y) { copy(x, count, y); }

constexpr TransformKernels kernels_here{transform_rows<float>, transform_rows<Half>, widen, narrow};

}  // namespace
}  // namespace catonnx
