#define ACDC_TOPK_TABLE topk_kernels_avx2
#include "topk/topk_kernels.inc"
