#define ACDC_TOPK_TABLE topk_kernels_generic
#include "topk/topk_kernels.inc"
