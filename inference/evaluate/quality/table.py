"""Judgements of many prompts as tables: how it sounds, whose voice it is, what is said, and how that drifts.

Intervals are 95 %, bootstrap over prompts. A "-" stands where nobody judged.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...config import EvaluateConfig
from ...sound.compare import Words, text_error_rate
from ...sound.drift import NUM_PARTS
from ...sound.measures import semitones
from ...text_table import number
from ..report import resampled_ratios
from .estimate import Estimate, cell, estimate, mean_cell
from .items import Item, Quarter
from .material import CONTINUATION, KINDS, REAL
from .texts import auto_bleu, distinct
from .voices_kept import VoiceKept, each_voice, voices_kept

Rows = list[list[str]]


@dataclass(frozen=True)
class Sounding:
    """How one kind of sound sounds."""

    num: int
    mos: Estimate | None
    loudness_dbfs: Estimate | None
    median_pitch_hz: Estimate | None  # without sounds that have no pitch
    voiced_share: Estimate | None
    silent_share: Estimate | None


@dataclass(frozen=True)
class Saying:
    """What is said in one kind of sound, by whisper-base's transcripts."""

    num: int  # transcripts
    words_per_second: float
    num_english: int  # transcripts with words that GenPPL is over
    genppl: tuple[float, float, float] | None  # with its interval
    auto_bleu: float  # mean
    distinct: float  # word pairs
    word_error_rate: float  # over whole recordings whose text is known; NaN otherwise


@dataclass(frozen=True)
class Drifting:
    """A quarter of a kind of sound, against the prompt."""

    level_db: Estimate | None
    semitones: Estimate | None
    silent_share: Estimate | None
    similarity: Estimate | None
    bits_per_second: Estimate | None


@dataclass(frozen=True)
class Quality:
    """Kind of sound -> what was found."""

    sounding: dict[str, Sounding]
    voices: dict[str, VoiceKept]
    each_voice: dict[str, VoiceKept]  # voice -> its continuations, where there are several
    saying: dict[str, Saying]
    drifting: dict[str, list[Drifting]]
    missing: list[str]  # judges that were not there, and why

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def tables(self) -> dict[str, Rows]:
        """Title -> rows of text, the heading first."""
        found = {
            "How it sounds": _sounding_rows(self.sounding),
            "Whose voice it is": _voice_rows("sound", self.voices),
        }
        if self.each_voice:
            found["Continuations of each voice"] = _voice_rows("voice", self.each_voice)
        if self.saying:
            found["What is said"] = _saying_rows(self.saying)
        return found | {"By quarter of the time, against the prompt": _drifting_rows(self.drifting)}


def quality(items: Sequence[Item], missing: Sequence[str], config: EvaluateConfig) -> Quality:
    kinds = [kind for kind in KINDS if any(kind in item.sounds for item in items)]
    return Quality(
        sounding={kind: _sounding(items, kind, config) for kind in kinds},
        voices=voices_kept(items, config),
        each_voice=each_voice(items, config),
        saying={kind: found for kind in kinds if (found := _saying(items, kind, config)).num},
        drifting={kind: _drifting(items, kind, config) for kind in (REAL, CONTINUATION) if kind in kinds},
        missing=list(missing),
    )


def _sounding(items: Sequence[Item], kind: str, config: EvaluateConfig) -> Sounding:
    sounds = [item.sounds[kind] for item in items if kind in item.sounds]
    measures = [sound.measures for sound in sounds]
    return Sounding(
        num=len(sounds),
        mos=estimate([sound.mos for sound in sounds], config),
        loudness_dbfs=estimate([found.loudness_dbfs for found in measures], config),
        median_pitch_hz=estimate([found.median_pitch_hz or None for found in measures], config),
        voiced_share=estimate([found.voiced_share for found in measures], config),
        silent_share=estimate([found.silent_share for found in measures], config),
    )


