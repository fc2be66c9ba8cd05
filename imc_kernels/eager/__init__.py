"""The specification: every operation in plain PyTorch, for any device and floating dtype, differentiable."""

from imc_kernels.eager.info_nce_loss import bank_info_nce_loss, info_nce_loss, labelled_info_nce_loss
from imc_kernels.eager.linear_swapped_prediction_loss import linear_swapped_prediction_loss
from imc_kernels.eager.log_dot_product_loss import log_dot_product_loss
from imc_kernels.eager.multi_crop import multi_crop
from imc_kernels.eager.mutual_information_loss import mutual_information_loss
from imc_kernels.eager.per_view_batch_norm import per_view_batch_norm
from imc_kernels.eager.prototype_scores import prototype_scores
from imc_kernels.eager.self_distillation_loss import self_distillation_loss
from imc_kernels.eager.sinkhorn import sinkhorn
from imc_kernels.eager.swapped_prediction_loss import swapped_prediction_loss
from imc_kernels.eager.transport_plan import column_scalings, row_scalings

__all__ = [
    "bank_info_nce_loss",
    "column_scalings",
    "info_nce_loss",
    "labelled_info_nce_loss",
    "linear_swapped_prediction_loss",
    "log_dot_product_loss",
    "multi_crop",
    "mutual_information_loss",
    "per_view_batch_norm",
    "prototype_scores",
    "row_scalings",
    "self_distillation_loss",
    "sinkhorn",
    "swapped_prediction_loss",
]
