"""Who speaks: a few voices of each synthesizer and of people, and many that are made of them.

A derived voice is a fixed change of another one: in hibari's spectra before there is sound (synthesizers.py), in the
sound itself for the others (variants.py), or a mean of two of kokoro's. About one voice in twelve is held out: it
speaks in no training utterance, and neither does any voice that is made of it.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

from .variants import Change

AMERICAN = """
af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam am_echo
am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa
"""
BRITISH = "bf_alice bf_emma bf_isabella bf_lily bm_daniel bm_fable bm_george bm_lewis"
FOREIGN = """
ef_dora em_alex ff_siwis hf_alpha hf_beta hm_omega hm_psi if_sara im_nicola jf_alpha jf_gongitsune jf_nezumi
jf_tebukuro jm_kumo pf_dora pm_alex zf_xiaobei zf_xiaoni zf_xiaoxiao zf_xiaoyi zm_yunjian zm_yunxi zm_yunxia
zm_yunyang
"""
HELD_OUT = "af_nova af_sarah am_eric am_adam bf_lily bm_lewis im_nicola zm_yunjian jf_nezumi hf_beta"
MIXED = 40  # means of two of kokoro's voices
SHAPED, HELD_SHAPED = 60, 6  # voices made of hibari's one
CHANGED = {"kokoro": 3, "joe": 5, "flite": 5, "espeak": 0, "human": 5}  # voices made of each other one
HELD_CHANGED = {"joe": 1, "flite": 1, "human": 1}  # those of them that are held out

# how many of 100 syntheses each kind gets; a slow one (VERSIONS) then speaks in several voices
SHARES = {"hibari": 64, "kokoro": 2, "joe": 6, "human": 16, "flite": 9, "espeak": 3}
VERSIONS = {"kokoro": 4, "joe": 2}
AS_IT_COMES = 0.4  # share of hibari's that is in its own voice


@dataclass(frozen=True)
class Voice:
    """One that is recognised again: the `speaker` of its utterances."""

    name: str
    kind: str  # a synthesizer's name, or "human"
    settings: str = ""  # the voice's name for the synthesizer; the folder of recordings
    change: Change = field(default_factory=Change)
    heldout: bool = False


def synthetic_voices() -> dict[str, list[Voice]]:
    """Kind -> its voices. The first ones are as they come; derived ones follow."""
    hibari = [Voice("heart", "hibari")]
    for number in range(SHAPED + HELD_SHAPED):
        rng = np.random.default_rng(zlib.crc32(f"heart~{number}".encode()))
        heldout = number >= SHAPED
        hibari.append(Voice(f"heart~{number:02d}", "hibari", shape(rng), heldout=heldout))
    names = f"{AMERICAN} {BRITISH} {FOREIGN}".split()
    kokoro = [Voice(f"kokoro_{name}", "kokoro", name, heldout=name in HELD_OUT.split()) for name in names]
    rng = np.random.default_rng(0)
    plain = [voice.settings for voice in kokoro if not voice.heldout]
    while len(kokoro) < len(names) + MIXED:
        pair = "+".join(sorted(str(name) for name in rng.choice(plain, 2, replace=False)))
        if pair not in {voice.settings for voice in kokoro}:
            kokoro.append(Voice(f"kokoro_{pair}", "kokoro", pair))
    flite = [Voice(f"flite_{name}", "flite", name, heldout=name == "awb") for name in ("slt", "rms", "awb", "kal16")]
    spoken = [("us", "en-us"), ("gb", "en-gb"), ("m7", "en-us+m7")]
    espeak = [Voice(f"espeak_{name}", "espeak", setting) for name, setting in spoken]
    joe = [Voice("joe", "joe")]
    found = {"hibari": hibari, "kokoro": kokoro, "joe": joe, "flite": flite, "espeak": espeak}
    return {kind: voices if kind == "hibari" else with_changed(voices) for kind, voices in found.items()}


def with_changed(voices: list[Voice]) -> list[Voice]:
    """The voices, and some made of each that speaks in training."""
    return [*voices, *(other for voice in voices if not voice.heldout for other in changed(voice))]


def changed(voice: Voice) -> list[Voice]:
    """The voices made of one."""
    count, held = CHANGED[voice.kind], HELD_CHANGED.get(voice.kind, 0)
    found = []
    for number in range(count):
        name = f"{voice.name}~{number}"
        change = Change.drawn(np.random.default_rng(zlib.crc32(name.encode())))
        found.append(Voice(name, voice.kind, voice.settings, change, number >= count - held))
    return found


def shape(rng: np.random.Generator) -> str:
    """Settings of hibari's for a voice: most have the pitch that goes with their throat."""
    throat = float(np.exp(rng.uniform(np.log(0.82), np.log(1.18))))
    pitch = 40 * np.log(throat) + rng.uniform(-3.5, 3.5)
    melody, breath, speed = rng.uniform(0.6, 1.5), rng.choice([0, 0, 0, 3, 6]), rng.uniform(0.85, 1.2)
    manner = " whisper=1" if rng.random() < 0.06 else f" pitch={pitch:.2f} melody={melody:.2f} breath={breath:g}"
    return f"throat={throat:.3f} speed={speed:.2f}{manner}"
