"""Classical anchors: what ffmpeg makes of a clip is in time with it, and takes the bits that are said."""

import shutil

import numpy as np
import pytest

from codeclm.inference.codec.classical_codecs import SAMPLE_RATE, Anchor, nearest_anchors, ogg_packet_bytes

TIME = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
# a voice-like buzz that starts and stops
CLIP = (0.2 * np.sign(np.sin(2 * np.pi * 120 * TIME + 2 * np.sin(7 * TIME))) * (np.sin(9 * TIME) > 0)).astype(
    np.float32
)


def delay_s(audio: np.ndarray, output: np.ndarray) -> float:
    """By how much the loudness contour of `output` follows that of `audio`."""
    smooth = np.ones(320) / 320
    a, b = (np.convolve(np.square(x), smooth, "same") for x in (audio, output))
    product = np.fft.irfft(np.conj(np.fft.rfft(a - a.mean(), 2 * len(a))) * np.fft.rfft(b - b.mean(), 2 * len(a)))
    return (int(product.argmax()) + len(a)) % (2 * len(a)) / SAMPLE_RATE - len(a) / SAMPLE_RATE


@pytest.mark.parametrize("family, bitrate, least", [("Opus", 12_000, 0.4), ("Codec 2", 2_400, 1.0)])
def test_an_anchor_is_in_time_and_takes_about_the_bits_it_was_given(family: str, bitrate: int, least: float):
    anchor = Anchor(family, bitrate)
    if anchor not in nearest_anchors([bitrate])[0]:
        pytest.skip(f"this ffmpeg has no {family}")
    passage = anchor.through(CLIP)
    assert passage.output.shape == CLIP.shape and passage.output.dtype == np.float32
    assert abs(delay_s(CLIP, passage.output)) < 0.012
    assert least <= passage.num_bits / (2 * bitrate) < 1.3  # Opus takes less for pauses
    assert passage.codes is None and np.isnan(passage.cost.encode_speed)


def test_the_nearest_rates_are_chosen_and_each_only_once():
    found, left_out = nearest_anchors([2_000, 2_300, 900, 16_000])
    names = [anchor.name for anchor in found] + [reason.split(" is left out")[0] for reason in left_out]
    assert sorted(names) == ["Codec 2 0.7k", "Codec 2 2.4k", "Opus 16k", "Opus 6k"]


def test_without_ffmpeg_each_anchor_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert nearest_anchors([8_000]) == ([], ["Opus 8k is left out: ffmpeg is not installed"])


def test_an_ffmpeg_that_fails_is_quoted_in_one_line(monkeypatch: pytest.MonkeyPatch):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    monkeypatch.setattr("codeclm.inference.codec.classical_codecs.RAW", ("-f", "no_such_format"))
    found, (reason,) = nearest_anchors([8_000])
    assert found == [] and reason.startswith("Opus 8k is left out: ffmpeg failed (") and "no_such_format" in reason


def test_bytes_of_packets_leave_out_ogg_headers_and_the_two_pages_about_the_file():
    def page(*packets: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(packets), *packets]) + bytes(sum(packets))

    assert ogg_packet_bytes(page(19) + page(60) + page(40, 41) + page(7)) == 88
