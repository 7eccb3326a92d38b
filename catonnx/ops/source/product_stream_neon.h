// Few rows on aarch64: see product_stream.h.
#pragma once

#include "product_neon.h"
#include "product_stream.h"

namespace catonnx {
namespace {

struct Neon {
  using Vector = int32x4_t;
  static constexpr int bytes = 16, columns = 2;

  int64_t length, chunks, count;  // bytes and chunks of a column, and its groups
  int shift;

  explicit Neon(const Product& p)
      : length(row_bytes(p)),
        chunks(ceil_div(length, bytes)),
        count(group_count(p)),
        shift(group_shift(p.group, 2 * bytes)) {}

  template <bool whole>
  static void sums_of_4(const Vector* v, float* out) {
    if (whole) {
      vst1q_f32(out, vcvtq_f32_s32(vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]))));
    } else {
      const float32x4_t left = vpaddq_f32(vreinterpretq_f32_s32(v[0]), vreinterpretq_f32_s32(v[1]));
      const float32x4_t right = vpaddq_f32(vreinterpretq_f32_s32(v[2]), vreinterpretq_f32_s32(v[3]));
      vst1q_f32(out, vpaddq_f32(left, right));
    }
  }

  template <Grouping grouping, int R, int C>
  void tile(const Product& p, const Chunk<bytes>* a, int64_t n, Vector* out) const {
    // Successive chunks have sums of their own where there are registers for it: none has to wait for the one before.
    constexpr int U = R * C <= 2 ? 4 : R * C <= 4 ? 2 : 1;
    constexpr bool channel = grouping == Grouping::channel;
    const int64_t full = length / bytes;
    const uint8_t* codes = p.codes + n * length;
    const float* scales = p.scales + n * count;
    int32x4_t whole[U][R][C];  // of these two one is used
    float32x4_t real[U][R][C];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          whole[u][r][c] = channel && u == 0 ? vld1q_s32(a[(r + 1) * chunks - 1].start) : vdupq_n_s32(0);
          real[u][r][c] = vdupq_n_f32(0);
        }

    // `pairs` are the codes of chunk i of each column; narrow: it has a second group if `second`.
    auto step = [&](int u, int64_t i, const uint8x16_t* pairs, bool second) __attribute__((always_inline)) {
      int8x16_t even[C], odd[C];
      float32x4_t scale[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) {
        even[c] = low_nibbles(pairs[c]);
        odd[c] = high_nibbles(pairs[c]);
        const float* own = scales + c * count;
        if (grouping == Grouping::wide) scale[c] = vdupq_n_f32(own[i >> shift]);
        if (grouping == Grouping::narrow)
          scale[c] = vcombine_f32(vdup_n_f32(own[2 * i]), vdup_n_f32(second ? own[2 * i + 1] : 0));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Chunk<bytes>& x = a[r * chunks + i];
        const int8x16_t x_even = vld1q_s8(x.even), x_odd = vld1q_s8(x.odd);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          const int32x4_t start = channel ? whole[u][r][c] : vld1q_s32(x.start);
          const int32x4_t sum = add_products(start, even[c], x_even, odd[c], x_odd);
          if (channel)
            whole[u][r][c] = sum;
          else
            real[u][r][c] = vfmaq_f32(real[u][r][c], vcvtq_f32_s32(sum), scale[c]);
        }
      }
    };
    auto full_step = [&](int u, int64_t i) __attribute__((always_inline)) {
      uint8x16_t pairs[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) pairs[c] = vld1q_u8(codes + c * length + i * bytes);
      step(u, i, pairs, true);
    };
    int64_t i = 0;
    for (; i + U <= full; i += U)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) full_step(u, i + u);
    for (; i < full; ++i) full_step(0, i);
    if (length % bytes) {  // 8 bytes: row_bytes() is a multiple
      uint8x16_t pairs[C];
      for (int c = 0; c < C; ++c)
        pairs[c] = vcombine_u8(vld1_u8(codes + c * length + full * bytes), vdup_n_u8(0));
      step(0, full, pairs, false);
    }

#pragma GCC unroll 2
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        for (int u = 1; u < U; ++u) {
          whole[0][r][c] = vaddq_s32(whole[0][r][c], whole[u][r][c]);
          real[0][r][c] = vaddq_f32(real[0][r][c], real[u][r][c]);
        }
        out[c * R + r] = channel ? whole[0][r][c] : vreinterpretq_s32_f32(real[0][r][c]);
      }
  }
};

}  // namespace
}  // namespace catonnx
