/* The list of kernels of the matrix product in bfloat16, a template as kernels.h is: the prototypes are written here
 * and nowhere else.
 *
 * C (M, N) = A (M, K) B (K, N) of float32 matrices: the elements of A and B are rounded to bfloat16 (the upper half of
 * a float32) while they are packed, their products are exact, and the sums are float32. Rounding is to nearest, ties to
 * even. Denormals become zero, and a NaN stays one, with its sign and the upper half of its payload.
 *
 * A packed element is a `pair` of 32 bits: the values of k, in the lower half, and of k + 1 for an even k. So the depth
 * of packed operands is ceil(K / 2), and an odd K is padded with zeros. The panel width and the tile height are those
 * of float32. Each element of C is a sum over k in an order that depends on K alone: the odd k of each pair before the
 * even one, as the instruction VDPBF16PS adds them up. So results are the same bits for every instruction set whose
 * multiply-add is fused, with denormals flushed (fastrnn.h), which that instruction always does.
 *
 * Strides (ld*, rs, cs) count float32 elements or pairs. Pairs are declared as float, but their bits are not numbers.
 */

/* Round a row of n elements; if n is odd, the last pair ends with zero.
 *   pairs  out (ceil(n / 2),);  x  in (n,) */
FRN_KERNEL(void, round, (float *pairs, const float *x, ptrdiff_t n));

/* As gemm_pack (kernels.h): each panel is (ceil(K / 2), width).
 *   colsum  out (N,) or NULL: the sum of each column over k, of the elements before they are rounded */
FRN_KERNEL(void, gemm_pack,
           (float *packed, ptrdiff_t step, float *colsum, const float *B, const ptrdiff_t *row, ptrdiff_t rs,
            ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last));

/* As gemm_pack_rows: each tile is (ceil(K / 2), height). */
FRN_KERNEL(void, gemm_pack_rows,
           (float *packed, ptrdiff_t step, const float *A, const ptrdiff_t *row, ptrdiff_t rs, const ptrdiff_t *col,
            ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first, ptrdiff_t last));

/* As gemm, with packed operands of `depth` pairs.
 *   A  in (M, depth), rows of pairs from round(), row stride rs */
FRN_KERNEL(void, gemm,
           (float *C, ptrdiff_t ldc, const float *A, ptrdiff_t rs, const float *packed, const float *bias, ptrdiff_t M,
            ptrdiff_t N, ptrdiff_t depth, int accumulate));

/* As gemm_tiles, with packed operands of `depth` pairs. */
FRN_KERNEL(void, gemm_tiles,
           (float *C, ptrdiff_t ldc, const float *tiles, ptrdiff_t height, const float *packed, const float *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, int accumulate));
