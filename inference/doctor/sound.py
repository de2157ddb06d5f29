"""A sample of the sound of some speech, clip by clip: level, clipping, pauses, bandwidth, offset, voice. S samples."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..sound.measures import PERCEPTUAL_RATE, active_frames, measure_speech, resampled
from .findings import Examination, count
from .speech import Clip, Speech

WINDOW_S = 0.032
BAND_HZ = 250.0
LOUD_SHARE = 0.99  # the bands of a recording are as loud as in the loudest hundredth of its windows
BAND_RANGE_DB = 50.0  # bands this far below the loudest hold nothing
NARROW_SHARE, NARROW_HZ = 0.55, 6000.0  # share of the codec's band, and at most
FLAT, FLAT_RUN = 0.999, 3  # samples in a row this near the peak are cut off
CLIPPED_SHARE = 0.001  # share of a clip's samples
LONG_PAUSE_SHARE, LONG_PAUSE_S = 0.4, 1.0
FEWEST_VOICED, VOICED_FROM_S = 0.05, 0.8
OFFSET = 0.02  # share of full scale
SPEAKER_DB, CLIP_DB = 12.0, 20.0  # differences in level that are more than manner
QUIET_DBFS = -45.0


@dataclass(frozen=True)
class ClipSound:
    """Measures of one clip."""

    name: str
    speaker: str
    duration_s: float
    level_dbfs: float  # level where there is no pause
    flat_share: float  # share of samples that are cut off
    offset: float  # mean of the samples
    pause_share: float
    longest_pause_s: float
    voiced_share: float
    bandwidth_hz: float


def measure(clip: Clip) -> ClipSound:
    """Raises ValueError as `measure_speech` does."""
    audio = resampled(clip.audio, clip.sample_rate, PERCEPTUAL_RATE)
    speech = measure_speech(audio, PERCEPTUAL_RATE)
    active = active_frames(audio.astype(np.float64), PERCEPTUAL_RATE)
    return ClipSound(
        clip.name,
        clip.speaker,
        len(clip.audio) / clip.sample_rate,
        speech.loudness_dbfs,
        flat_share(clip.audio),
        float(clip.audio.mean()),
        speech.silent_share,
        longest_run(~active) * len(audio) / PERCEPTUAL_RATE / len(active),
        speech.voiced_share,
        bandwidth(clip.audio, clip.sample_rate),
    )


def flat_share(audio: np.ndarray) -> float:
    """Share of the samples of audio [S] that stand at its peak, three or more in a row."""
    shares = 0.0
    for side in (audio, -audio):
        top = side >= FLAT * np.abs(audio).max()
        inside = np.lib.stride_tricks.sliding_window_view(np.pad(top, FLAT_RUN - 1), FLAT_RUN).all(axis=1)
        shares += np.lib.stride_tricks.sliding_window_view(inside, FLAT_RUN).any(axis=1).mean()
    return float(shares)


def longest_run(values: np.ndarray) -> int:
    """The most that are True in a row, of [N] bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], values, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def bandwidth(audio: np.ndarray, sample_rate: int) -> float:
    """The frequency in Hz above which audio [S] holds nothing, even where it is loudest there."""
    window = 2 * round(WINDOW_S * sample_rate / 2)
    padded = np.pad(audio, (0, max(0, window - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 2] * np.hanning(window)
    power = np.square(np.abs(np.fft.rfft(frames)))
    width = round(BAND_HZ * window / sample_rate)  # bins of a band
    num_bands = power.shape[1] // width
    bands = power[:, : num_bands * width].reshape(len(power), num_bands, width).mean(axis=2)
    level = 10 * np.log10(np.quantile(bands, LOUD_SHARE, axis=0) + 1e-20)
    return float((np.flatnonzero(level > level.max() - BAND_RANGE_DB).max() + 1) * BAND_HZ)


def examine_sound(speech: Speech, seconds: float, seen: Examination) -> None:
    """Measure at most about `seconds` of it."""
    clips: list[ClipSound] = []
    for clip in speech.clips(seconds):
        clips.append(measure(clip))
    if not clips:
        seen.lines.append(("sound", "not measured: its codec is not at hand; give it with --codec"))
        return
    levels = np.array([clip.level_dbfs for clip in clips])
    total = sum(clip.duration_s for clip in clips)
    low, middle, high = np.quantile(levels, [0.1, 0.5, 0.9])
    pauses = sum(clip.pause_share * clip.duration_s for clip in clips) / total
    band = float(np.median([clip.bandwidth_hz for clip in clips]))
    where = "recordings" if speech.is_audio else "decoded tokens"
    seen.facts["sound"] = {
        "num_clips": len(clips), "seconds": total, "level_dbfs": [low, middle, high], "pause_share": pauses,
        "bandwidth_hz": band, "flat_share": float(np.mean([clip.flat_share for clip in clips])),
        "level_by_speaker_dbfs": speaker_levels(clips),
    }  # fmt: skip
    seen.lines.append(("sound", f"{count(len(clips), 'clip')}, {total / 60:.1f} min of {where} measured"))
    seen.lines.append(("level", f"{low:.1f} .. {middle:.1f} .. {high:.1f} dBFS (10 %, half, 90 % of the clips)"))
    seen.lines.append(("pauses", f"{pauses:.0%} of the time"))
    seen.lines.append(("band", f"up to {band / 1000:.2f} kHz in half of the clips"))
    judge(clips, speech, seen)


def judge(clips: Sequence[ClipSound], speech: Speech, seen: Examination) -> None:
    """What is wrong with clips, and with speakers."""

    def judged(check: str, wrong: Callable[[ClipSound], bool], what: Callable[[list[ClipSound]], str], advice: str):
        if found := [clip for clip in clips if wrong(clip)]:
            told = f"{len(found)} of {count(len(clips), 'clip')} {what(found)}{who(found, clips)}"
            seen.warn(check, told, advice, [clip.name for clip in found])

    half = speech.store.codec.sample_rate / 2
    least = min(NARROW_SHARE * half, NARROW_HZ)
    if speech.is_audio:
        judged(
            "clipping",
            lambda clip: clip.flat_share > CLIPPED_SHARE,
            lambda found: f"have up to {max(clip.flat_share for clip in found):.1%} of their samples cut off",
            "record or export again at a lower level, or leave them out",
        )
        judged(
            "offset",
            lambda clip: abs(clip.offset) > OFFSET,
            lambda found: f"are off zero by up to {max(abs(clip.offset) for clip in found):.3f} of full scale",
            "filter out what is below 20 Hz",
        )
    judged(
        "narrow band",
        lambda clip: clip.bandwidth_hz < least,
        lambda found: (
            f"hold nothing above {max(clip.bandwidth_hz for clip in found) / 1000:.2f} kHz, "
            f"where the codec takes {half / 1000:g} kHz"
        ),
        "a tone, a muffled recording, or telephone speech that was resampled: leave it out, or keep it apart",
    )
    judged(
        "long silence",
        lambda clip: clip.longest_pause_s >= max(LONG_PAUSE_S, LONG_PAUSE_SHARE * clip.duration_s),
        lambda found: (
            "are silent for "
            f"{max(clip.longest_pause_s / clip.duration_s for clip in found):.0%} of their time in one stretch"
        ),
        "cut the silence away",
    )
    judged(
        "no voice",
        lambda clip: clip.voiced_share < FEWEST_VOICED and clip.duration_s >= VOICED_FROM_S,
        lambda found: "have no voiced sound: noise, or a whisper",
        "listen to them; leave out what is no speech",
    )
    judge_levels(clips, seen)


def judge_levels(clips: Sequence[ClipSound], seen: Examination) -> None:
    by_speaker = speaker_levels(clips)
    middle = float(np.quantile(list(by_speaker.values()), 0.5, method="higher"))
    far = {name: level - middle for name, level in by_speaker.items() if abs(level - middle) >= SPEAKER_DB}
    if far:
        names = [f"{name} {difference:+.0f} dB" for name, difference in far.items()]
        seen.warn("level", f"{count(len(far), 'speaker')} far from the others' level", "level them", names)
    odd = [clip for clip in clips if abs(clip.level_dbfs - by_speaker[clip.speaker]) >= CLIP_DB]
    if odd:
        names = [f"{clip.name} {clip.level_dbfs - by_speaker[clip.speaker]:+.0f} dB" for clip in odd]
        found = f"{len(odd)} of {count(len(clips), 'clip')} far from their own speaker's level"
        seen.warn("level", found, "listen to them: a whisper, a shout, another distance, or another gain", names)
    if middle < QUIET_DBFS:
        seen.warn("level", f"half of the clips are below {middle:.0f} dBFS", "make all of it louder, by one factor")


def speaker_levels(clips: Sequence[ClipSound]) -> dict[str, float]:
    """Speaker -> the median level of the clips in dBFS."""
    levels: dict[str, list[float]] = {}
    for clip in clips:
        levels.setdefault(clip.speaker, []).append(clip.level_dbfs)
    return {speaker: float(np.median(found)) for speaker, found in levels.items()}


def who(found: Sequence[ClipSound], clips: Sequence[ClipSound]) -> str:
    """ " of speaker ..." where nearly all of them are, and they are most of the speaker's; else nothing."""
    everyone = Counter(clip.speaker for clip in clips)
    for speaker, number in Counter(clip.speaker for clip in found).items():
        if len(everyone) > 1 and number >= 0.8 * len(found) and number >= 0.5 * everyone[speaker]:
            return f", {number} of {everyone[speaker]} of speaker {speaker}"
    return ""
