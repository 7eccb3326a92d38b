// A product of a code (0 to 15) and an activation (-128 to 127) is at most 1920 in magnitude: sums of 16 steps stay
// within 30720 before they are widened to 32 bits, and nothing can overflow.
#include "product_block_neon.h"

namespace catonnx {
namespace {

constexpr int64_t widen_every = 16;

struct Neon : NeonPanel {
  static constexpr int tile_rows = 4;

  template <int R>
  static void tile(const Panel<Neon>& panel, const Rows& rows, const int32_t* starts, int64_t columns) {
    const auto* codes = reinterpret_cast<const int8_t*>(panel.codes);
    const float* scales = panel.scales;
    const int8_t* a = rows.tiles;
    // Half of the registers hold the sums of 16 bits, [row][2 columns]; these wait in the first-level cache.
    float32x4_t real[R][2];
    int32x4_t whole[R][2];
    for (int r = 0; r < R; ++r) real[r][0] = real[r][1] = vdupq_n_f32(0);
    for (int64_t g = 0, step = 0; g < panel.groups; ++g, scales += 8) {
      for (int r = 0; r < R; ++r) whole[r][0] = whole[r][1] = vdupq_n_s32(starts[g * R + r]);
      const int64_t group_end = smaller(panel.steps, step + panel.group_steps);
      while (step < group_end) {
        int16x8_t sum[R][4];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int c = 0; c < 4; ++c) sum[r][c] = vdupq_n_s16(0);
        const int64_t end = smaller(group_end, step + widen_every);
        do {
          const int8x16_t left = vld1q_s8(codes), right = vld1q_s8(codes + 16);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, a + r * 4, 4);
            const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
            sum[r][0] = vmlal_s8(sum[r][0], vget_low_s8(left), vget_low_s8(x));
            sum[r][1] = vmlal_high_s8(sum[r][1], left, x);
            sum[r][2] = vmlal_s8(sum[r][2], vget_low_s8(right), vget_low_s8(x));
            sum[r][3] = vmlal_high_s8(sum[r][3], right, x);
          }
          codes += 32;
          a += R * 4;
        } while (++step < end);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            const int32x4_t pairs = vpaddq_s32(vpaddlq_s16(sum[r][2 * h]), vpaddlq_s16(sum[r][2 * h + 1]));
            whole[r][h] = vaddq_s32(whole[r][h], pairs);
          }
      }
      for (int r = 0; r < R; ++r)
        for (int h = 0; h < 2; ++h)
          real[r][h] = vfmaq_f32(real[r][h], vcvtq_f32_s32(whole[r][h]), vld1q_f32(scales + 4 * h));
    }
    for (int r = 0; r < R; ++r)
      store_columns(rows.y + r * rows.stride, columns, vmulq_n_f32(real[r][0], rows.scale[r]),
                    vmulq_n_f32(real[r][1], rows.scale[r]));
  }
};

}  // namespace

const Kernel block_neon = block_kernel<Neon>;

}  // namespace catonnx
