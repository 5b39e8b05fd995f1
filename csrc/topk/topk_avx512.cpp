#define ACDC_TOPK_TABLE topk_kernels_avx512
#include "topk/topk_kernels.inc"
