"""compress/arithmetic.py: what goes in comes out, in as few bits as the probabilities allow, on any machine."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.inference.compress.arithmetic import (
    GRID,
    MARGIN,
    MAX_NATS,
    PHASE,
    TOTAL,
    Decoder,
    Distributions,
    Encoder,
    distributions,
)

LOGIT = st.floats(-60, 60) | st.just(-np.inf) | st.integers(-40, 40).map(float)


def log2_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))) / np.log(2)


def encode(indices: np.ndarray, source: Distributions) -> bytes:
    encoder = Encoder()
    for row, index in enumerate(indices):
        encoder.encode_from(int(index), source, row)
    return encoder.finish()


def decode(data: bytes, source: Distributions) -> list[int]:
    decoder = Decoder(data)
    return [decoder.decode_from(source, row) for row in range(len(source.trusted))]


def speechlike(num_rows: int, num_classes: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C] and one index [N] drawn from each row."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((num_rows, num_classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


@st.composite
def messages(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Frequencies that sum to TOTAL, many of them 1 or nearly TOTAL, and a class for each."""
    tables, indices = [], []
    for _ in range(draw(st.integers(0, 40))):
        cuts = draw(st.sets(st.integers(1, 9) | st.integers(1, TOTAL - 1) | st.integers(TOTAL - 9, TOTAL - 1)))
        edges = [0, *sorted(cuts), TOTAL]
        tables.append([high - low for low, high in zip(edges, edges[1:], strict=False)])
        indices.append(draw(st.integers(0, len(cuts))))
    return tables, indices


@given(messages())
def test_what_was_encoded_is_decoded_within_two_bytes_of_its_information(message):
    tables, indices = message
    encoder, bits = Encoder(), 0.0
    for table, index in zip(tables, indices, strict=True):
        encoder.encode(index, np.array(table))
        bits -= np.log2(table[index] / TOTAL)
    data = encoder.finish()
    decoder = Decoder(data)
    assert [decoder.decode(np.array(table)) for table in tables] == indices
    assert 8 * len(data) <= bits + 16


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("num_narrow", [1, 2, 3, 10])
def test_a_carry_runs_through_any_number_of_bytes(num_narrow, upper):
    """A narrow interval across the middle leaves 7F FF FF ... behind, until its upper half makes 80 00 00 ... of it."""
    across, halves = np.array([TOTAL // 2 - 1, 2, TOTAL // 2 - 1]), np.array([TOTAL // 2, TOTAL // 2])
    tables, indices = [across] * num_narrow + [halves], [1] * num_narrow + [upper]
    encoder = Encoder()
    for table, index in zip(tables, indices, strict=True):
        encoder.encode(index, table)
    data = encoder.finish()
    assert data.startswith((b"\x7f\xff\xff", b"\x80\0\0")[upper])
    decoder = Decoder(data)
    assert [decoder.decode(table) for table in tables] == indices


@given(st.lists(LOGIT, min_size=1, max_size=50).filter(lambda row: max(row) > -np.inf))
def test_frequencies_sum_to_the_total_leave_no_class_out_and_keep_the_order(row):
    logits = np.array([row])
    frequencies = distributions(logits).frequencies[0]
    assert frequencies.sum() == TOTAL and frequencies.min() >= 1
    others = np.arange(len(row)) != frequencies.argmax()  # the likeliest gets what rounding leaves over
    assert (np.diff(frequencies[others][np.argsort(logits[0, others])]) >= 0).all()


@pytest.mark.parametrize("num_classes", [2, 1024, 2048])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("peak", [0.0, 10.0, 15.0])
def test_rounding_costs_less_than_a_thousandth_even_of_peaked_distributions(num_classes, spread, peak):
    logits, _ = speechlike(20, num_classes, spread)
    logits[:, 1] += peak
    truth, coded = log2_softmax(logits), np.log2(distributions(logits).frequencies / TOTAL)
    entropy, cost = (-(np.exp2(truth) * log2).sum(axis=1) for log2 in (truth, coded))
    assert (cost < 1.001 * entropy + 3e-6).all()


@pytest.mark.parametrize("num_classes", [1024, 1025, 2048])
def test_a_stream_is_as_long_as_its_information(num_classes):
    logits, indices = speechlike(3000, num_classes, 2.5)
    source = distributions(logits)
    data = encode(indices, source)
    bits = -log2_softmax(logits)[np.arange(len(indices)), indices].sum()
    assert decode(data, source) == indices.tolist()
    assert 0.999 * bits < 8 * len(data) < 1.001 * bits + 16


def test_logits_that_differ_as_two_machines_do_give_the_same_bytes():
    logits, indices = speechlike(2000, 1024, 2.5)
    noise = np.random.default_rng(1).uniform(-1e-10, 1e-10, logits.shape)
    other = distributions(logits + noise)
    assert encode(indices, distributions(logits)) == encode(indices, other)
    shifted = distributions(logits + 3.25)  # softmax does not see it
    assert decode(encode(indices, shifted), other) == indices.tolist()


@settings(max_examples=200)
@given(st.data())
def test_a_logit_on_the_very_jump_of_the_rounding_is_decoded_on_any_machine(data):
    """Each logit lies within MARGIN of a jump; the decoder's are moved by up to MARGIN / 2."""
    num_classes = data.draw(st.integers(2, 6))
    jumps = data.draw(st.lists(st.integers(0, MAX_NATS * GRID), min_size=num_classes, max_size=num_classes))
    away = data.draw(st.lists(st.floats(-1, 1), min_size=num_classes, max_size=num_classes))
    moved = data.draw(st.lists(st.floats(-0.49, 0.49), min_size=num_classes, max_size=num_classes))
    logits = -(np.array(jumps) + PHASE) / GRID + MARGIN * np.array(away)
    logits[0] = 0
    indices = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=5))
    here = distributions(np.tile(logits, (len(indices), 1)))
    there = distributions(np.tile(logits + MARGIN * np.array(moved), (len(indices), 1)))
    assert decode(encode(np.array(indices), here), there) == indices


