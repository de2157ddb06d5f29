"""Speech before a model learns from it: `examine_speech` for one DATA, `compare_splits` for several."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...data.preparation import duration
from .codes import examine_codes
from .duplicates import Twins, sketch, twins
from .findings import Examination, Finding, count
from .sound import examine_sound
from .speech import Speech
from .texts import examine_texts

SHORT_S = 0.5
MOST_SPEAKERS = 6  # shown


def examine_speech(speech: Speech, seconds: float) -> Examination:
    """seconds: of sound that is measured at most; codes are read whole."""
    store, info = speech.store, speech.store.codec
    kind = "audio" if speech.is_audio else "token store"
    seen = Examination(speech.path, f"{kind}, codec {info.name} {info.fingerprint[:12]}")
    examine_amounts(speech, seen)
    if not speech.is_audio:
        try:
            store.verify()
            seen.lines.append(("checksums", "every shard is what was written"))
        except ValueError as error:
            add_damage(error, seen)
            return seen
    examine_codes(speech, seen)
    examine_texts(speech, seen)
    examine_sound(speech, seconds, seen)
    return seen


def examine_amounts(speech: Speech, seen: Examination) -> None:
    store, originals = speech.store, speech.originals
    seconds = store.num_samples[originals] / store.codec.sample_rate
    hours = float(seconds.sum()) / 3600
    copies = f", and {len(store) - len(originals)} copies of them" if len(store) > len(originals) else ""
    seen.lines.append(("amount", f"{duration(hours)}, {count(len(originals), 'utterance')}{copies}"))
    low, middle, high = np.quantile(seconds, [0.05, 0.5, 0.95])
    seen.lines.append(("length", f"{low:.2f} .. {middle:.2f} .. {high:.2f} s (5 %, half, 95 % of the utterances)"))
    named, of = speech.speakers
    parts = np.bincount(of[originals], seconds / 3600, len(named))
    by_speaker = {named[i]: float(parts[i]) for i in np.argsort(-parts)}
    shown = [f"{name or '(none named)'} {duration(part)}" for name, part in list(by_speaker.items())[:MOST_SPEAKERS]]
    more = f", and {len(by_speaker) - MOST_SPEAKERS} more" if len(by_speaker) > MOST_SPEAKERS else ""
    seen.lines.append(("speakers", f"{len(by_speaker)}: {', '.join(shown)}{more}"))
    seen.facts |= {
        "hours": hours, "num_utterances": len(originals), "num_copies": len(store) - len(originals),
        "length_s": [float(value) for value in (low, middle, high)], "hours_by_speaker": by_speaker,
    }  # fmt: skip
    short = int((seconds < SHORT_S).sum())
    if short > 0.1 * len(seconds):
        found = f"{short} of {count(len(seconds), 'utterance')} are shorter than {SHORT_S} s"
        seen.note("length", found, "little follows from so little context; join them, if they belong together")
    rejected = speech.rejected()
    seen.facts["rejected"] = {reason: len(names) for reason, names in rejected.items()}
    for reason, names in rejected.items():
        seen.warn("rejected", f"{count(len(names), 'file')}: {reason}", "mend them, or leave them out", names)


def compare_splits(everything: Sequence[tuple[Speech, Examination]]) -> list[Finding]:
    """Duplicates inside each, which are added to what was seen of it, and speech that is in two of them."""
    found, side_of = compared([speech for speech, _ in everything])
    for side, (speech, one) in enumerate(everything):
        own = found.within(side_of, side)
        one.facts["num_duplicates"] = len(own.pairs)
        if len(own.pairs):
            advice = "keep one of each: what is there twice is learned by heart, and may be held out and trained on"
            one.warn("duplicates", amount(own), advice, pairs(own, speech, speech))
    findings = []
    for a in range(len(everything)):
        for b in range(a + 1, len(everything)):
            between = found.between(side_of, a, b)
            findings += compare_two(everything[a][0], everything[b][0], between)
    if len({speech.store.codec.fingerprint for speech, _ in everything}) > 1:
        advice = "give audio, or stores of one codec"
        findings.append(Finding("warning", "leakage", "what has different codecs cannot be compared", advice))
    return findings


def compared(everything: Sequence[Speech]) -> tuple[Twins, np.ndarray]:
    """Twins among all recordings, and which speech each recording is of."""
    sketches, sizes = [], [len(speech.recordings[0]) for speech in everything]
    for speech, start in zip(everything, np.cumsum(sizes) - sizes, strict=True):
        sketches.append((sketch(speech.store), speech.recordings[1] + start))
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return twins(sketches, starts), np.repeat(np.arange(len(sizes)), sizes)


def compare_two(one: Speech, other: Speech, leaks: Twins) -> Iterator[Finding]:
    if len(leaks.pairs):
        found = f"{one.path} and {other.path} share speech: {amount(leaks)}"
        advice = "remove it from one of them; a score on it is one of memory"
        yield Finding("error", "leakage", found, advice, pairs(leaks, one, other))
    speakers = sorted(set(one.speakers[0]) & set(other.speakers[0]) - {""})
    if speakers:
        found = f"{one.path} and {other.path} have {count(len(speakers), 'speaker')} in common"
        advice = "fine for known voices; split by speaker to score new ones"
        yield Finding("note", "speakers", found, advice, speakers)


def amount(found: Twins) -> str:
    """How many pairs, and how alike."""
    whole, part = int(found.whole.sum()), int((~found.whole).sum())
    kinds = [f"{whole} with equal codes"] * (whole > 0) + [f"{part} in part"] * (part > 0)
    return f"{count(len(found.pairs), 'pair')}, {' and '.join(kinds)}"


def pairs(found: Twins, one: Speech, other: Speech) -> list[str]:
    """Their names; the first sides are of `one`, the second ones of `other`."""
    sides = [speech.recording_names(found.local[:, side].tolist()) for side, speech in enumerate((one, other))]
    return [f"{a} = {b}" for a, b in zip(*sides, strict=True)]


def held_out_leaks(speech: Speech, heldout: Sequence[int], seen: Examination) -> None:
    """What a run's held-out utterances share with those that it learns from."""
    found, _ = compared([speech])
    side = np.zeros(len(speech.recordings[0]), int)
    side[speech.recordings[1][heldout]] = 1
    leaks = found.between(side, 0, 1)
    if len(leaks.pairs):
        advice = "remove the duplicates and prepare again: the held-out bits/s are those of known speech"
        found = f"what is held out is also learned: {amount(leaks)}"
        seen.error("leakage", found, advice, pairs(leaks, speech, speech))


def add_damage(error: Exception, seen: Examination) -> None:
    found, _, advice = str(error).partition("; ")
    seen.error("checksums", found, advice or "run codeclm prepare again")
