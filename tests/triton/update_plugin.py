"""A pytest plugin: the masked updates run their Triton kernels on CPU tensors, in Triton's interpreter."""

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "Triton reads it when a kernel is defined"

import torch

import acdc_kernels  # noqa: F401
from acdc_kernels.ops._registry import NAMESPACE, triton_function
from acdc_kernels.ops.masked_adamw import contract as adamw
from acdc_kernels.ops.masked_sgd import contract as sgd

library = torch.library.Library(NAMESPACE, "IMPL")
for contract, name in ((sgd, "masked_sgd_"), (adamw, "masked_adamw_"), (sgd, "skips_kept_zeros")):
    library.impl(name, triton_function(contract.__package__, name), "CPU", allow_override=True)
