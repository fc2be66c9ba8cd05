// The columns of a crop's parameters, as in imc_kernels/ops/crop_parameters.py.
#pragma once

namespace imc {

enum CropParameter {
  kTop,
  kLeft,
  kHeight,
  kWidth,
  kFactors,  // of brightness, contrast, saturation and hue
  kBlur = kFactors + 4,
  kFlip,
  kJitter,
  kGrayscale,
  kOrder,
  kParameters
};

}  // namespace imc
