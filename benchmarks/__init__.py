"""Timings of the kernels against torch, numpy and the machine's bandwidth; packaged as `acdc_kernels.benchmarks`."""
