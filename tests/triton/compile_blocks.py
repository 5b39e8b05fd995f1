"""Compiles for a GPU that isn't there exactly what the ops of blocks would launch, and prints what came of it as JSON.

Arguments: compute capability (90), dtype, "default" or "all" candidates, and blocks (64x32 ...). Run by test_compiled.py.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from acdc_kernels.ops.block_linear import configs, triton_samples
from acdc_kernels.ops.block_linear import triton as products
from acdc_kernels.ops.values import triton as values

TOOLS = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
SMS = 132
launched = []


class NoGpu:
    """What Triton asks of a driver before it compiles a launch's kernel."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def compile_only(self, grid):
    def launch(*args, **options):
        launched.append((self.fn.__name__, self.run(*args, grid=grid, warmup=True, **options)))

    return launch


def facts(name, kernel):
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    return {
        "kernel": name,
        "registers": registers,
        "stack": stack + local,
        "local": len(re.findall(r"\.local\b", ptx)),
        "shared": kernel.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "tcgen05": ptx.count("tcgen05.mma"),
        "mma": ptx.count("mma.sync"),
        "copies": re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*\], (?:0x)?(\w+)", ptx),
        "waits": [int(n) for n in re.findall(r"cp\.async\.wait_group\s+(\w+)", ptx)],
        "bulk": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        "loads": re.findall(r"ld\.global[\w.:]*", ptx),
        "stores": re.findall(r"st\.global[\w.:]*", ptx),
    }


def tensors(meta, dtype):
    rows, cols, kept, r, c = meta
    x, w, grad = (torch.empty(shape, dtype=dtype) for shape in ((128, cols), (rows, cols), (128, rows)))
    index = [torch.zeros(256, dtype=torch.int32)] * 9
    return x, w, torch.empty((kept // (r * c), r, c), dtype=dtype), grad, torch.empty(rows, dtype=dtype), index


def launch(product, meta, dtype, whole, config):
    x, w, blocks, grad, bias, index = tensors(meta, dtype)
    weight = w if whole else blocks
    if product == configs.FORWARD:
        products.block_linear(x, weight, index, meta, bias, config)
    else:
        needs = product == configs.INPUT_GRADIENT, product == configs.WEIGHT_GRADIENT
        products.block_linear_backward(grad, x, weight, index, meta, *needs, whole, dtype, config, config)


def main(capability, name, which, *blocks):
    version = divmod(int(capability), 10)
    driver.set_active(NoGpu(int(capability)))
    JITFunction.__getitem__ = compile_only
    products.machine = triton_samples.machine = lambda device: (SMS, version)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    for r, c in (map(int, block.split("x")) for block in blocks):
        layer = [4096, 4096, 4096 * 4096 // 10 // (r * c) * (r * c), r, c]  # what candidates are for
        meta = [512, 512, 4 * r * c, r, c]  # what is compiled: no size is a constant of a kernel
        for product in configs.PRODUCTS:
            for n, whole in ((8192, True), (32, False)):
                found = configs.candidates(product, name, layer, n, SMS, version)
                for config in found if which == "all" else found[:1]:
                    launched.clear()
                    launch(product, meta, dtype, whole, str(config))
                    estimate = configs.shared_bytes(config, product, name, meta)
                    about = {"blocks": f"{r}x{c}", "product": product, "config": str(config), "estimate": estimate}
                    for kernel in launched:
                        print(json.dumps({**about, **facts(*kernel)}))
        launched.clear()
        _, w, kept, *_, index = tensors(meta, torch.float32)
        values.gather_blocks(w, index, meta, dtype)
        values.scatter_blocks(kept.to(dtype), index, meta)
        for kernel in launched:
            print(
                json.dumps({"blocks": f"{r}x{c}", "product": "values", "config": "", "estimate": 0, **facts(*kernel)})
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
