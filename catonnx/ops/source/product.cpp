#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "product_kernels.h"

namespace catonnx {
namespace {

// At least `bytes` bytes, aligned to 64, of this thread; valid until its next call. Kept: decoding asks at each node.
uint8_t* scratch(int64_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = 0;
    memory.reset();
    const int64_t pages = round_up(bytes, 4096);
    memory.reset(std::aligned_alloc(64, static_cast<size_t>(pages)));
    if (!memory) throw std::bad_alloc();
    size = pages;
  }
  return static_cast<uint8_t*>(memory.get());
}

// Any machine: one column at a time, its codes as bytes.
void multiply_portable(const Product& p, const Rows& rows, int64_t first, int64_t last) {
  const int64_t groups = group_count(p), bytes = row_bytes(p);
  int8_t* column = reinterpret_cast<int8_t*>(scratch(2 * bytes));
  for (int64_t n = first; n < last; ++n) {
    const uint8_t* codes = p.codes + n * bytes;
    for (int64_t i = 0; i < bytes; ++i) {
      column[2 * i] = static_cast<int8_t>((codes[i] & 15) - 8);
      column[2 * i + 1] = static_cast<int8_t>((codes[i] >> 4) - 8);
    }
    for (int64_t r = 0; r < rows.count; ++r) {
      float total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const int8_t *x = rows.a + r * p.K + g * p.group, *w = column + g * p.group;
        const int64_t width = smaller(p.group, p.K - g * p.group);
        int32_t sum = 0;
        for (int64_t k = 0; k < width; ++k) sum += x[k] * w[k];
        total += p.scales[n * groups + g] * static_cast<float>(sum);
      }
      rows.y[r * rows.stride + n - first] = rows.scale[r] * total;
    }
  }
}

#if defined(__x86_64__) || defined(__aarch64__)
constexpr int64_t few_rows = 8;  // "stream" is faster up to here, or up to 16 where K is small and memory slow

void multiply_with(Kernel* stream, Kernel* block, Bytes* block_bytes, const Product& p, const Rows& rows, int64_t first,
                   int64_t last) {
  if (rows.count <= few_rows) return stream(p, rows, first, last, scratch(stream_bytes(p, rows.count)));
  // A block of rows should stay in the second-level cache, and be full tiles (of 4 or 6).
  const int64_t step = std::min(rows.count, std::max<int64_t>(48, (int64_t{1} << 20) / p.K / 12 * 12));
  uint8_t* memory = scratch(block_bytes(p, step));
  for (int64_t r = 0; r < rows.count; r += step) {
    const Rows some = {rows.a + r * p.K, rows.scale + r, std::min(step, rows.count - r), rows.y + r * rows.stride,
                       rows.stride};
    block(p, some, first, last, memory);
  }
}
#endif

}  // namespace

// For 128 channels (64 bytes of codes): as many activations, and 16 sums.
int64_t stream_bytes(const Product& p, int64_t rows) { return rows * ceil_div(row_bytes(p), 64) * 192; }

void multiply(Isa isa, const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first,
              int64_t last, float* y, int64_t stride) {
  const Rows all = {a, a_scale, rows, y, stride};
  if (rows == 0 || first >= last) return;
  if (p.K == 0) {
    for (int64_t r = 0; r < rows; ++r) std::fill(y + r * stride, y + r * stride + last - first, 0.0f);
    return;
  }
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512vnni:
      return multiply_with(stream_avx512vnni, block_avx512vnni, block_bytes_avx512vnni, p, all, first, last);
    case Isa::avx512:
    case Isa::avx2: return multiply_with(stream_avx2, block_avx2, block_bytes_avx2, p, all, first, last);
#elif defined(__aarch64__)
    case Isa::neondot: return multiply_with(stream_neondot, block_neondot, block_bytes_neondot, p, all, first, last);
    case Isa::neon: return multiply_with(stream_neon, block_neon, block_bytes_neon, p, all, first, last);
#endif
    default: return multiply_portable(p, all, first, last);
  }
}

}  // namespace catonnx
