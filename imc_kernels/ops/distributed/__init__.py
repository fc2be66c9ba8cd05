"""Operations on a batch that is spread over the processes of a group.

A backend's kernel is cut into phases; between them stands here what the processes exchange: K column sums an iteration
(sinkhorn), the joint distributions (mutual information), a few floats a head and cluster (log-dot), the embeddings and
one or two floats a row (InfoNCE), two or three floats a channel and view (batch normalisation). Phases are functions of
the process's own samples and of what was exchanged. To serve groups, a backend adds its phases to the table ``PHASES``
of an operation.

Every process gets the result for the whole batch, in which parts may differ in size and be empty. Gradients are those
of the sum over processes of their (equal) losses: averaged, as by DistributedDataParallel, they are those of the whole
batch.
"""

from imc_kernels.ops.distributed.info_nce_loss import info_nce_loss
from imc_kernels.ops.distributed.log_dot_product_loss import log_dot_product_loss
from imc_kernels.ops.distributed.mutual_information_loss import mutual_information_loss
from imc_kernels.ops.distributed.per_view_batch_norm import per_view_batch_norm
from imc_kernels.ops.distributed.sinkhorn import sinkhorn

__all__ = ["info_nce_loss", "log_dot_product_loss", "mutual_information_loss", "per_view_batch_norm", "sinkhorn"]
