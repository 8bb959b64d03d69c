"""Beam search, and sampled captions.

A search is the beam search of one image or one sampled caption, which is a beam of width 1. Each thread runs as many
searches at a time as fill a block of rows, one row for each hypothesis, and starts a new search as soon as one is done,
so blocks stay full. The result of a row does not depend on the other rows.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport INFINITY, exp, isfinite, log1p
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, ids_of, new, wrap_ids
from .cell cimport row_forward
from .model cimport (
    BLOCK_ROWS, FEW_ROWS, FewRows, Model, PackedModel, multiply_few, pack_few_rows, pack_model, read_model,
    take_few_rows, take_packed,
)
from .products cimport depth_of, gathered, matrix, multiply_rows, multiply_unpacked, pack_rows, tiles_size
from .runtime cimport (
    Layout, Slices, Workspace, area, denormals_flush, denormals_restore, flag_clear, flag_is_set, flag_set, frn_flag,
    interrupted, layout_of, random_key, seconds, share, slice_of, take, threads_for, uniform,
)

from .. import checks

cnp.import_array()


# ---- State -----------------------------------------------------------------------------------------------------------

cdef struct Job:
    Model model
    PackedModel packed        # if few_rows is set, only the initial states and the products of the words so far
    ptrdiff_t N, T            # images, and the maximum number of words
    ptrdiff_t searches, per_image
    ptrdiff_t start, end      # word ids
    ptrdiff_t width, groups, group_width, n_best
    ptrdiff_t min_length      # words before `end` is allowed
    ptrdiff_t no_repeat       # length of the n-grams that must not repeat, or 0
    ptrdiff_t suppressed_count
    ptrdiff_t max_candidates  # words considered for each hypothesis
    double diversity
    const ptrdiff_t* suppressed  # (suppressed_count,) words that are never chosen
    const double* scale       # (T + 1,) by length: score = log_prob * scale + reward
    const double* reward      # (T + 1,)
    # sampling
    bint samples
    double inverse_temperature, top_p
    ptrdiff_t top_k
    uint64_t seed
    const ptrdiff_t* rows     # (N,) rows that the draws depend on, or NULL for 0 to N - 1
    # results, (searches, n_best, T) or (searches, n_best)
    int32_t* ids
    double* word_log_probs
    double* log_probs
    double* scores
    bint few_rows             # use the weights in `few`, and let `threads` divide their columns
    FewRows few
    int threads
    frn_flag* stopped         # set when a handler of a signal has raised an exception


cdef struct Hypotheses:
    # (count,) or (count, T)
    ptrdiff_t* word       # last word
    ptrdiff_t* parent     # row of the previous step that holds its state, or -1 for the initial state
    ptrdiff_t* length
    double* log_prob
    double* rank          # log_prob less the diversity penalties, by which the search selects
    double* score
    int32_t* ids
    double* word_log_probs


cdef struct Block:
    ptrdiff_t slots, rows
    ptrdiff_t* search     # (slots,) search of a slot, or -1 if it is free
    ptrdiff_t* steps      # (slots,) words so far
    ptrdiff_t* live       # (slots, groups) number of unfinished hypotheses
    ptrdiff_t* pooled     # (slots, groups) number of finished hypotheses in the pool
    Hypotheses beams      # (slots, width) unfinished hypotheses
    Hypotheses pool       # (slots, width) best finished hypotheses, in decreasing order in each group
    Hypotheses extended   # (group_width,) hypotheses with one more word
    ptrdiff_t* place_of   # (rows,) place in `beams` of the hypothesis of a row
    # rows with the same previous state share one product of that state with Wh
    ptrdiff_t* product_of         # (rows,) product of a row
    ptrdiff_t* product_of_parent  # (rows,) product of a row of the previous step, or -1
    ptrdiff_t* pending            # (products,) rows that still need the product
    ptrdiff_t* h_at               # (products,) offset of the state
    # continuations of the hypotheses of a group, in decreasing order of rank
    ptrdiff_t* counts     # (group_width,)
    ptrdiff_t* heads      # (group_width,) next continuation
    ptrdiff_t* words      # (group_width, max_candidates)
    double* ranks         # (group_width, max_candidates)
    double* log_probs     # (group_width, max_candidates)
    ptrdiff_t* chosen     # (width,) words chosen by earlier groups
    ptrdiff_t* product_of_word  # (V,) row of the input product of a word, or -1; if few_rows is set
    ptrdiff_t known_words
    void* values          # (max_candidates,)
    void* h               # (rows, ldh) states before the step
    void* c
    void* next_h          # (rows, ldh) states after the step
    void* next_c
    void* gates           # (rows + 1, ldg), the last row is spare
    void* scores          # (rows, ldv)
    void* tiles
    void* zeros           # (H,) initial c
    void* weights         # (V,) if samples is set
    void* vectors         # (rows, max(H, W)) if few_rows is set


cdef Hypotheses take_hypotheses(Layout* layout, ptrdiff_t count, ptrdiff_t T) noexcept nogil:
    """Take the arrays of `count` hypotheses from a layout."""
    cdef Hypotheses to
    to.word = <ptrdiff_t*> take(layout, count, sizeof(ptrdiff_t))
    to.parent = <ptrdiff_t*> take(layout, count, sizeof(ptrdiff_t))
    to.length = <ptrdiff_t*> take(layout, count, sizeof(ptrdiff_t))
    to.log_prob = <double*> take(layout, count, sizeof(double))
    to.rank = <double*> take(layout, count, sizeof(double))
    to.score = <double*> take(layout, count, sizeof(double))
    to.ids = <int32_t*> take(layout, area(count, T), sizeof(int32_t))
    to.word_log_probs = <double*> take(layout, area(count, T), sizeof(double))
    return to


cdef Block take_block(Layout* layout, const Job* job, ptrdiff_t slots, size_t size) noexcept nogil:
    """Take the arrays of a block from a layout."""
    cdef const Model* model = &job.model
    cdef ptrdiff_t width = job.width, group_width = job.group_width, rows = area(slots, width)
    cdef ptrdiff_t candidates = area(group_width, job.max_candidates)
    cdef size_t index = sizeof(ptrdiff_t)
    cdef Block block
    block.slots, block.rows = slots, 0
    block.search = <ptrdiff_t*> take(layout, slots, index)
    block.steps = <ptrdiff_t*> take(layout, slots, index)
    block.live = <ptrdiff_t*> take(layout, area(slots, job.groups), index)
    block.pooled = <ptrdiff_t*> take(layout, area(slots, job.groups), index)
    block.beams = take_hypotheses(layout, rows, job.T)
    block.pool = take_hypotheses(layout, rows, job.T)
    block.extended = take_hypotheses(layout, group_width, job.T)
    block.place_of = <ptrdiff_t*> take(layout, rows, index)
    block.product_of = <ptrdiff_t*> take(layout, rows, index)
    block.product_of_parent = <ptrdiff_t*> take(layout, rows, index)
    block.pending = <ptrdiff_t*> take(layout, rows, index)
    block.h_at = <ptrdiff_t*> take(layout, rows, index)
    block.counts = <ptrdiff_t*> take(layout, group_width, index)
    block.heads = <ptrdiff_t*> take(layout, group_width, index)
    block.words = <ptrdiff_t*> take(layout, candidates, index)
    block.ranks = <double*> take(layout, candidates, sizeof(double))
    block.log_probs = <double*> take(layout, candidates, sizeof(double))
    block.chosen = <ptrdiff_t*> take(layout, width, index)
    block.product_of_word = <ptrdiff_t*> take(layout, model.V if job.few_rows else 0, index)
    block.known_words = 0
    block.values = take(layout, job.max_candidates, size)
    block.h = take(layout, area(rows, model.ldh), size)
    block.c = take(layout, area(rows, model.ldh), size)
    block.next_h = take(layout, area(rows, model.ldh), size)
    block.next_c = take(layout, area(rows, model.ldh), size)
    block.gates = take(layout, area(rows + 1, model.ldg), size)
    block.scores = take(layout, area(rows, model.ldv), size)
    block.tiles = take(layout, tiles_size(rows, depth_of(model.H, model.bfloat16), size), size)
    block.zeros = take(layout, model.H, size)
    block.weights = take(layout, model.V if job.samples else 0, size)
    block.vectors = take(layout, area(rows, max(model.H, model.W)) if job.few_rows else 0, size)
    return block


# ---- One step --------------------------------------------------------------------------------------------------------

cdef void start_search(const Job* job, Block* block, ptrdiff_t slot, ptrdiff_t search) noexcept nogil:
    cdef ptrdiff_t g, place
    block.search[slot], block.steps[slot] = search, 0
    for g in range(job.groups):
        place = slot * job.width + g * job.group_width
        block.live[slot * job.groups + g] = 1
        block.pooled[slot * job.groups + g] = 0
        block.beams.word[place], block.beams.parent[place] = job.start, -1
        block.beams.log_prob[place] = block.beams.rank[place] = 0


cdef ptrdiff_t assign_rows(const Job* job, Block* block, ptrdiff_t h0_at) noexcept nogil:
    """Assign a row to each unfinished hypothesis, and one product to rows with the same previous state.

    h0_at is the offset of the initial states from block.h. Returns the number of products.
    """
    cdef ptrdiff_t products = 0, rows = 0, slot, g, place, parent, product, first
    for place in range(block.rows):
        block.product_of_parent[place] = -1
    for slot in range(block.slots):
        if block.search[slot] < 0:
            continue
        first = -1
        for g in range(job.groups):
            for place in range(slot * job.width + g * job.group_width,
                               slot * job.width + g * job.group_width + block.live[slot * job.groups + g]):
                parent = block.beams.parent[place]
                product = first if parent < 0 else block.product_of_parent[parent]
                if product < 0:
                    product = products
                    products += 1
                    block.pending[product] = 0
                    if parent < 0:
                        first = product
                        block.h_at[product] = h0_at + block.search[slot] // job.per_image * job.model.ldh
                    else:
                        block.product_of_parent[parent] = product
                        block.h_at[product] = parent * job.model.ldh
                block.pending[product] += 1
                block.product_of[rows] = product
                block.place_of[rows] = place
                rows += 1
    block.rows = rows
    return products


cdef void input_products(const Job* job, Block* block, floating* products) noexcept nogil:
    """Compute the input products of the last words that have none yet."""
    cdef const Model* model = &job.model
    cdef floating* vectors = <floating*> block.vectors
    cdef ptrdiff_t i, word, unknown = 0
    for i in range(block.rows):
        word = block.beams.word[block.place_of[i]]
        if block.product_of_word[word] < 0:
            block.product_of_word[word] = block.known_words + unknown
            memcpy(vectors + unknown * model.W, <const floating*> model.W_embed + word * model.W,
                   model.W * sizeof(floating))
            unknown += 1
    multiply_few(&job.few, products + block.known_words * model.ldg, model.ldg, <const floating*> vectors, model.W,
                 model.Wx, job.few.Wx, <const floating*> model.b, unknown, model.G, model.W, job.threads)
    block.known_words += unknown


cdef void advance(const Job* job, Block* block, ptrdiff_t products, const floating* inputs) noexcept nogil:
    """Feed the last word of every row: compute the new states and the scores of the next words."""
    cdef const Model* model = &job.model
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t ldh = model.ldh, ldg = model.ldg, H = model.H, G = model.G, V = model.V, rows = block.rows
    cdef const floating* h = <const floating*> block.h
    cdef floating* next_h = <floating*> block.next_h
    cdef floating* next_c = <floating*> block.next_c
    cdef floating* gates = <floating*> block.gates
    cdef floating* spare = gates + block.slots * job.width * ldg
    cdef floating* tiles = <floating*> block.tiles
    cdef floating* scores = <floating*> block.scores
    cdef floating* vectors = <floating*> block.vectors
    cdef const floating* b_vocab = <const floating*> model.b_vocab
    cdef const floating* no_bias = NULL
    cdef floating* row
    cdef const floating* input
    cdef const floating* c_prev
    cdef ptrdiff_t i, place, word, parent, product
    cdef bint bfloat16 = model.bfloat16
    if job.few_rows:
        for i in range(products):
            memcpy(vectors + i * H, h + block.h_at[i], H * size)
        multiply_few(&job.few, gates, ldg, <const floating*> vectors, H, model.Wh, job.few.Wh, no_bias, products, G, H,
                     job.threads)
    else:
        pack_rows(tiles, gathered(h, block.h_at), products, H, bfloat16)
        multiply_rows(gates, ldg, <const floating*> tiles, <const floating*> job.packed.Wh, no_bias, products, G,
                      depth_of(H, bfloat16), False, bfloat16)
    for i in range(rows):
        place = block.place_of[i]
        word, parent = block.beams.word[place], block.beams.parent[place]
        input = inputs + (block.product_of_word[word] if job.few_rows else word) * ldg
        product = block.product_of[i]
        row = gates + product * ldg
        block.pending[product] -= 1
        if block.pending[product] > 0:  # the activations overwrite the product, but another row needs it
            memcpy(spare, row, G * size)
            row = spare
        c_prev = <const floating*> block.zeros if parent < 0 else <const floating*> block.c + parent * ldh
        row_forward(model.cell, row, next_h + i * ldh, next_c + i * ldh, <floating*> NULL, input,
                    h + block.h_at[product], c_prev, H)
    block.h, block.next_h = block.next_h, block.h
    block.c, block.next_c = block.next_c, block.c
    if job.few_rows:
        multiply_few(&job.few, scores, model.ldv, <const floating*> next_h, ldh, model.W_vocab, job.few.W_vocab,
                     b_vocab, rows, V, H, job.threads)
    else:
        pack_rows(tiles, matrix(next_h, ldh), rows, H, bfloat16)
        multiply_rows(scores, model.ldv, <const floating*> tiles, <const floating*> job.packed.W_vocab, b_vocab, rows,
                      V, depth_of(H, bfloat16), False, bfloat16)


cdef inline double log_add(double a, double b) noexcept nogil:
    """Return log(exp(a) + exp(b)) for b finite or -INFINITY."""
    if b == -INFINITY:
        return a
    return a + log1p(exp(b - a)) if a > b else b + log1p(exp(a - b))


cdef double suppress_words(const Job* job, floating* scores, const int32_t* ids, ptrdiff_t steps) noexcept nogil:
    """Set the scores of words that are not allowed next to -INFINITY. Return log(sum(exp(scores))) of these words."""
    cdef double total = -INFINITY
    cdef ptrdiff_t i, j, n = job.no_repeat, word
    if steps < job.min_length:
        total = scores[job.end]
        scores[job.end] = <floating> -INFINITY
    for i in range(job.suppressed_count):
        word = job.suppressed[i]
        total = log_add(total, scores[word])
        scores[word] = <floating> -INFINITY
    if n > 0:
        for i in range(steps - n + 1):
            for j in range(n - 1):
                if ids[i + j] != ids[steps - n + 1 + j]:
                    break
            else:
                word = ids[i + n - 1]
                total = log_add(total, scores[word])
                scores[word] = <floating> -INFINITY
    return total


cdef void extend(const Job* job, Hypotheses* to, ptrdiff_t at, const Hypotheses* source, ptrdiff_t place,
                 ptrdiff_t steps, ptrdiff_t word, double log_prob, double rank) noexcept nogil:
    """Set to[at] to a hypothesis of `steps` words, followed by `word` unless it is -1."""
    cdef ptrdiff_t T = job.T, length = steps
    memcpy(to.ids + at * T, source.ids + place * T, steps * sizeof(int32_t))
    memcpy(to.word_log_probs + at * T, source.word_log_probs + place * T, steps * sizeof(double))
    to.log_prob[at] = source.log_prob[place]
    if word >= 0:
        to.ids[at * T + steps] = <int32_t> word
        to.word_log_probs[at * T + steps] = log_prob
        to.log_prob[at] += log_prob
        length += 1
    to.word[at], to.length[at], to.rank[at] = word, length, rank
    to.score[at] = to.log_prob[at] * job.scale[length] + job.reward[length]


cdef void copy(const Job* job, Hypotheses* to, ptrdiff_t at, const Hypotheses* source, ptrdiff_t i) noexcept nogil:
    """Set to[at] to source[i]."""
    cdef ptrdiff_t T = job.T
    memcpy(to.ids + at * T, source.ids + i * T, source.length[i] * sizeof(int32_t))
    memcpy(to.word_log_probs + at * T, source.word_log_probs + i * T, source.length[i] * sizeof(double))
    to.word[at], to.parent[at], to.length[at] = source.word[i], source.parent[i], source.length[i]
    to.log_prob[at], to.rank[at], to.score[at] = source.log_prob[i], source.rank[i], source.score[i]


cdef void add_to_pool(const Job* job, Block* block, ptrdiff_t slot, ptrdiff_t g, ptrdiff_t place, ptrdiff_t word,
                      double log_prob) noexcept nogil:
    """Add a hypothesis to the pool of its group, which keeps the best `group_width`."""
    cdef ptrdiff_t first = slot * job.width + g * job.group_width, group = slot * job.groups + g
    cdef ptrdiff_t steps = block.steps[slot], length = steps + (word >= 0), at
    cdef double score = block.beams.log_prob[place]
    if word >= 0:
        score += log_prob
    score = score * job.scale[length] + job.reward[length]
    at = block.pooled[group]
    if at == job.group_width:
        if not score > block.pool.score[first + at - 1]:
            return
        at -= 1
    else:
        block.pooled[group] += 1
    while at > 0 and score > block.pool.score[first + at - 1]:
        copy(job, &block.pool, first + at, &block.pool, first + at - 1)
        at -= 1
    extend(job, &block.pool, first + at, &block.beams, place, steps, word, log_prob, 0)


cdef int extend_group(const Job* job, Block* block, floating* scores, ptrdiff_t slot, ptrdiff_t g, ptrdiff_t row,
                      ptrdiff_t others) noexcept nogil:
    """Extend the hypotheses of a group by one word. Return 1 if scores are not finite.

    The rows of the group start at `row`; earlier groups have chosen `others` words.
    """
    cdef const Model* model = &job.model
    cdef ptrdiff_t group_width = job.group_width, most = job.max_candidates, group = slot * job.groups + g
    cdef ptrdiff_t first = slot * job.width + g * group_width, steps = block.steps[slot], live = block.live[group]
    cdef ptrdiff_t j, m, i, times, word, best, taken = 0, count = 0
    cdef floating* values = <floating*> block.values
    cdef ptrdiff_t* words
    cdef double* ranks
    cdef double* log_probs
    cdef double total, suppressed, rank, log_prob
    for j in range(live):
        words = block.words + j * most
        ranks = block.ranks + j * most
        log_probs = block.log_probs + j * most
        suppressed = suppress_words(job, scores + j * model.ldv, block.beams.ids + (first + j) * job.T, steps)
        total = log_add(kernels.top_words(values, words, block.counts + j, <const floating*> scores + j * model.ldv,
                                          model.V, most), suppressed)
        if not isfinite(total):
            return 1
        block.heads[j] = 0
        for m in range(block.counts[j]):
            word, log_prob, times = words[m], values[m] - total, 0
            for i in range(others):
                times += block.chosen[i] == word
            rank = block.beams.rank[first + j] + log_prob - job.diversity * times
            i = m  # insertion sort: the penalties can change the order
            while i > 0 and ranks[i - 1] < rank:
                words[i], ranks[i], log_probs[i] = words[i - 1], ranks[i - 1], log_probs[i - 1]
                i -= 1
            words[i], ranks[i], log_probs[i] = word, rank, log_prob
    while taken < group_width or count < group_width:
        best, rank = -1, -INFINITY
        for j in range(live):
            if block.heads[j] < block.counts[j] and (best < 0 or block.ranks[j * most + block.heads[j]] > rank):
                best, rank = j, block.ranks[j * most + block.heads[j]]
        if best < 0:
            break
        m = best * most + block.heads[best]
        block.heads[best] += 1
        if block.words[m] == job.end:
            if taken < group_width:
                add_to_pool(job, block, slot, g, first + best, job.end, block.log_probs[m])
        elif count < group_width:
            extend(job, &block.extended, count, &block.beams, first + best, steps, block.words[m], block.log_probs[m],
                   rank)
            block.extended.parent[count] = row + best
            count += 1
        taken += 1
    if taken == 0:  # no word is allowed next, so the captions end here
        for j in range(live):
            add_to_pool(job, block, slot, g, first + j, -1, 0)
    if block.pooled[group] == group_width:
        count = 0
    for j in range(count):
        copy(job, &block.beams, first + j, &block.extended, j)
    block.live[group] = count
    return 0


cdef int sample_word(const Job* job, Block* block, floating* scores, ptrdiff_t slot, ptrdiff_t row) noexcept nogil:
    """Extend a sampled caption by one word. Return 1 if scores are not finite."""
    cdef const Model* model = &job.model
    cdef ptrdiff_t steps = block.steps[slot], search = block.search[slot], wanted = 1, last = model.V, word, m
    cdef ptrdiff_t image = search // job.per_image
    cdef floating* values = <floating*> block.values
    cdef floating* weights = <floating*> block.weights
    cdef floating scale = <floating> job.inverse_temperature, floor = <floating> -INFINITY
    cdef double suppressed = suppress_words(job, scores, block.beams.ids + slot * job.T, steps)
    cdef double total, mass, sum = 0, log_prob
    if job.top_k > 0:
        wanted = min(job.top_k, model.V)
    elif job.top_p < 1:
        wanted = min(64, model.V)
    total = log_add(kernels.top_words(values, block.words, block.counts, <const floating*> scores, model.V, wanted),
                    suppressed)
    if not isfinite(total):
        return 1
    if block.counts[0] == 0:
        add_to_pool(job, block, slot, 0, slot, -1, 0)
        block.live[slot] = 0
        return 0
    if job.top_k > 0:
        m = block.counts[0] - 1
        floor, last = values[m], block.words[m]
    mass = kernels.word_weights(weights, <const floating*> scores, model.V, scale, floor, last)
    if job.top_p < 1:
        m = 0
        while True:
            # add words in decreasing order until their weights reach the fraction top_p of the sum
            sum += weights[block.words[m]]
            if sum >= job.top_p * mass or m + 1 == model.V or m + 1 == job.top_k:
                break
            m += 1
            if m == block.counts[0]:
                wanted = min(4 * wanted, model.V)
                kernels.top_words(values, block.words, block.counts, <const floating*> scores, model.V, wanted)
                if m == block.counts[0]:
                    m -= 1
                    break
        mass = kernels.word_weights(weights, <const floating*> scores, model.V, scale, values[m], block.words[m])
    word = kernels.word_at(<const floating*> weights, model.V,
                           mass * uniform(random_key(job.seed, image if job.rows == NULL else job.rows[image], steps),
                                          search % job.per_image))
    log_prob = scores[word] - total
    if word == job.end:
        add_to_pool(job, block, slot, 0, slot, word, log_prob)
        block.live[slot] = 0
        return 0
    extend(job, &block.extended, 0, &block.beams, slot, steps, word, log_prob, 0)
    block.extended.parent[0] = row
    copy(job, &block.beams, slot, &block.extended, 0)
    return 0


cdef void finish(const Job* job, Block* block, ptrdiff_t slot) noexcept nogil:
    """Write the n_best hypotheses of a search to the results and free its slot."""
    cdef ptrdiff_t T = job.T, k, g, best, at, to
    cdef ptrdiff_t* heads = block.live + slot * job.groups
    for g in range(job.groups):
        heads[g] = 0
    for k in range(job.n_best):
        best = at = -1
        for g in range(job.groups):
            if heads[g] < block.pooled[slot * job.groups + g]:
                to = slot * job.width + g * job.group_width + heads[g]
                if best < 0 or block.pool.score[to] > block.pool.score[at]:
                    best, at = g, to
        if best < 0:
            break
        heads[best] += 1
        to = block.search[slot] * job.n_best + k
        memcpy(job.ids + to * T, block.pool.ids + at * T, block.pool.length[at] * sizeof(int32_t))
        memcpy(job.word_log_probs + to * T, block.pool.word_log_probs + at * T,
               block.pool.length[at] * sizeof(double))
        job.log_probs[to], job.scores[to] = block.pool.log_prob[at], block.pool.score[at]
    block.search[slot] = -1


# ---- Searches --------------------------------------------------------------------------------------------------------

cdef int run_searches(const Job* job, Layout layout, ptrdiff_t slots, ptrdiff_t first, ptrdiff_t last,
                      const floating* h0, bint is_caller) noexcept nogil:
    """Run searches [first, last) in `slots` slots. Return 1 if scores are not finite.

    If is_caller is True, this is the thread that called from Python: it looks for signals, and stops all threads if a
    handler has raised an exception.
    """
    cdef const Model* model = &job.model
    cdef Block block = take_block(&layout, job, slots, sizeof(floating))
    cdef ptrdiff_t slot, g, j, row, group, others, products, running, following = first
    cdef floating* scores = <floating*> block.scores
    cdef floating* inputs = <floating*> job.packed.products
    cdef int failed = 0
    cdef double looked = seconds()
    cdef uint64_t mode = denormals_flush()
    memset(block.zeros, 0, model.H * sizeof(floating))
    if job.few_rows:
        for j in range(model.V):
            block.product_of_word[j] = -1
    for slot in range(slots):
        block.search[slot] = -1
    while not failed and not flag_is_set(job.stopped):
        if is_caller and interrupted(&looked):
            flag_set(job.stopped)
            break
        for slot in range(slots):
            if block.search[slot] < 0 and following < last:
                start_search(job, &block, slot, following)
                following += 1
        products = assign_rows(job, &block, h0 - <const floating*> block.h)
        if block.rows == 0:
            break
        if job.few_rows:
            input_products(job, &block, inputs)
        advance(job, &block, products, <const floating*> inputs)
        row = 0
        for slot in range(slots):
            if block.search[slot] < 0:
                continue
            others = running = 0
            for g in range(job.groups):
                group = slot * job.groups + g
                j = block.live[group]
                if j == 0:
                    continue
                if job.samples:
                    failed |= sample_word(job, &block, scores + row * model.ldv, slot, row)
                else:
                    failed |= extend_group(job, &block, scores + row * model.ldv, slot, g, row, others)
                row += j
                for j in range(block.live[group]):
                    block.chosen[others] = block.beams.word[slot * job.width + g * job.group_width + j]
                    others += 1
                running += block.live[group]
            block.steps[slot] += 1
            if block.steps[slot] == job.T:
                for g in range(job.groups):
                    for j in range(block.live[slot * job.groups + g]):
                        add_to_pool(job, &block, slot, g, slot * job.width + g * job.group_width + j, -1, 0)
                running = 0
            if running == 0:
                finish(job, &block, slot)
    denormals_restore(mode)
    return failed


cdef int run_job(Job* job, cnp.ndarray features, const floating* features_data) except -1:
    """Run all searches. Return 1 if scores are not finite, -1 if a handler of a signal has raised an exception."""
    cdef const Model* model = &job.model
    cdef int pass_, threads, failed = 0
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t N = job.N, H = model.H, searches = job.searches, slots, q, parts
    cdef Workspace scratch = Workspace()
    cdef Layout layout = layout_of(NULL, 0)
    cdef Slices slices
    cdef frn_flag stopped
    flag_clear(&stopped)
    job.stopped = &stopped
    threads = threads_for(2.0 * searches * job.width * job.T * H * (model.G + model.V))
    job.few_rows = area(searches, job.width) <= FEW_ROWS
    if job.few_rows:
        take_block(&layout, job, searches, size)
        for pass_ in range(2):
            scratch.begin(pass_)
            job.packed.h0 = scratch.take(area(N, model.ldh), size)
            job.packed.products = scratch.take(
                area(min(model.V, 1 + searches * job.width * job.T), model.ldg), size)
            job.few = take_few_rows(scratch, model, area(searches, job.width), size)
            slices = scratch.take_slices(1, layout.used, 1)
        with nogil:
            pack_few_rows(&job.few, model, threads)
            multiply_unpacked(<floating*> job.packed.h0, model.ldh, features_data, model.D,
                              <const floating*> model.W_proj, H, <const floating*> model.b_proj, N, H, model.D, threads)
            # a single step of few rows pays for threads only if the weights are large
            job.threads = threads_for(2.0 * searches * job.width * H * (model.G + model.V))
            failed = run_searches(job, layout_of(slices.memory, layout.used), searches, 0, searches,
                                  <const floating*> job.packed.h0, True)
        return -1 if flag_is_set(&stopped) else failed
    parts = min(<ptrdiff_t> threads, searches)
    slots = max(<ptrdiff_t> 1, min(BLOCK_ROWS // job.width, (searches + parts - 1) // parts))
    take_block(&layout, job, slots, size)
    for pass_ in range(2):
        scratch.begin(pass_)
        job.packed = take_packed(scratch, model, N, True, size)
        slices = scratch.take_slices(parts, layout.used, 1)
    pack_model(&job.packed, model, features, threads)
    with nogil:
        for q in prange(parts, num_threads=threads, schedule="static", chunksize=1):
            failed += run_searches(job, layout_of(slice_of(slices, q), layout.used), slots,
                                   share(searches, q, parts, 1), share(searches, q + 1, parts, 1),
                                   <const floating*> job.packed.h0, q == 0)
    return -1 if flag_is_set(&stopped) else failed


# ---- Over NumPy arrays -----------------------------------------------------------------------------------------------

cdef tuple run(Job* job, object params, object features, object cell_type, ptrdiff_t start, ptrdiff_t end,
               ptrdiff_t null, ptrdiff_t T, object suppress, object precision):
    """Complete a job and run it. Return ids, word_log_probs, log_probs and scores."""
    cdef cnp.ndarray given = ids_of("suppress", suppress), suppressed = new(cnp.NPY_INTP, 1, dim(given, 0))
    cdef tuple arrays = read_model(&job.model, params, features, cell_type, precision)
    cdef cnp.ndarray features_ = arrays[0], ids, word_log_probs, log_probs, scores
    cdef ptrdiff_t V = job.model.V
    cdef int failed
    job.N, job.T, job.start, job.end = dim(features_, 0), T, start, end
    if not 0 <= start < V:
        raise IndexError(f"<START> has the id {start}; expected an id in [0, {V})")
    if not wrap_ids(<ptrdiff_t*> data(suppressed), <cnp.npy_intp*> data(given), dim(given, 0), V):
        checks.check_ids("suppress", given, V)
    job.suppressed, job.suppressed_count = <ptrdiff_t*> data(suppressed), dim(suppressed, 0)
    job.searches = area(job.N, job.per_image)
    job.group_width = job.width // job.groups
    # top-k and top-p sampling may need to rank all words
    job.max_candidates = V if job.samples and (job.top_p < 1 or job.top_k > 0) else min(V, job.width + 1)
    shape = (job.searches, job.n_best, T)
    ids, word_log_probs = np.full(shape, null, dtype=np.int32), np.zeros(shape)
    log_probs, scores = np.full(shape[:2], -np.inf), np.full(shape[:2], -np.inf)
    job.ids, job.word_log_probs = <int32_t*> data(ids), <double*> data(word_log_probs)
    job.log_probs, job.scores = <double*> data(log_probs), <double*> data(scores)
    if job.searches == 0 or T == 0:
        return ids, word_log_probs, log_probs, scores
    if cnp.PyArray_TYPE(features_) == cnp.NPY_FLOAT32:
        failed = run_job(job, features_, <const float*> data(features_))
    else:
        failed = run_job(job, features_, <const double*> data(features_))
    if failed:
        raise ValueError("features or params hold NaN or infinity, so the scores of the words are not finite; "
                         "expected finite numbers")
    return ids, word_log_probs, log_probs, scores


def beam_search(params, features, cell_type, start, end, null, ptrdiff_t max_length, ptrdiff_t width,
                ptrdiff_t groups, ptrdiff_t n_best, double diversity, ptrdiff_t min_length, ptrdiff_t no_repeat_ngram,
                suppress, cnp.ndarray scale, cnp.ndarray reward, precision="float32"):
    """Beam search, as documented at fastrnn.decoding.beam_search.

    scale and reward, float64 (max_length + 1,), give the score of a caption by its length: log_prob * scale + reward.
    Return ids, word_log_probs, log_probs and scores.
    """
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.per_image, job.width, job.groups, job.n_best = 1, width, groups, n_best
    job.diversity, job.min_length, job.no_repeat = diversity, min_length, no_repeat_ngram
    job.scale, job.reward = <double*> data(scale), <double*> data(reward)
    return run(&job, params, features, cell_type, start, end, null, max_length, suppress, precision)


def sample(params, features, cell_type, start, end, null, ptrdiff_t max_length, ptrdiff_t count,
           double inverse_temperature, ptrdiff_t top_k, double top_p, uint64_t seed, ptrdiff_t min_length,
           ptrdiff_t no_repeat_ngram, suppress, precision="float32", rows=None):
    """Sample `count` captions per image, as documented at fastrnn.decoding.sample.

    Return the same arrays as beam_search(), with the captions of an image one after the other.
    """
    cdef Job job
    cdef cnp.ndarray rows_ = None if rows is None else np.array(rows, np.intp)
    cdef cnp.ndarray scale = np.ones(max_length + 1), reward = np.zeros(max_length + 1)
    memset(&job, 0, sizeof(job))
    job.samples, job.per_image, job.width, job.groups, job.n_best = True, count, 1, 1, 1
    job.min_length, job.no_repeat = min_length, no_repeat_ngram
    job.inverse_temperature, job.top_k = inverse_temperature, top_k
    job.top_p, job.seed = top_p, seed
    if rows_ is not None:
        checks.match_shapes({"N": len(features)}, rows=(rows_, "N"))
        job.rows = <ptrdiff_t*> data(rows_)
    job.scale, job.reward = <double*> data(scale), <double*> data(reward)
    return run(&job, params, features, cell_type, start, end, null, max_length, suppress, precision)
