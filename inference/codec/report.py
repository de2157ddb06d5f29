"""How much of speech codecs keep, at which rate and cost: the same clips through each codec, and through anchors.

Nothing here knows about language models; codec_table.py and codec_page.py show the result. K codebooks, V codebook
size, S samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.audio import load_audio
from ...data.encode_files import read_transcript
from ...data.progress import progress_bar
from ...model.codecs import Codec
from ...model.files import readable
from ..json_safe import json_safe
from ..sound.compare import NAN, ClipMeasures, Words, compare, mean_measures, text_error_rate, unavailable
from ..sound.measures import PERCEPTUAL_RATE, resampled
from ..sound.transcribe import Transcriber, spoken_words
from .classical_codecs import SAMPLE_RATE as ANCHOR_RATE
from .classical_codecs import Anchor, nearest_anchors
from .reconstruction import Cost, Passage, mean_cost, through

SAMPLE_S = 10.0  # seconds of a clip that are kept, to listen to and to draw


@dataclass(frozen=True)
class Clip:
    name: str
    duration_s: float
    transcript: str = ""  # whisper's, for the original; from here on: "" where nothing was transcribed
    text: str = ""  # what is said, from NAME.txt beside NAME.wav; "" without one
    language: str = ""  # such as "en", as whisper heard it
    text_error_rate: float = NAN  # word errors of `transcript` against `text`


@dataclass(frozen=True)
class TextErrors:
    """Whisper's own error rate on the originals, against their true texts."""

    num_clips: int  # that have a text
    num_words: int  # words in these texts
    word_error_rate: float  # pooled over all words


@dataclass(frozen=True)
class CodebookUse:
    """How evenly one codebook's entries are used over all clips."""

    used_share: float  # share of the V entries that occur; at most num_frames / V
    perplexity: float  # exp of the entropy of the entries' shares, 1..V


@dataclass(frozen=True)
class CodecRow:
    """One codec, or one anchor, over all clips."""

    codec: str
    bitrate: float  # bits/s: raw rate of the codes; of an anchor, what its packets took
    sample_rate: int  # Hz
    frame_rate: float  # Hz
    mean: ClipMeasures
    measures: list[ClipMeasures]  # one for each clip
    transcripts: list[str]  # the same, of what came out; "" where nothing was transcribed
    cost: Cost
    fingerprint: str = ""  # from here on: of neural codecs
    codebook_size: int = 0
    num_frames: int = 0  # over all clips
    codebooks: list[CodebookUse] = field(default_factory=list)  # [K]


@dataclass(frozen=True)
class Sample:
    """The start of one clip, to be heard: as it was, and as each row's codec renders it."""

    clip: int  # index into the report's clips
    sample_rate: int  # Hz
    original: np.ndarray  # [S]
    outputs: list[np.ndarray]  # one for each row


@dataclass(frozen=True)
class CodecReport:
    clips: list[Clip]
    codecs: list[CodecRow]
    anchors: list[CodecRow]
    skipped: list[str]  # clips that could not be measured: "name: why"
    left_out: list[str]  # anchors that could not be had, and why
    unavailable: list[str]  # measures whose packages (codeclm[eval]) are not installed
    originals: TextErrors | None = None  # None: nothing was transcribed, or no clip has a text
    samples: list[Sample] = field(default_factory=list)

    @property
    def rows(self) -> list[CodecRow]:
        return self.codecs + self.anchors

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the samples; what is not defined or not measured is None."""
        values = asdict(replace(self, samples=[]))
        return json_safe({name: value for name, value in values.items() if name != "samples"})


def codec_report(
    paths: Sequence[Path],
    codecs: Mapping[str, Codec],
    asr: bool = False,
    anchors: bool = True,
    num_samples: int = 0,
    language: str | None = None,
) -> CodecReport:
    """Send each clip through each codec and measure what comes back.

    codecs: by the names they are shown under. asr: also compare transcripts (slow) with the original's, and with the
    true text where NAME.txt lies beside NAME.wav. anchors: also classical codecs at the nearest rates. num_samples:
    keep this many clips, spread evenly, to listen to. language: of all clips, as a code such as "fr"; None lets whisper
    detect that of each, which goes wrong on clips of a word or two. A clip that cannot be read (or for asr, its text),
    or rated with one of the codecs, is left out for all and named in `skipped`. Raises ValueError if that leaves none,
    no codec is given, or a language without asr or unknown to whisper; ImportError for asr without the packages of
    codeclm[eval].
    """
    if not codecs:
        raise ValueError("no codec was given")
    if language is not None and not asr:
        raise ValueError(f"language {language!r} is only of use to transcripts; ask for them too (asr)")
    transcriber = Transcriber(language) if asr else None
    found, left_out = nearest_anchors([codec.bitrate for codec in codecs.values()]) if anchors else ([], [])
    sources = [*codecs.items(), *((anchor.name, anchor) for anchor in found)]
    for codec in codecs.values():
        through(codec, np.zeros(codec.sample_rate // 2, np.float32))  # the first call sets things up: not measured
    tallies = [_Tally(name, source) for name, source in sources]
    clips, skipped, samples = [], [], []
    for index, path in enumerate(progress_bar(paths, desc="measure", unit="clip", delay=2)):
        try:
            clip, results = _measure(path, tallies, transcriber)
        except ValueError as error:
            name = readable(path)
            skipped.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        clips.append(clip)
        for tally, result in zip(tallies, results, strict=True):
            tally.add(result)
        if len(samples) < num_samples and index >= len(samples) * len(paths) // num_samples:
            samples.append(_sample(len(clips) - 1, path, tallies, results))
    if not clips:
        raise ValueError(f"no clip can be measured ({skipped[0]})" if skipped else "no clip was given")
    rows = [tally.row(clips) for tally in tallies]
    neural, classical = rows[: len(codecs)], rows[len(codecs) :]
    return CodecReport(clips, neural, classical, skipped, left_out, unavailable(), text_errors(clips), samples)


def text_errors(clips: Sequence[Clip]) -> TextErrors | None:
    """Whisper's own error rate on the originals, over the clips that have a text; None if none has."""
    spoken = [(clip, words) for clip in clips if (words := spoken_words(clip.text, clip.language))]
    rate = text_error_rate([Words(clip.transcript, text=clip.text, language=clip.language) for clip, _ in spoken])
    return TextErrors(len(spoken), sum(len(words) for _, words in spoken), rate) if spoken else None


