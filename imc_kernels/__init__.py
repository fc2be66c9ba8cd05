"""Fused kernels for clustering images by mutual information across views.

>>> import torch, imc_kernels
>>> imc_kernels.sinkhorn(torch.rand(256, 1000)).sum(dim=-1)[:3]
tensor([1.0000, 1.0000, 1.0000])
"""

from pkgutil import extend_path

# Imported from a source tree, whose folder holds no compiled modules, the package finds those of an installed copy.
__path__ = extend_path(__path__, __name__)

from imc_kernels import backends
from imc_kernels.ops.crop_parameters import CropDraw, draw_crop_parameters
from imc_kernels.ops.info_nce_loss import info_nce_loss
from imc_kernels.ops.linear_swapped_prediction_loss import linear_swapped_prediction_loss
from imc_kernels.ops.log_dot_product_loss import log_dot_product_loss
from imc_kernels.ops.multi_crop import multi_crop
from imc_kernels.ops.mutual_information_loss import mutual_information_loss
from imc_kernels.ops.per_view_batch_norm import per_view_batch_norm
from imc_kernels.ops.prototype_scores import prototype_scores
from imc_kernels.ops.self_distillation_loss import self_distillation_loss
from imc_kernels.ops.sinkhorn import sinkhorn
from imc_kernels.ops.swapped_prediction_loss import swapped_prediction_loss
from imc_kernels.ops.transport_plan import transport_plan
from imc_kernels.version import __version__

__all__ = [
    "CropDraw",
    "__version__",
    "backends",
    "draw_crop_parameters",
    "info_nce_loss",
    "linear_swapped_prediction_loss",
    "log_dot_product_loss",
    "multi_crop",
    "mutual_information_loss",
    "per_view_batch_norm",
    "prototype_scores",
    "self_distillation_loss",
    "sinkhorn",
    "swapped_prediction_loss",
    "transport_plan",
]