def test_round_logits_are_trusted():
    """Such as bfloat16 arithmetic gives: if these lay on jumps, everything would be coded with equal frequencies."""
    steps = np.arange(-4096, 1)[None] / np.array([[1], [3], [5], [7], [10], [64], [100], [256], [1000]])
    assert distributions(steps).trusted.all()
    assert distributions(np.zeros((1, 1024))).trusted.all()


def test_doubt_is_rare():
    logits, _ = speechlike(4000, 1024, 2.5)
    doubted = ~distributions(logits).trusted
    assert doubted.mean() < 1e-3
    logits[:, 7] = np.delete(logits, 7, axis=1).max(axis=1) - (3 + PHASE) / GRID  # on a jump
    assert not distributions(logits).trusted.any()


def test_logits_are_refused_unless_finite_and_float64():
    for bad in (np.nan, np.inf):
        with pytest.raises(FloatingPointError, match="NaN or infinite logits"):
            distributions(np.array([[0.0, 1.0], [bad, 0.0]]))
    with pytest.raises(FloatingPointError):
        distributions(np.full((1, 3), -np.inf))
    with pytest.raises(ValueError, match="float64"):
        distributions(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="class 3 is not in a distribution over 3"):
        Encoder().encode(3, distributions(np.zeros((1, 3))).frequencies[0])


@given(st.data())
def test_damaged_data_are_refused_or_decode_to_something_else_but_always_end(data):
    logits, indices = speechlike(60, 9, 2.0)
    source = distributions(logits)
    good = encode(indices, source)
    bad = bytearray(data.draw(st.binary(max_size=len(good) + 4)) if data.draw(st.booleans()) else good)
    if bad:
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(bad), source)
    except ValueError as error:
        assert str(error) in ("the coded data are damaged", "the coded data are cut off")
    else:
        assert len(decoded) == 60 and all(0 <= index < 9 for index in decoded)


def test_cut_off_data_are_refused_where_the_cut_is_felt():
    logits, indices = speechlike(400, 64, 1.0)
    source = distributions(logits)
    data = encode(indices, source)
    assert decode(data, source) == indices.tolist()
    for length in (0, 1, 8, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="the coded data are (cut off|damaged)"):
            decode(data[:length], source)


def test_the_weights_of_the_grid_are_those_of_exact_arithmetic():
    """A hundredth of a unit off and another machine's file cannot be read: the table must not come from floats."""
    logits = np.array([[0.0, -1.0, -5.0, -15.0]])
    exact = [int((Decimal(-nats)).exp() * (1 << 30)) for nats in (0, 1, 5, 15)]
    spare = TOTAL - 4
    expected = [1 + weight * spare // sum(exact) for weight in exact]
    expected[0] += TOTAL - sum(expected)
    assert distributions(logits).frequencies[0].tolist() == expected