def codebook_use(counts: np.ndarray) -> CodebookUse:
    """counts [V]: how often each entry was chosen (at least one was)."""
    shares = counts[counts > 0] / counts.sum()
    return CodebookUse(float(np.mean(counts > 0)), float(np.exp(-(shares * np.log(shares)).sum())))


@dataclass(frozen=True)
class _Result:
    """One clip through one codec."""

    passage: Passage
    measures: ClipMeasures
    transcript: str


class _Tally:
    """What is known of one codec or anchor so far: all that is kept of a clip that has been measured."""

    def __init__(self, name: str, source: Codec | Anchor):
        self.name, self.source = name, source
        self.sample_rate = ANCHOR_RATE if isinstance(source, Anchor) else source.sample_rate
        self.measures: list[ClipMeasures] = []
        self.transcripts: list[str] = []
        self.costs: list[Cost] = []
        self.num_bits = 0.0
        if isinstance(source, Codec):
            self.counts = np.zeros((source.num_codebooks, source.codebook_size), dtype=np.int64)

    def through(self, audio: np.ndarray) -> Passage:
        return self.source.through(audio) if isinstance(self.source, Anchor) else through(self.source, audio)

    def add(self, result: _Result) -> None:
        self.measures.append(result.measures)
        self.transcripts.append(result.transcript)
        self.num_bits += result.passage.num_bits
        if result.passage.codes is not None:
            self.costs.append(result.passage.cost)
            for counts, row in zip(self.counts, result.passage.codes, strict=True):
                counts += np.bincount(row, minlength=len(counts))

    def row(self, clips: list[Clip]) -> CodecRow:
        words = [_words(clip, heard) for clip, heard in zip(clips, self.transcripts, strict=True)]
        mean = mean_measures(self.measures, words)
        heard = (mean, self.measures, self.transcripts, mean_cost(self.costs))
        if isinstance(self.source, Anchor):
            bitrate = self.num_bits / sum(clip.duration_s for clip in clips)
            return CodecRow(self.name, bitrate, self.sample_rate, self.source.frame_rate, *heard)
        return CodecRow(
            self.name,
            self.source.bitrate,
            self.sample_rate,
            self.source.frame_rate,
            *heard,
            fingerprint=self.source.fingerprint,
            codebook_size=self.source.codebook_size,
            num_frames=int(self.counts[0].sum()),
            codebooks=[codebook_use(counts) for counts in self.counts],
        )


def _measure(path: Path, tallies: Sequence[_Tally], transcriber: Transcriber | None) -> tuple[Clip, list[_Result]]:
    rates = {PERCEPTUAL_RATE, *(tally.sample_rate for tally in tallies)}
    originals = {rate: load_audio(path, rate) for rate in sorted(rates)}
    clip, results = _clip(path, originals[PERCEPTUAL_RATE], transcriber), []
    for tally in tallies:
        passage = tally.through(originals[tally.sample_rate])
        rate = _heard_rate(tally)
        output = resampled(passage.output, tally.sample_rate, rate)
        heard = "" if transcriber is None else transcriber.transcribe(output, rate, clip.language)
        results.append(_Result(passage, compare(originals[rate], output, rate, _words(clip, heard)), heard))
    return clip, results


def _clip(path: Path, speech: np.ndarray, transcriber: Transcriber | None) -> Clip:
    """speech [S] at 16 kHz."""
    clip = Clip(readable(path.name), len(speech) / PERCEPTUAL_RATE)
    if transcriber is None:
        return clip
    text = read_transcript(path) or ""
    language = transcriber.detect_language(speech, PERCEPTUAL_RATE)  # once: it must not differ between outputs
    transcript = transcriber.transcribe(speech, PERCEPTUAL_RATE, language)
    rate = text_error_rate([Words(transcript, text=text, language=language)])
    return replace(clip, transcript=transcript, text=text, language=language, text_error_rate=rate)


def _words(clip: Clip, heard: str) -> Words:
    return Words(heard, clip.transcript, clip.text, clip.language)


def _heard_rate(tally: _Tally) -> int:
    """The rate of the comparison: what a rate below 16 kHz cuts away is a loss too."""
    return max(tally.sample_rate, PERCEPTUAL_RATE)


def _sample(clip: int, path: Path, tallies: Sequence[_Tally], results: Sequence[_Result]) -> Sample:
    rate = max(_heard_rate(tally) for tally in tallies)
    length = round(SAMPLE_S * rate)
    outputs = [
        resampled(result.passage.output, tally.sample_rate, rate)[:length]
        for tally, result in zip(tallies, results, strict=True)
    ]
    return Sample(clip, rate, load_audio(path, rate)[:length], outputs)
