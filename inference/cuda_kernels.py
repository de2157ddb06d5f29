"""The kernels of a frame on a GPU, in Triton: few rows, so each is bound by reading its weights once.

Matrices are stored [out, in]; a program takes some of the outputs. Activations are float32; weights and cached keys and
values may be bfloat16. A norm's division is done after the product that follows it: (x / |x|) W = (x W) / |x|.
B rows, D inputs, N outputs, H heads, G key/value heads, E head width, P positions of a cache, V classes.
"""

import triton
import triton.language as tl
import triton.language.extra.cuda as cuda


@triton.jit
def wait(EARLY: tl.constexpr):
    """Until the kernels before this one are done. EARLY: it began before, with what it needs weights alone for."""
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()


@triton.jit
def own_rows(ROWS: tl.constexpr):
    return tl.program_id(1) * ROWS + tl.arange(0, ROWS)


@triton.jit
def inputs_at(x, x_stride, start, D: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """x [B, D] of this program's rows, from column `start` on [ROWS, BLOCK_D]."""
    rows = own_rows(ROWS)[:, None]
    inputs = start + tl.arange(0, BLOCK_D)[None, :]
    return tl.load(x + rows * x_stride + inputs, mask=(rows < B) & (inputs < D), other=0.0)


@triton.jit
def weights_at(w, outputs, N, start, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `outputs` of w [N, D], from column `start` on [BLOCK_N, BLOCK_D]."""
    inputs = start + tl.arange(0, BLOCK_D)[None, :]
    there = (outputs[:, None] < N) & (inputs < D)
    return tl.load(w + outputs[:, None].to(tl.int64) * D + inputs, mask=there, other=0.0)


@triton.jit
def multiply(
    x, x_stride, w, outputs, N,
    D: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """This program's rows of x [B, D] times rows `outputs` of w [N, D] -> ([ROWS, BLOCK_N], |x|^2 [ROWS]).

    DOT: by tensor cores, for many rows.
    """
    if DOT:
        wait(EARLY)
        square = tl.zeros([ROWS, BLOCK_D], tl.float32)
        sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
        for start in range(0, D, BLOCK_D):
            weight = weights_at(w, outputs, N, start, D, BLOCK_D)
            value = inputs_at(x, x_stride, start, D, B, ROWS, BLOCK_D)
            square += value * value
            sums = tl.dot(value.to(weight.dtype), tl.trans(weight), sums, input_precision="tf32x3")
    else:
        weight = weights_at(w, outputs, N, 0, D, BLOCK_D)
        wait(EARLY)
        value = inputs_at(x, x_stride, 0, D, B, ROWS, BLOCK_D)
        square = value * value
        parts = weight.to(tl.float32)[None, :, :] * value[:, None, :]
        for start in range(BLOCK_D, D, BLOCK_D):
            weight = weights_at(w, outputs, N, start, D, BLOCK_D)
            value = inputs_at(x, x_stride, start, D, B, ROWS, BLOCK_D)
            square += value * value
            parts += weight.to(tl.float32)[None, :, :] * value[:, None, :]
        sums = tl.sum(parts, axis=2)
    return sums, tl.sum(square, axis=1)


@triton.jit
def product(
    x, x_stride, w, y, y_stride, N, floor,
    D: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr, EARLY: tl.constexpr,
    NORM: tl.constexpr, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y [B, N] = x w^T, of x / |x| if NORM; added to y if ADD. floor: D times the norm's epsilon."""
    rows = own_rows(ROWS)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total, square = multiply(x, x_stride, w, outputs, N, D, B, ROWS, DOT, EARLY, BLOCK_N, BLOCK_D)
    if NORM:
        total = total * tl.rsqrt(square + floor)[:, None]
    to = y + rows[:, None] * y_stride + outputs[None, :]
    there = (rows[:, None] < B) & (outputs[None, :] < N)
    if ADD:
        total += tl.load(to, mask=there, other=0.0)
    tl.store(to, total, mask=there)


@triton.jit
def gated(
    x, x_stride, w, y, F, floor,
    D: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y [B, F] = silu(gate) * up, of x / |x|. w: [2 F, D], gate before up; half of a program's outputs are gates."""
    rows = own_rows(ROWS)
    HALF: tl.constexpr = BLOCK_N // 2
    place = tl.arange(0, BLOCK_N)
    outputs = tl.program_id(0) * HALF + place // 2
    outputs = tl.where(outputs < F, outputs + F * (place % 2), 2 * F)  # gate and up of an output side by side
    total, square = multiply(x, x_stride, w, outputs, 2 * F, D, B, ROWS, DOT, EARLY, BLOCK_N, BLOCK_D)
    gate, up = tl.split(tl.reshape(total * tl.rsqrt(square + floor)[:, None], [ROWS, HALF, 2]))
    result = gate * tl.sigmoid(gate) * up
    output = tl.program_id(0) * HALF + tl.arange(0, HALF)
    tl.store(y + rows[:, None] * F + output[None, :], result, mask=(rows[:, None] < B) & (output[None, :] < F))


@triton.jit
def heads(
    x, x_stride, w, bias, query, cache, slot, turns, turn, floor,
    D: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr, EARLY: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, P: tl.constexpr, BIAS: tl.constexpr, ROPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Queries [B, H E], and keys and values into slot `slot` of the cache [2, B, G, P, E], of x / |x|.

    w: [(H + 2 G) E, D], the numbers that turn together side by side. turns: cos, sin [.., E / 2, 2], this position's
    in row `turn`.
    """
    N: tl.constexpr = (H + 2 * G) * E
    rows = own_rows(ROWS)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total, square = multiply(x, x_stride, w, outputs, N, D, B, ROWS, DOT, EARLY, BLOCK_N, BLOCK_D)
    total = total * tl.rsqrt(square + floor)[:, None]
    if BIAS:
        total += tl.load(bias + outputs, mask=outputs < N, other=0.0).to(tl.float32)[None, :]
    if ROPE:
        pairs = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        angle = turns + tl.load(turn) * E + 2 * (pairs % (E // 2))
        turned = pairs < (H + G) * E // 2
        cos = tl.load(angle, mask=turned, other=1.0)[None, :]
        sin = tl.load(angle + 1, mask=turned, other=0.0)[None, :]
        first, second = tl.split(tl.reshape(total, [ROWS, BLOCK_N // 2, 2]))
        turned_pair = tl.join(first * cos - second * sin, first * sin + second * cos)
        total = tl.reshape(turned_pair, [ROWS, BLOCK_N])
    is_row = rows[:, None] < B
    tl.store(query + rows[:, None] * (H * E) + outputs[None, :], total, mask=is_row & (outputs[None, :] < H * E))
    cached = outputs - H * E
    head = cached // E  # keys of G heads, then values
    place = (head // G * B * G + head % G)[None, :] + rows[:, None] * G
    to = cache + (place.to(tl.int64) * P + tl.load(slot)) * E + (cached % E)[None, :]
    is_cached = is_row & (cached[None, :] >= 0) & (outputs[None, :] < N)
    tl.store(to, total.to(cache.dtype.element_ty), mask=is_cached)


@triton.jit
def attend(
    query, cache, mask, mask_stride, slot, filled, mixed, scale,
    B: tl.constexpr, H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, P: tl.constexpr,
    MASK: tl.constexpr, EARLY: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """mixed [B, H E]: each query's mean of the values, weighted by softmax(query . key * scale).

    filled: how many slots of the cache hold something. mask: what is added to the scores [B, P], -inf for what a row
    does not see; the slot that was just written is seen.
    """
    wait(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    part = tl.arange(0, BLOCK_E)
    keys = cache + (row * G + head // (H // G)).to(tl.int64) * P * E
    values = keys + B * G * P * E
    num_filled, own = tl.load(filled), tl.load(slot)
    q = tl.load(query + row * (H * E) + head * E + part, mask=part < E, other=0.0).to(tl.float32) * scale
    largest = tl.full([], float("-inf"), tl.float32)
    weight = tl.zeros([], tl.float32)
    total = tl.zeros([BLOCK_E], tl.float32)
    for start in range(0, num_filled if P > BLOCK_P else 1, BLOCK_P):
        position = start + tl.arange(0, BLOCK_P)
        there = (position < num_filled)[:, None] & (part < E)[None, :]
        at = position[:, None] * E + part[None, :]
        key = tl.load(keys + at, mask=there, other=0.0).to(tl.float32)
        value = tl.load(values + at, mask=there, other=0.0).to(tl.float32)
        score = tl.where(position < num_filled, tl.sum(key * q[None, :], axis=1), float("-inf"))
        if MASK:
            hidden = tl.load(mask + row * mask_stride + position, mask=position < P, other=float("-inf"))
            score += tl.where(position == own, 0.0, hidden)
        now = tl.maximum(largest, tl.max(score, axis=0))
        shrink = tl.where(now == float("-inf"), 0.0, tl.exp(largest - now))
        share = tl.where(now == float("-inf"), 0.0, tl.exp(score - now))
        total = total * shrink + tl.sum(share[:, None] * value, axis=0)
        weight = weight * shrink + tl.sum(share, axis=0)
        largest = now
    tl.store(mixed + row * (H * E) + head * E + part, total / weight, mask=part < E)


@triton.jit
def embed(
    tables, indices, text_table, text_index, x, x_stride, D, rows_of_table,
    K: tl.constexpr, TEXT: tl.constexpr, EARLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x [B, D]: the sum of rows indices [B, K] of K tables, and of the text's row."""
    wait(EARLY)
    row = tl.program_id(0)
    part = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(K):
        index = tl.load(indices + row * K + k) + k * rows_of_table
        total += tl.load(tables + index * D + part, mask=part < D, other=0.0).to(tl.float32)
    if TEXT:
        total += tl.load(text_table + tl.load(text_index + row) * D + part, mask=part < D, other=0.0).to(tl.float32)
    tl.store(x + row * x_stride + part, total, mask=part < D)


@triton.jit
def draw(
    logits, noise, noise_stride, turn, noise_rows, settings, column, end, codes, nats, indices, K, k, lag,
    table, condition, x, x_stride, d,
    C: tl.constexpr, V: tl.constexpr, NUM_CODES, ENDS: tl.constexpr, EOS: tl.constexpr, FEED: tl.constexpr,
    ADD: tl.constexpr, EARLY: tl.constexpr, BLOCK: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The code of slot k of each row, by its Gumbel noise; its nats; and the depth decoder's next input.

    logits: [B, C]. noise: [.., B, all classes], at this slot's first class, of which row `turn` is this column's.
    settings: [B, K, 4] temperature, top_k, top_p and min_p (see sampling.py). The likeliest class by score is drawn, is
    tested against the limits, and where it is outside of them, the next likeliest.
    column: the step's number. end: [B] frames at which rows end, written where EOS is drawn.
    codes, nats, indices: [B, K], of which the k-th are written.
    """
    wait(EARLY)
    row = tl.program_id(0)
    choice = tl.arange(0, BLOCK)
    logit = tl.load(logits + row * C + choice, mask=choice < C, other=float("-inf"))
    likeliest = tl.max(logit, axis=0)
    sum_all = tl.sum(tl.exp(logit - likeliest), axis=0)
    allowed = (choice < NUM_CODES) | (EOS & ENDS & (choice == V))
    own_settings = settings + (row * K + k) * 4
    temperature, top_k = tl.load(own_settings), tl.load(own_settings + 1)
    top_p, min_p = tl.load(own_settings + 2), tl.load(own_settings + 3)
    scaled = tl.where(allowed, logit, float("-inf"))
    best = tl.max(scaled, axis=0)
    hot = tl.where(temperature > 0, temperature, 1.0)
    gumbel = tl.load(noise + (tl.load(turn) * noise_rows + row) * noise_stride + choice, mask=choice < C, other=0.0)
    score = tl.where(temperature > 0, gumbel + scaled / hot, scaled)
    p = tl.exp((scaled - best) / hot)
    p_sum = tl.sum(p, axis=0)
    drawn = tl.argmax(score, axis=0, tie_break_left=True)
    is_open = temperature > 0
    while is_open:
        own = tl.sum(tl.where(choice == drawn, scaled, 0.0), axis=0)
        above = scaled > own
        num_above = tl.sum(above.to(tl.float32), axis=0)
        p_above = tl.sum(tl.where(above, p, 0.0), axis=0) / p_sum
        fits = ((top_k == 0) | (num_above < top_k)) & ((top_p >= 1) | (p_above < top_p))
        fits = fits & (tl.exp((own - best) / hot) >= min_p) | (num_above == 0)
        score = tl.where((choice == drawn) & (fits == 0), float("-inf"), score)
        drawn = tl.where(fits, drawn, tl.argmax(score, axis=0, tie_break_left=True))
        is_open = fits == 0
    cost = likeliest + tl.log(sum_all) - tl.sum(tl.where(choice == drawn, logit, 0.0), axis=0)
    drawn = drawn.to(tl.int64)
    frame = tl.load(column) - lag
    absent: tl.constexpr = -1
    if ENDS:
        stop = tl.load(end + row)
        if EOS:
            stop = tl.where((drawn == V) & (frame < stop), frame, stop)
            tl.store(end + row, stop)
        is_over = frame >= stop
        drawn = tl.where(is_over, absent, drawn)
        cost = tl.where(is_over, 0.0, cost)
    tl.store(codes + row * K + k, drawn)
    tl.store(nats + row * K + k, cost)
    index = tl.where((drawn == absent) | (drawn == V), V + 1, drawn)
    tl.store(indices + row * K + k, index)
    if FEED:
        part = tl.arange(0, BLOCK_X)
        fed = tl.load(table + index * d + part, mask=part < d, other=0.0).to(tl.float32)
        if ADD:
            fed += tl.load(condition + row * d + part, mask=part < d, other=0.0)
        tl.store(x + row * x_stride + part, fed, mask=part < d)


@triton.jit
def advance(
    column, position, slot, filled, turn, num_turns, mask, mask_stride, P, codes, end,
    B: tl.constexpr, K: tl.constexpr, ZEROS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """To the next position: the slot that was written is seen from now on. ZEROS: a frame of zeros ends its row."""
    wait(EARLY)
    own = tl.load(slot)
    for row in range(B):
        tl.store(mask + row * mask_stride + own, 0.0)
        if ZEROS:
            largest = tl.full([], 0, tl.int64)
            for k in range(K):
                largest = tl.maximum(largest, tl.abs(tl.load(codes + row * K + k)))
            stop = tl.load(end + row)
            tl.store(end + row, tl.where((largest == 0) & (tl.load(column) < stop), tl.load(column), stop))
    now = tl.load(position) + 1
    tl.store(position, now)
    tl.store(column, tl.load(column) + 1)
    tl.store(turn, (tl.load(turn) + 1) % num_turns)
    tl.store(slot, now % P)
    tl.store(filled, tl.minimum(tl.maximum(tl.load(filled), now + 1), P))
