#include "product_stream_neon.h"

namespace catonnx {

const Kernel stream_neon = stream_kernel<Neon>;

}  // namespace catonnx
