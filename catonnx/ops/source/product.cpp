#include "product.h"

#include <algorithm>

#include "memory.h"
#include "product_kernels.h"

namespace catonnx {
namespace {

thread_local Kept scratch;

// Any machine: one column at a time, its codes as bytes.
void multiply_portable(const Product& p, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch) {
  const int64_t groups = group_count(p), bytes = row_bytes(p);
  int8_t* column = reinterpret_cast<int8_t*>(scratch);
  for (int64_t n = first; n < last; ++n) {
    const uint8_t* codes = p.codes + n * bytes;
    for (int64_t i = 0; i < bytes; ++i) {
      column[2 * i] = static_cast<int8_t>((codes[i] & 15) - 8);
      column[2 * i + 1] = static_cast<int8_t>((codes[i] >> 4) - 8);
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      float total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const int8_t *x = rows.tiles + r * p.K + g * p.group, *w = column + g * p.group;
        const int64_t width = smaller(p.group, p.K - g * p.group);
        int32_t sum = 0;
        for (int64_t k = 0; k < width; ++k) sum += x[k] * w[k];
        total += p.scales[n * groups + g] * static_cast<float>(sum);
      }
      rows.y[r * rows.stride + n - first] = rows.scale[r] * total;
    }
  }
}

void copy_rows(const Product& p, const int8_t* a, int64_t rows, int8_t* to) { std::copy(a, a + rows * p.K, to); }

constexpr Kernel portable = {1, 1, [](const Product& p) { return p.K; }, [](const Product& p) { return 2 * row_bytes(p); },
                             copy_rows, multiply_portable};

constexpr int64_t few_rows = 8;  // "stream" is faster up to here, or up to 16 where K is small and memory slow

const Kernel& kernel(Isa isa, int64_t rows) {
  const bool few = rows <= few_rows;
  switch (isa) {
#if defined(__x86_64__)
#if !defined(CATONNX_WITHOUT_AMX)
    case Isa::amx: return few ? stream_avx512vnni : block_amx;
#endif
    case Isa::avx512vnni: return few ? stream_avx512vnni : block_avx512vnni;
    case Isa::avx512:
    case Isa::avx2: return few ? stream_avx2 : block_avx2;
#elif defined(__aarch64__)
    case Isa::neondot: return few ? stream_neondot : block_neondot;
    case Isa::neon: return few ? stream_neon : block_neon;
#endif
    default: return portable;
  }
}

}  // namespace

Multiplication::Multiplication(Isa isa, const Product& product, const int8_t* a, const float* a_scale, int64_t rows)
    : product_(product), kernel_(kernel(isa, rows)), a_(a), a_scale_(a_scale), rows_(rows) {}

int64_t Multiplication::tiles() const { return product_.K == 0 ? 0 : ceil_div(rows_, kernel_.tile_rows); }
int64_t Multiplication::tile_rows() const { return kernel_.tile_rows; }
int64_t Multiplication::bytes() const { return tiles() * kernel_.tile_bytes(product_); }

void Multiplication::arrange(int64_t first, int64_t last, int8_t* arranged) const {
  if (first >= last) return;
  const int64_t row = first * kernel_.tile_rows, end = smaller(last * kernel_.tile_rows, rows_);
  kernel_.arrange(product_, a_ + row * product_.K, end - row, arranged + first * kernel_.tile_bytes(product_));
}

void Multiplication::columns(const int8_t* arranged, int64_t first, int64_t last, float* y, int64_t stride) const {
  if (rows_ == 0 || first >= last) return;
  if (product_.K == 0) {
    for (int64_t r = 0; r < rows_; ++r) std::fill(y + r * stride, y + r * stride + last - first, 0.0f);
    return;
  }
  // A block of rows should stay in the second-level cache.
  const int64_t several = kernel_.block_tiles * kernel_.tile_rows;
  const int64_t step = std::max(round_up(48, several), (int64_t{1} << 20) / product_.K / several * several);
  const int64_t tile_bytes = kernel_.tile_bytes(product_);
  uint8_t* const memory = scratch.of(kernel_.scratch_bytes(product_));
  for (int64_t r = 0; r < rows_; r += step) {
    const Rows some = {arranged + r / kernel_.tile_rows * tile_bytes, a_scale_ + r, smaller(step, rows_ - r),
                       y + r * stride, stride};
    kernel_.multiply(product_, some, first, last, memory);
  }
}

}  // namespace catonnx
