"""The command line: ``acdc-kernels`` and ``python -m acdc_kernels``."""

from __future__ import annotations

import sys

EXTRA = ("matplotlib", "numpy", "safetensors", "sklearn", "tqdm", "typer")


def main() -> int:
    """Run the command line; exit code 1 with a hint if a package of the extra ``[train]`` is missing."""
    try:
        from .train.cli import app

        app(prog_name="acdc-kernels")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(f'acdc-kernels: the command line needs {package}: pip install "acdc-kernels[train]"', file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
