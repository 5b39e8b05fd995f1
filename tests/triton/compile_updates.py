"""Compiles for a GPU that isn't there what the masked updates would launch, and prints what came of it as JSON.

Arguments: compute capability (90), "flat" or "walked", and (parameter's, state's) dtypes (bfloat16,float32 ...). Run by
test_updates.py.
"""

import collections
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

from acdc_kernels.ops.masked_adamw import triton as adamw
from acdc_kernels.ops.masked_sgd import triton as sgd

CUOBJDUMP = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
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


def facts(kernel):
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    return {
        "registers": registers,
        "stack": stack + local,
        "local": len(re.findall(r"\.local\b", ptx)),
        "barriers": ptx.count("bar.sync"),
        "flushed": re.findall(r"\b(?:add|mul|fma|div|sqrt)[\w.]*\.ftz[\w.]*", ptx),
        "arithmetic": collections.Counter(re.findall(r"\b(?:fma|div|sqrt)\.[\w.]+", ptx)),
        "unfused": sorted(set(re.findall(r"\b(?:add|mul|sub)\.(?:rn\.)?f(?:32|64)\b", ptx))),
        "loads": re.findall(r"@%p\d+ ld\.global[\w.:]*", ptx),
        "stores": re.findall(r"@%p\d+ st\.global[\w.:]*", ptx),
        "every_store": len(re.findall(r"\bst\.global", ptx)),
    }


def tensors(shape, dtype, walked):
    tensor = torch.zeros(shape, dtype=dtype)
    return tensor.to(memory_format=torch.channels_last) if walked else tensor


def main(capability, kind, *dtypes):
    driver.set_active(NoGpu(int(capability)))
    JITFunction.__getitem__ = compile_only
    for name, state_name in (pair.split(",") for pair in dtypes):
        dtype, state_dtype = getattr(torch, name), getattr(torch, state_name)
        walked, shape = kind == "walked", (16, 16, 3, 3)
        p, g = (tensors(shape, dtype, walked) for _ in range(2))
        m, v, x = (tensors(shape, state_dtype, walked) for _ in range(3))
        bits, step, scalar = torch.zeros(p.numel() // 8, dtype=torch.uint8), torch.zeros(()), torch.ones(())
        device = None, None, None
        all_of = scalar.double(), scalar, scalar
        sgd.masked_sgd_([p], [g], [m], [bits], 0.1, 0.9, 0.0, 0.01, True, False, False, *device, [True])
        sgd.masked_sgd_([p], [g], [m], [None], 0.1, 0.9, 0.1, 0.0, False, True, True, *all_of)
        sgd.masked_sgd_([p], [g], [], [bits], 0.1, 0.0, 0.0, 0.01, False, False, False, *all_of)
        hyper = 0.1, 0.9, 0.99, 1e-8, 0.01
        adamw.masked_adamw_([p], [g], [m], [v], [], [step], [bits], *hyper, False, False, *device, [True])
        adamw.masked_adamw_([p], [g], [m], [v], [x], [step], [bits], *hyper, True, True, *all_of)
        for at, (kernel, compiled) in enumerate(launched):
            print(json.dumps({"kernel": kernel, "at": at, "dtype": name, "state": state_name, **facts(compiled)}))
        launched.clear()


if __name__ == "__main__":
    main(*sys.argv[1:])
