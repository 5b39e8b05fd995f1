#define ACDC_ROOFLINE_TABLE roofline_kernels_avx512
#include "roofline/roofline_kernels.inc"
