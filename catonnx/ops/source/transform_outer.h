// Two Hadamard matrices as left factors of a Kronecker product, each as a few sums of whole vectors; see outer_kind().
#pragma once

#include "transform_rows.h"

namespace catonnx {
namespace {

// y = 12 rows x [12, width], mixed. Blocks of 3 rows: a block on the diagonal is J, one beside it a sign times J - 2 I. So
// with v_r = sum_b sign_br x_b for each place in the blocks: y_r = sum of v_r over the places + 2 (x_r - v_r).
inline void outer_twelve(const float* x, int64_t width, float* y) {
  for (int64_t at = 0; at < width; at += N) {
    V totals[4], rest[3][4];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      V own[4];
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) own[b] = load(x + (3 * b + i) * width + at);
      const V sum = own[0] + own[1], difference = own[0] - own[1];
      const V other = own[2] + own[3], change = own[2] - own[3];
      const V mixed[4] = {difference - other, sum + change, difference + other, sum - change};
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        totals[b] = i == 0 ? mixed[b] : totals[b] + mixed[b];
        rest[i][b] = own[b] - mixed[b];
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) store(y + (3 * b + i) * width + at, totals[b] + 2.0f * rest[i][b]);
    }
  }
}

inline void next_letters(V* letters) {
  const V first = letters[0];
#pragma GCC unroll 5
  for (int j = 0; j < 5; ++j) letters[j] = letters[j + 1];
  letters[5] = first;
}

// y = 36 rows x [36, width], mixed. They are the cells of a square of 6 x 6: J - 2 (R + C + L - 3 I), where R, C and L sum over a
// cell's row, its column and the cells of its letter (row + column) mod 6. The letters of a row are those of the one before,
// moved on by one: so the code of one row is that of all, and its addresses stay in registers.
inline void outer_thirty_six(const float* x, int64_t width, float* y) {
  for (int64_t at = 0; at < width; at += N) {
    V rows[6], total = {}, columns[6] = {}, letters[6] = {};
    const float* from = x + at;
#pragma GCC unroll 1
    for (int i = 0; i < 6; ++i, from += 6 * width) {
      V sum = {};
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        const V cell = load(from + j * width);
        sum += cell;
        columns[j] += cell;
        letters[j] += cell;
      }
      rows[i] = sum;
      total += sum;
      next_letters(letters);
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      columns[i] = total - 2.0f * columns[i];
      letters[i] *= -2.0f;
    }
    from = x + at;
    float* to = y + at;
#pragma GCC unroll 1
    for (int i = 0; i < 6; ++i, from += 6 * width, to += 6 * width) {
      const V row = -2.0f * rows[i];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        store(to + j * width, (row + columns[j]) + (letters[j] + 6.0f * load(from + j * width)));
      }
      next_letters(letters);
    }
  }
}

}  // namespace
}  // namespace catonnx
