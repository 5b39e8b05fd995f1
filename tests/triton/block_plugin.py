"""A pytest plugin: the ops of blocks run their Triton kernels on CPU tensors, in Triton's interpreter."""

import os

import torch

from acdc_kernels.ops._registry import NAMESPACE, triton_function
from acdc_kernels.ops.block_linear import contract as products
from acdc_kernels.ops.values import contract as values

assert os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when a kernel is defined: below

library = torch.library.Library(NAMESPACE, "IMPL")
for room, names in (
    (products.__package__, ("block_linear", "block_linear_backward")),
    (values.__package__, ("gather_blocks", "scatter_blocks")),
):
    for name in names:
        library.impl(name, triton_function(room, name), "CPU", allow_override=True)
