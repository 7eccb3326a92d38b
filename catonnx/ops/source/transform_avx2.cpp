#include "transform_kernels.h"

namespace catonnx {

const TransformKernels avx2_transforms = kernels_here;

}  // namespace catonnx
