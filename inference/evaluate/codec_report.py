"""How much of speech a codec keeps: each clip against its reconstruction, and how evenly the codebooks are used.

Nothing here knows about language models. K codebooks, V codebook size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

from ...data.audio import load_audio
from ...data.progress import progress_bar
from ...model.codecs import Codec
from . import measures
from .plain import json_safe
from .transcribe import Transcriber, normalised_words, word_error_rate

COLUMNS = {  # of the table: measure -> heading, format
    "pesq_wb": ("PESQ-WB", ".2f"),
    "stoi": ("STOI", ".3f"),
    "si_sdr_db": ("SI-SDR dB", ".1f"),
    "log_mel_distance": ("log-mel", ".3f"),
    "pitch_correlation": ("pitch r", ".3f"),
    "voiced_difference": ("voiced", "+.3f"),
    "loudness_difference_db": ("level dB", "+.1f"),
    "word_error_rate": ("WER", ".1%"),
}


@dataclass(frozen=True)
class ClipMeasures:
    """One reconstruction against its original, or the mean over clips. NaN: not defined here, or not measured."""

    pesq_wb: float
    stoi: float
    si_sdr_db: float
    log_mel_distance: float
    pitch_correlation: float
    voiced_difference: float  # voiced share of the reconstruction less that of the original
    loudness_difference_db: float  # the same, of the active parts
    word_error_rate: float  # of the reconstruction's transcript against the original's


@dataclass(frozen=True)
class CodecClip:
    name: str
    duration_s: float
    measures: ClipMeasures
    transcript: str = ""  # of the original
    output_transcript: str = ""


@dataclass(frozen=True)
class CodebookUse:
    """How evenly one codebook's entries are used over all clips."""

    used_share: float  # of the V entries; at most num_frames / V
    perplexity: float  # exp of the entropy of the entries' shares, 1..V


@dataclass(frozen=True)
class CodecReport:
    codec: str
    fingerprint: str
    bitrate: float  # bits/s
    frame_rate: float  # Hz
    codebook_size: int
    num_frames: int  # over all clips
    clips: list[CodecClip]
    codebooks: list[CodebookUse]  # [K]
    skipped: list[str] = field(default_factory=list)  # "name: why"

    @property
    def mean(self) -> ClipMeasures:
        """Over the clips where a measure is defined; the word error rate is pooled over all words instead."""
        values = {
            column.name: _mean([getattr(clip.measures, column.name) for clip in self.clips])
            for column in fields(ClipMeasures)
        }
        spoken = [clip for clip in self.clips if np.isfinite(clip.measures.word_error_rate)]
        if spoken:
            values["word_error_rate"] = word_error_rate(
                [clip.transcript for clip in spoken], [clip.output_transcript for clip in spoken]
            )
        return ClipMeasures(**values)

    def to_dict(self) -> dict:
        """For JSON; a measure that is not defined is None."""
        return json_safe(asdict(self) | {"mean": asdict(self.mean)})

    def table(self) -> str:
        """The report for a terminal."""
        width = max([len(clip.name) for clip in self.clips] + [len("mean")])
        shown = [key for key in COLUMNS if any(np.isfinite(getattr(clip.measures, key)) for clip in self.clips)]
        lines = [
            f"codec {self.codec} ({self.fingerprint[:12]}): {self.bitrate:.0f} bits/s, {self.frame_rate:g} frames/s, "
            f"{len(self.codebooks)} codebooks of {self.codebook_size}",
            f"{'clip':{width}}  " + "".join(f"{COLUMNS[key][0]:>11}" for key in shown),
        ]
        for name, row in [(clip.name, clip.measures) for clip in self.clips] + [("mean", self.mean)]:
            lines.append(f"{name:{width}}  " + "".join(_cell(getattr(row, key), COLUMNS[key][1]) for key in shown))
        lines.append(f"codebook use over {self.num_frames} frames:")
        for k, use in enumerate(self.codebooks):
            lines.append(f"  codebook {k}: {use.used_share:6.1%} of entries used, perplexity {use.perplexity:.1f}")
        return "\n".join(lines + [f"skipped {reason}" for reason in self.skipped])


def codec_report(paths: Sequence[Path], codec: Codec, asr: bool = False) -> CodecReport:
    """Send each clip through `codec` and measure what comes back; asr: also compare transcripts (slow).

    A clip that cannot be read or rated is left out and named in `skipped`. Raises ValueError if that leaves none,
    ImportError without the packages of codeclm[eval].
    """
    transcriber = Transcriber() if asr else None
    counts = np.zeros((codec.num_codebooks, codec.codebook_size), dtype=np.int64)
    clips, skipped = [], []
    for path in progress_bar(paths, desc="measure", unit="clip", delay=2):
        try:
            audio = load_audio(path, codec.sample_rate)
            codes, output = _through(codec, audio)
            clips.append(_clip(path.name, audio, output, codec.sample_rate, transcriber))
        except ValueError as error:
            skipped.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        for k, row in enumerate(codes):
            counts[k] += np.bincount(row, minlength=codec.codebook_size)
    if not clips:
        raise ValueError(f"no clip can be measured ({skipped[0]})" if skipped else "no clip was given")
    return CodecReport(
        codec=codec.name,
        fingerprint=codec.fingerprint,
        bitrate=codec.bitrate,
        frame_rate=codec.frame_rate,
        codebook_size=codec.codebook_size,
        num_frames=int(counts[0].sum()),
        clips=clips,
        codebooks=[codebook_use(row) for row in counts],
        skipped=skipped,
    )


def codebook_use(counts: np.ndarray) -> CodebookUse:
    """counts [V]: how often each entry was chosen (at least one was)."""
    shares = counts[counts > 0] / counts.sum()
    return CodebookUse(float(np.mean(counts > 0)), float(np.exp(-(shares * np.log(shares)).sum())))


@torch.no_grad()
def _through(codec: Codec, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """audio [S] -> codes [K, T], reconstruction [S]."""
    codes = codec.encode(torch.from_numpy(audio)[None, None])
    return codes[0].cpu().numpy(), codec.decode(codes)[0, 0, : len(audio)].float().cpu().numpy()


def _clip(
    name: str, audio: np.ndarray, output: np.ndarray, sample_rate: int, transcriber: Transcriber | None
) -> CodecClip:
    before, after = (measures.measure_speech(x, sample_rate) for x in (audio, output))
    transcript = output_transcript = ""
    if transcriber is not None:
        language = transcriber.detect_language(audio, sample_rate)  # once: it must not differ between the two
        transcript, output_transcript = (transcriber.transcribe(x, sample_rate, language) for x in (audio, output))
    has_words = bool(normalised_words(transcript))
    return CodecClip(
        name=name,
        duration_s=before.duration_s,
        measures=ClipMeasures(
            pesq_wb=measures.pesq_wb(audio, output, sample_rate),
            stoi=measures.stoi(audio, output, sample_rate),
            si_sdr_db=measures.si_sdr(audio, output),
            log_mel_distance=measures.log_mel_distance(audio, output, sample_rate),
            pitch_correlation=measures.pitch_correlation(audio, output, sample_rate),
            voiced_difference=after.voiced_share - before.voiced_share,
            loudness_difference_db=after.loudness_dbfs - before.loudness_dbfs,
            word_error_rate=word_error_rate(transcript, output_transcript) if has_words else float("nan"),
        ),
        transcript=transcript,
        output_transcript=output_transcript,
    )


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _cell(value: float, spec: str) -> str:
    return f"{format(value, spec) if np.isfinite(value) else '-':>11}"
