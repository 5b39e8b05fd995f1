#define ACDC_TOPK_TABLE topk_kernels_generic
#include "topk/topk_kernels.inc"
#define ACDC_PATTERN_TABLE pattern_kernels_generic
#include "topk/pattern_kernels.inc"
