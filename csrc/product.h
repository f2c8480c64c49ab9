/* Products of factors of low rank, in sums of a fixed order.

   A. X = W' B of r rows each: x[i][j] = ((0 + w[0][i] b[0][j]) + w[1][i] b[1][j]) + ..., every product and sum rounded.
      BLAS chooses its order by the machine; what all workers of a mean compute must be the same bits everywhere.
   B. An orthonormal basis, by modified Gram-Schmidt in float64: a row minus its parts along those before it, over its
      length. Inner products have PRODUCT_LANES partial sums: lane l adds elements l, l + PRODUCT_LANES, ..., and the
      lanes fold in halves. A row of which less than PRODUCT_DEPENDENT of its square is left becomes zeros, and so does
      one with NaN or Inf. */
#ifndef COMPRESS_PRODUCT_H
#define COMPRESS_PRODUCT_H
#include "portable.h"

enum { PRODUCT_LANES = 16 };
#define PRODUCT_DEPENDENT 1e-10

#endif
