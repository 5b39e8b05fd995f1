"""What only a GPU shows: graphs, streams, waiting, launches, memory. The ops' results are the conformance suite's, with
``ACDC_TEST_DEVICE=cuda``."""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from acdc_kernels import _native


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    """Kernels there must be, and nothing may stand in for them."""
    if why := _native.why_no_cuda():
        pytest.skip(why)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="acdc_kernels: the plain torch reference runs on cuda")
        yield


class Captured:
    """A CUDA graph of ``call``, which ran once before: ``replay()`` runs it, ``result`` is what it returned."""

    def __init__(self, call: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.result = call()

    def replay(self) -> None:
        self._graph.replay()


def sleep() -> torch.cuda.Event:
    """Keeps the current stream busy for about half a second; the event tells when it is over."""
    torch.cuda._sleep(800_000_000)
    over = torch.cuda.Event()
    over.record()
    return over


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Fails if the host waits for the device: torch is asked to raise, and our own code must get here before the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    over = sleep()
    try:
        yield
        ahead = not over.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert ahead, "the host waited for the device"


def kernels_of(call: Callable[[], Any]) -> int:
    """How many kernels ``call`` launches, told by a graph of it."""
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        call()
    driver, handle, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    assert driver.cuGraphGetNodes(handle, None, ctypes.byref(count)) == 0
    nodes, kinds = (ctypes.c_void_p * count.value)(), []
    assert driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count)) == 0
    for node in nodes:
        kinds.append(ctypes.c_int(-1))
        assert driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kinds[-1])) == 0
    return [kind.value for kind in kinds].count(0)  # CU_GRAPH_NODE_TYPE_KERNEL
