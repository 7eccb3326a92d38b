#include "product_cuda.h"

#include <algorithm>

#include "product_stream_cuda.cuh"
#include "product_tile_cuda.cuh"

namespace catonnx {
namespace {

constexpr int64_t MOST_STREAMED = 16;        // rows; more go to the tensor cores
constexpr int64_t MOST_SUMMED = 131071;      // channels whose products, 16 times too large, add up in an int32
constexpr int LARGEST_GROUP = 256;           // of which sums fit into the mantissa of a float, see product_tile_cuda.cuh

Kind kind_of(const float*) { return Kind::float32; }
Kind kind_of(const Half*) { return Kind::float16; }
Kind kind_of(const Bfloat16*) { return Kind::bfloat16; }

template <class T>
ProductTask task_of(const CudaProduct<T>& p, const int8_t* a, const float* a_scale, int64_t rows, T* y) {
  const int64_t groups = ceil_div(p.K, p.group);
  ProductTask task = {};
  task.K = static_cast<int>(p.K);
  task.N = p.N;
  task.row_bytes = groups * p.group / 2;
  task.groups = static_cast<int>(groups);
  task.shift = 31;
  task.interval = LARGEST_GROUP;
  if (groups > 1) {  // then the group is a power of two
    for (task.shift = 0; int64_t{1} << task.shift < p.group;) ++task.shift;
    task.interval = static_cast<int>(p.group);
  }
  task.codes = p.codes;
  task.scales = p.scales;
  task.kind = kind_of(y);
  task.a = a;
  task.a_scale = a_scale;
  task.rows = rows;
  task.y = y;
  return task;
}

template <int ROWS>
Problem launch_stream(const ProductTask& task, bool channels, Stream stream) {
  using Shape = StreamShape<ROWS>;
  const dim3 blocks(static_cast<unsigned>(ceil_div(task.N, Shape::BLOCK_COLUMNS)),
                    static_cast<unsigned>(ceil_div(task.rows, ROWS)));
  const int tile = std::min<int>(Shape::TILE, static_cast<int>(ceil_div(task.K, CHUNK)) * CHUNK);
  return launch(channels ? stream_kernel<ROWS, true> : stream_kernel<ROWS, false>, blocks, STREAM_THREADS,
                static_cast<size_t>(ROWS) * tile, stream, task, tile);
}

template <class Shape>
Problem launch_tiles(const ProductTask& task, bool channels, Stream stream) {
  const int64_t blocks = ceil_div(task.rows, Shape::ROWS) * ceil_div(task.N, Shape::COLUMNS);
  return launch(channels ? tile_kernel<Shape, true> : tile_kernel<Shape, false>, dim3(static_cast<unsigned>(blocks)),
                Shape::THREADS, Shape::BYTES, stream, task);
}

Problem launch_product(const ProductTask& task, bool channels, Stream stream) {
  if (task.rows == 0) return nullptr;
  if (task.rows <= MOST_STREAMED) {
    if (task.rows == 1) return launch_stream<1>(task, channels, stream);
    if (task.rows == 2) return launch_stream<2>(task, channels, stream);
    if (task.rows <= 4) return launch_stream<4>(task, channels, stream);
    return launch_stream<8>(task, channels, stream);
  }
  channels = channels && task.K <= MOST_SUMMED;
  const int64_t large = ceil_div(task.rows, LargeTile::ROWS) * ceil_div(task.N, LargeTile::COLUMNS);
  if (2 * large >= attribute(cudaDevAttrMultiProcessorCount)) return launch_tiles<LargeTile>(task, channels, stream);
  return launch_tiles<SmallTile>(task, channels, stream);
}

}  // namespace

template <class T>
Problem multiply(const CudaProduct<T>& p, const int8_t* a, const float* a_scale, int64_t rows, T* y, Stream stream) {
  return launch_product(task_of(p, a, a_scale, rows, y), p.channels || p.K <= p.group, stream);
}

template Problem multiply(const CudaProduct<float>&, const int8_t*, const float*, int64_t, float*, Stream);
template Problem multiply(const CudaProduct<Half>&, const int8_t*, const float*, int64_t, Half*, Stream);
template Problem multiply(const CudaProduct<Bfloat16>&, const int8_t*, const float*, int64_t, Bfloat16*, Stream);

}  // namespace catonnx
