// What the kernels for aarch64 share. With the dot-product instruction where the file is compiled for it; without, sums
// of 16 bits: a product of a code (0 to 15) and an activation (-128 to 127) is at most 1920 in magnitude.
#pragma once

#include <arm_neon.h>

#include "product_kernels.h"

namespace catonnx {
namespace {

inline int8x16_t low_nibbles(uint8x16_t v) { return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))); }
inline int8x16_t high_nibbles(uint8x16_t v) { return vreinterpretq_s8_u8(vshrq_n_u8(v, 4)); }

// Lane i: sum + the products of bytes 4 i to 4 i + 3 of the codes and of x, even and odd.
inline int32x4_t add_products(int32x4_t sum, int8x16_t even, int8x16_t x_even, int8x16_t odd, int8x16_t x_odd) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(vdotq_s32(sum, even, x_even), odd, x_odd);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(even), vget_low_s8(x_even)), high = vmull_high_s8(even, x_even);
  const int16x8_t left = vmlal_s8(low, vget_low_s8(odd), vget_low_s8(x_odd));
  return vpadalq_s16(sum, vpaddq_s16(left, vmlal_high_s8(high, odd, x_odd)));  // of four products: at most 7680
#endif
}

}  // namespace
}  // namespace catonnx
