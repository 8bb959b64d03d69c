/* The list of recurrent cells: FRN_CELL(name, gates, has_c, direct), explained at frn_cell in fastrnn.h.
 *
 * To add a cell, add a line here and a header with its row kernels, frn_<name>_forward and frn_<name>_backward, which
 * kernels.c includes.
 */
FRN_CELL(rnn, 1, 0, 0)
FRN_CELL(lstm, 4, 1, 0)
