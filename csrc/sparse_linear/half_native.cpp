#define ACDC_HALF_TABLE half_kernels_native
#include "sparse_linear/half_kernels.inc"
