#define ACDC_ROOFLINE_TABLE roofline_kernels_avx2
#include "roofline/roofline_kernels.inc"
