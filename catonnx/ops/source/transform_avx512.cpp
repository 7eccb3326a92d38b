#include "transform_kernels.h"

namespace catonnx {

const TransformKernels avx512_transforms = kernels_here;

}  // namespace catonnx
