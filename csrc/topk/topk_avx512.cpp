#define ACDC_TOPK_TABLE topk_kernels_avx512
#include "topk/topk_kernels.inc"
#define ACDC_PATTERN_TABLE pattern_kernels_avx512
#include "topk/pattern_kernels.inc"
