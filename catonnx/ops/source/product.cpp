#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu.h"
#include "product_kernels.h"

namespace catonnx {
namespace {

// At least `bytes` bytes, aligned to 64, of this thread; valid until its next call. Kept: a decoder asks for it at each node.
uint8_t* scratch(int64_t bytes) {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    thread_local std::unique_ptr<void, Free> memory;
    thread_local int64_t size = 0;
    if (bytes > size) {
        size = 0;
        memory.reset();
        const int64_t rounded = ceil_div(bytes, 4096) * 4096;
        memory.reset(std::aligned_alloc(64, static_cast<size_t>(rounded)));
        if (!memory) throw std::bad_alloc();
        size = rounded;
    }
    return static_cast<uint8_t*>(memory.get());
}

// Any machine: one column at a time, its codes as bytes.
void multiply_portable(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y) {
    int8_t* column = reinterpret_cast<int8_t*>(scratch(2 * row_bytes(p)));
    for (int64_t n = first; n < last; ++n) {
        const uint8_t* codes = p.codes + n * row_bytes(p);
        for (int64_t i = 0; i < row_bytes(p); ++i) {
            column[2 * i] = static_cast<int8_t>((codes[i] & 15) - 8);
            column[2 * i + 1] = static_cast<int8_t>((codes[i] >> 4) - 8);
        }
        for (int64_t r = 0; r < rows; ++r) {
            float total = 0;
            for (int64_t g = 0; g < group_count(p); ++g) {
                const int8_t *x = a + r * p.K + g * p.group, *w = column + g * p.group;
                const int64_t width = smaller(p.group, p.K - g * p.group);
                int32_t sum = 0;
                for (int64_t k = 0; k < width; ++k) sum += x[k] * w[k];
                total += p.scales[n * group_count(p) + g] * static_cast<float>(sum);
            }
            y[r * p.N + n] = a_scale[r] * total;
        }
    }
}

// Rows that a block kernel takes at a time: what they need in scratch stays in the second-level cache.
int64_t block_rows(const Product& p) { return std::max<int64_t>(48, (int64_t{1} << 20) / p.K / 12 * 12); }

void multiply_with(Kernel* stream, int64_t stream_bytes, int64_t few_rows, Kernel* block, int64_t (*block_bytes)(const Product&, int64_t),
                   const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y) {
    if (rows <= few_rows) return stream(p, a, a_scale, rows, first, last, y, scratch(stream_bytes * rows));
    const int64_t step = std::min(rows, block_rows(p));
    uint8_t* memory = scratch(block_bytes(p, step));
    for (int64_t r = 0; r < rows; r += step)
        block(p, a + r * p.K, a_scale + r, std::min(step, rows - r), first, last, y + r * p.N, memory);
}

}  // namespace

void multiply(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y) {
    if (rows == 0 || first >= last) return;
    if (p.K == 0) {
        for (int64_t r = 0; r < rows; ++r) std::fill(y + r * p.N + first, y + r * p.N + last, 0.0f);
        return;
    }
    switch (isa()) {
#if defined(__x86_64__)
        case Isa::avx512vnni:
            return multiply_with(stream_avx512vnni, stream_row_bytes(p), 8, block_avx512vnni, block_bytes_avx512vnni, p, a, a_scale, rows, first, last, y);
        case Isa::avx512:
        case Isa::avx2:
            return multiply_with(stream_avx2, stream_row_bytes(p), 8, block_avx2, block_bytes_avx2, p, a, a_scale, rows, first, last, y);
#endif
        default: return multiply_portable(p, a, a_scale, rows, first, last, y);
    }
}

}  // namespace catonnx