def _saying(items: Sequence[Item], kind: str, config: EvaluateConfig) -> Saying:
    sounds = [item.sounds[kind] for item in items if kind in item.sounds and item.sounds[kind].transcript is not None]
    texts = [sound.transcript or "" for sound in sounds]
    english = [(sound.text_nats, sound.num_tokens) for sound in sounds if sound.num_tokens]
    words = [
        Words(heard=item.heard[kind], text=item.text, language=item.language or "")
        for item in items
        if kind in item.heard and item.text is not None
    ]
    seconds = sum(sound.measures.duration_s for sound in sounds)
    return Saying(
        num=len(texts),
        words_per_second=sum(len(text.split()) for text in texts) / seconds if seconds else float("nan"),
        num_english=len(english),
        genppl=_perplexity(np.array(english), config) if english else None,
        auto_bleu=float(np.mean([auto_bleu(text) for text in texts])) if texts else float("nan"),
        distinct=distinct(texts),
        word_error_rate=text_error_rate(words),
    )


def _perplexity(found: np.ndarray, config: EvaluateConfig) -> tuple[float, float, float]:
    """Nats and tokens of texts [N, 2] -> exp(nats per token) over all of them, with its interval."""
    nats, tokens = found.T
    low, high = np.quantile(np.exp(resampled_ratios(nats, tokens, config)), [0.025, 0.975])
    return float(np.exp(nats.sum() / tokens.sum())), float(low), float(high)


def _drifting(items: Sequence[Item], kind: str, config: EvaluateConfig) -> list[Drifting]:
    pairs = [(item.quarters[kind], item.prompt.measures) for item in items if kind in item.quarters]
    found = []
    for part in range(NUM_PARTS):
        quarters: list[Quarter] = [parts[part] for parts, _ in pairs]
        levels, pitches = [], []
        for parts, prompt in pairs:
            now = parts[part].measures
            levels.append(now.loudness_dbfs - prompt.loudness_dbfs)
            both = min(now.median_pitch_hz, prompt.median_pitch_hz) > 0
            pitches.append(semitones(now.median_pitch_hz, prompt.median_pitch_hz) if both else None)
        found.append(Drifting(
            level_db=estimate(levels, config),
            semitones=estimate(pitches, config),
            silent_share=estimate([quarter.measures.silent_share for quarter in quarters], config),
            similarity=estimate([quarter.similarity for quarter in quarters], config),
            bits_per_second=estimate([quarter.bits_per_second for quarter in quarters], config),
        ))  # fmt: skip
    return found


def _sounding_rows(found: dict[str, Sounding]) -> Rows:
    rows = [["sound", "clips", "MOS", "level dBFS", "pitch Hz", "voiced", "pauses"]]
    for kind, row in found.items():
        measures = (row.loudness_dbfs, ".1f"), (row.median_pitch_hz, ".0f"), (row.voiced_share, ".0%")
        cells = [mean_cell(*measure) for measure in (*measures, (row.silent_share, ".0%"))]
        rows.append([kind, str(row.num), cell(row.mos, ".2f"), *cells])
    return rows


def _voice_rows(heading: str, found: dict[str, VoiceKept]) -> Rows:
    rows = [[heading, "like its prompt", "like others", "nearer to its own", "pitch in 3 st", "level in 4 dB"]]
    for kind, row in found.items():
        shares = [cell(share, ".0%") for share in (row.nearer, row.pitch, row.level)]
        rows.append([kind, cell(row.own, ".2f"), mean_cell(row.other, ".2f"), *shares])
    return rows


def _saying_rows(found: dict[str, Saying]) -> Rows:
    rows = [["sound", "texts", "words/s", "GenPPL", "English texts", "auto-BLEU-2", "distinct-2", "WER"]]
    for kind, row in found.items():
        perplexity = "-" if row.genppl is None else Estimate(*row.genppl, row.num_english).shown(".0f")
        rows.append([
            kind, str(row.num), number(row.words_per_second, ".1f"), perplexity, str(row.num_english),
            number(row.auto_bleu, ".3f"), number(row.distinct, ".3f"), number(row.word_error_rate, ".1%"),
        ])  # fmt: skip
    return rows


def _drifting_rows(found: dict[str, list[Drifting]]) -> Rows:
    rows = [["sound", "quarter", "level dB", "semitones", "pauses", "like its prompt", "bits/s"]]
    for kind, quarters in found.items():
        for place, row in enumerate(quarters, 1):
            cells = (row.level_db, "+.1f"), (row.semitones, "+.1f"), (row.silent_share, ".0%"), (row.similarity, ".2f")
            rows.append([kind, str(place), *(mean_cell(*c) for c in (*cells, (row.bits_per_second, ".0f")))])
    return rows
