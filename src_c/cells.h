/* The recurrent cells, in one place: FRN_CELL(name, gates, has_c, direct), explained at frn_cell in fastrnn.h, and the
 * headers with their row kernels, frn_<name>_forward and frn_<name>_backward.
 *
 * To add a cell, write its header, add two lines here, and add its NumPy twin to fastrnn/reference/cells.py. A file
 * that includes this one defines either FRN_CELL, or FRN_CELL_KERNELS to compile the row kernels.
 */
#if defined(FRN_CELL_KERNELS)
#include "lstm.h"
#include "rnn.h"
#else
FRN_CELL(rnn, 1, 0, 0)
FRN_CELL(lstm, 4, 1, 0)
#endif
