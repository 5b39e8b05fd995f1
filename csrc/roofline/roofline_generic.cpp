#define ACDC_ROOFLINE_TABLE roofline_kernels_generic
#include "roofline/roofline_kernels.inc"
