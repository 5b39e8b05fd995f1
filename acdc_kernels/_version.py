"""The version of the package: the installed metadata's, or the sources' where nothing is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("acdc-kernels")
except PackageNotFoundError:  # a checkout used without installing it
    __version__ = "0+source"
