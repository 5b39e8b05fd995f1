"""Two processes that talk over gloo, each a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
WORLD = 2


@pytest.fixture
def together(tmp_path: Path) -> Callable[..., list[dict]]:
    """Runs ``programs.py NAME`` on every rank; what each rank saves comes back, in rank order."""

    def run(name: str) -> list[dict]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(HERE / "programs.py"), name, str(rank), str(WORLD), str(tmp_path)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(WORLD)
        ]
        try:
            outputs = [rank.communicate(timeout=180)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(outputs)
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    return run
