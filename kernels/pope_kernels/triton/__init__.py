"""The portable GPU backend: every function of ``pope_core.backends.Kernels``, in Triton.

With ``TRITON_INTERPRET=1``, set before Python starts, the kernels run on CPU tensors, slowly, for tests without a GPU.
"""

from ..products import add_outer, back_project, empty_large, project
from ..seam import composed
from .availability import probe
from .exp_product import padded_columns, scaled_exp
from .objective import slate_objective
from .rows import logit_gradient, token_logprobs
from .segments import response_sums, token_coefficients

group_coefficients = composed(response_sums, slate_objective, token_coefficients)

__all__ = [
    "add_outer",
    "back_project",
    "empty_large",
    "group_coefficients",
    "logit_gradient",
    "padded_columns",
    "probe",
    "project",
    "response_sums",
    "scaled_exp",
    "slate_objective",
    "token_coefficients",
    "token_logprobs",
]
