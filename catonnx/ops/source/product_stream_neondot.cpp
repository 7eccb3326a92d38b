#include "product_stream_neon.h"

namespace catonnx {

void stream_neondot(const Product& product, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch) {
  stream<Neon>(product, rows, first, last, scratch);
}

}  // namespace catonnx
