#include "product_stream_neon.h"

namespace catonnx {

const Kernel stream_neondot = stream_kernel<Neon>;

}  // namespace catonnx
