"""Speech before a model learns from it: `examine_speech` for one DATA, `compare_splits` for several."""

from collections.abc import Iterable, Sequence

import numpy as np

from ...data.preparation import duration
from .codes import examine_codes
from .duplicates import Twins, sketch, twins
from .findings import Examination, Finding, count, some
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
    by_speaker: dict[str, float] = {}
    for i, length in zip(originals, (seconds / 3600).tolist(), strict=True):
        by_speaker[speech.speakers[i]] = by_speaker.get(speech.speakers[i], 0.0) + length
    most = sorted(by_speaker.items(), key=lambda item: -item[1])[:MOST_SPEAKERS]
    shown = [f"{name or '(none named)'} {duration(part)}" for name, part in most]
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
        seen.warn("rejected", f"{count(len(names), 'file')}: {reason} {some(names)}", "mend them, or leave them out")


def compare_splits(everything: Sequence[tuple[Speech, Examination]]) -> list[Finding]:
    """Duplicates inside each, which are added to what was seen of it, and speech that is in two of them."""
    names, sides, sketches = [], [], []
    for side, (speech, _) in enumerate(everything):
        number = {name: len(names) + i for i, name in enumerate(dict.fromkeys(speech.recordings))}
        names += number
        sides += [side] * len(number)
        sketches.append((sketch(speech.store), np.array([number[name] for name in speech.recordings])))
    found, side_of = twins(sketches), np.array(sides)
    for side, (_, one) in enumerate(everything):
        own = found.within(side_of, side)
        one.facts["num_duplicates"] = len(own.pairs)
        if len(own.pairs):
            advice = "keep one of each: what is there twice is learned by heart, and may be held out and trained on"
            one.warn("duplicates", told(own, names), advice)
    findings = []
    for a in range(len(everything)):
        for b in range(a + 1, len(everything)):
            findings += compare_two(a, b, [speech for speech, _ in everything], found, side_of, names)
    if len({speech.store.codec.fingerprint for speech, _ in everything}) > 1:
        advice = "give audio, or stores of one codec"
        findings.append(
            Finding("warning", "leakage", "the splits have different codecs and cannot be compared", advice)
        )
    return findings


def compare_two(
    a: int, b: int, everything: Sequence[Speech], found: Twins, side_of: np.ndarray, names: Sequence[str]
) -> Iterable[Finding]:
    one, other = everything[a], everything[b]
    both = np.isin(side_of[found.pairs], [a, b]).all(axis=1)
    leaks = Twins(found.pairs[both], found.whole[both]).across(side_of)
    if len(leaks.pairs):
        what = f"{one.path} and {other.path} share speech: {told(leaks, names)}"
        yield Finding("error", "leakage", what, "remove it from one of them; a score on it is one of memory")
    speakers = sorted(set(one.speakers) & set(other.speakers) - {""})
    if speakers:
        what = f"{one.path} and {other.path} have {count(len(speakers), 'speaker')} in common {some(speakers)}"
        yield Finding("note", "speakers", what, "fine for known voices; split by speaker to score new ones")


def told(found: Twins, names: Sequence[str]) -> str:
    """How many pairs, how alike, and the first few."""
    whole = int(found.whole.sum())
    kinds = [f"{whole} with equal codes"] * (whole > 0) + [f"{len(found.whole) - whole} in part"] * (
        whole < len(found.whole)
    )
    listed = [f"{names[i]} = {names[j]}" for i, j in found.pairs.tolist()]
    return f"{count(len(listed), 'pair')}, {' and '.join(kinds)} {some(listed)}"


def held_out_leaks(speech: Speech, heldout: np.ndarray) -> str:
    """What a run's held-out utterances share with those that it learns from; "" if nothing."""
    recordings = list(dict.fromkeys(speech.recordings))
    number = {name: i for i, name in enumerate(recordings)}
    of = np.array([number[name] for name in speech.recordings])
    side = np.zeros(len(recordings), int)
    side[of[heldout]] = 1
    leaks = twins([(sketch(speech.store), of)]).across(side)
    return told(leaks, recordings) if len(leaks.pairs) else ""


def add_damage(error: Exception, seen: Examination) -> None:
    found, _, advice = str(error).partition("; ")
    seen.error("checksums", found, advice or "run codeclm prepare again")
