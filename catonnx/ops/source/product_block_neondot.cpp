#include "product_block_neon.h"

namespace catonnx {
namespace {

// The 4 channels of R rows, 4 rows to a vector: the instruction takes one lane of it for all columns.
template <int R>
inline int8x16_t load_rows(const int8_t* a) {
  if constexpr (R >= 4) return vld1q_s8(a);
  const auto* words = reinterpret_cast<const int32_t*>(a);
  int32x4_t x = vdupq_n_s32(0);
  if constexpr (R == 1) x = vld1q_lane_s32(words, x, 0);
  if constexpr (R >= 2) x = vcombine_s32(vld1_s32(words), vdup_n_s32(0));
  if constexpr (R == 3) x = vld1q_lane_s32(words + 2, x, 2);
  return vreinterpretq_s8_s32(x);
}

struct NeonDot : NeonPanel {
  static constexpr int tile_rows = 6;

  // One step: the sums of row r and of those behind it.
  template <int r, int R>
  static void add_step(int32x4_t (*sum)[2], int8x16_t left, int8x16_t right, const int8x16_t* x) {
    if constexpr (r < R) {
      sum[r][0] = vdotq_laneq_s32(sum[r][0], left, x[r / 4], r % 4);
      sum[r][1] = vdotq_laneq_s32(sum[r][1], right, x[r / 4], r % 4);
      add_step<r + 1, R>(sum, left, right, x);
    }
  }

  template <int R>
  static void tile(const Panel<NeonDot>& panel, const Rows& rows, const int32_t* starts, int64_t columns) {
    const auto* codes = reinterpret_cast<const int8_t*>(panel.codes);
    const float* scales = panel.scales;
    const int8_t* a = rows.tiles;
    float32x4_t real[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) real[r][0] = real[r][1] = vdupq_n_f32(0);
    for (int64_t g = 0, step = 0; g < panel.groups; ++g, scales += 8) {
      int32x4_t sum[R][2];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = vdupq_n_s32(starts[g * R + r]);
      const int64_t end = smaller(panel.steps, step + panel.group_steps);
      do {
        const int8x16_t left = vld1q_s8(codes), right = vld1q_s8(codes + 16);
        int8x16_t x[2] = {load_rows<R>(a)};
        if constexpr (R > 4) x[1] = load_rows<R - 4>(a + 16);
        add_step<0, R>(sum, left, right, x);
        codes += 32;
        a += R * 4;
      } while (++step < end);
      const float32x4_t left = vld1q_f32(scales), right = vld1q_f32(scales + 4);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        real[r][0] = vfmaq_f32(real[r][0], vcvtq_f32_s32(sum[r][0]), left);
        real[r][1] = vfmaq_f32(real[r][1], vcvtq_f32_s32(sum[r][1]), right);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      store_columns(rows.y + r * rows.stride, columns, vmulq_n_f32(real[r][0], rows.scale[r]),
                    vmulq_n_f32(real[r][1], rows.scale[r]));
  }
};

}  // namespace

const Kernel block_neondot = block_kernel<NeonDot>;

}  // namespace catonnx
