#define ACDC_HALF_TABLE half_kernels_emulated
#include "sparse_linear/half_kernels.inc"
