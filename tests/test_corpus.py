"""The recipe that builds the training speech: what it reads out of other people's packages."""

import gzip
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codeclm.data.audio_out import save_audio
from codeclm.data.encode_files import read_transcript
from codeclm.train.recipes import corpus

PROMPTS = """; Core Asterisk Sounds

letters/dash: dash [-]
beeperr: (ahooga)
confbridge-join: <beep ascending>
vm-intro: Please  leave your message: after the tone. (simple tone sound plays)
dir-welcome:
"""


def test_prompts_have_their_words_without_remarks():
    assert dict(corpus.prompts(PROMPTS)) == {
        "letters/dash": "dash",
        "vm-intro": "Please leave your message: after the tone.",
    }


def test_a_text_lies_beside_the_prompt_of_its_own_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unpacked, out = tmp_path / "unpacked", tmp_path / "out"
    for language in corpus.LANGUAGES:
        folder = unpacked / f"usr/share/doc/asterisk-core-sounds-{language}"
        folder.mkdir(parents=True)
        with gzip.open(folder / f"core-sounds-{language}.txt.gz", "wb") as file:
            file.write(b"\xef\xbb\xbf" + f"letters/a: {language} a\ndigits/1: un \u00e9\n".encode())
    root = unpacked / "usr/share/asterisk/sounds"
    for voice, name in (("fr_CA_f_June", "letters/a"), ("it_IT_m_Carlo", "digits/1"), ("it_IT_m_Carlo", "silence/1")):
        (root / voice / name).parent.mkdir(parents=True, exist_ok=True)
        (root / voice / f"{name}.g722").touch()
    (root / "it_IT_m_Carlo/unknown.g722").touch()
    monkeypatch.setattr(corpus, "fetch_debian", lambda packages, cache: unpacked)
    monkeypatch.setattr(corpus, "fetch_acted", lambda out, unpacked, language: None)
    monkeypatch.setattr(corpus, "fetch_readers", lambda out, unpacked: None)

    def convert(source: Path, target: Path, *options: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_audio(target.with_suffix(".wav"), np.zeros(160, np.float32), 16_000)

    monkeypatch.setattr(corpus, "convert", convert)
    corpus.fetch_human(out)
    texts = {path.stem: read_transcript(path) for path in out.rglob("*.wav")}
    assert texts == {"june-letters-a": "fr a", "carlo-digits-1": "un \u00e9", "carlo-unknown": None}


def test_lines_of_actors_are_chosen_by_name_and_are_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "unpacked/usr/share/games/fillets-ng/sound"
    for name, seconds in (("ship/cs/a", 3.0), ("ship/cs/b", 1.0), ("wreck/cs/c", 2.5), ("wreck/nl/d", 3.0)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / f"{name}.ogg", np.zeros(round(8000 * seconds)), 8000)
    made: list[str] = []
    monkeypatch.setattr(corpus, "convert", lambda source, target: made.append(target.relative_to(tmp_path).as_posix()))
    corpus.fetch_acted(tmp_path / "out", tmp_path / "unpacked", "cs")
    assert sorted(made) == ["out/ship-a.flac", "out/wreck-c.flac"]
    both, made[:] = list(made), []
    monkeypatch.setattr(corpus, "ACTED_LINES", 1)
    corpus.fetch_acted(tmp_path / "out", tmp_path / "unpacked", "cs")
    assert made == both[:1]


def test_prompts_by_telephone_are_dealt_out_by_a_hash_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "sounds"
    for name, seconds in (("a", 2.0), ("b", 2.0), ("c", 0.5), ("digits/d", 2.0), ("e", 2.0), ("silence/f", 2.0)):
        path = root / f"it_IT_f_Menardi/{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(round(8000 * seconds)), 8000)
    made: list[str] = []
    monkeypatch.setattr(corpus, "convert", lambda source, target: made.append(target.relative_to(tmp_path).as_posix()))
    monkeypatch.setattr(corpus, "TELEPHONE_S", {"tune": 3.0, "test": 1.0})
    corpus.fetch_telephone(tmp_path, root)
    assert [name.split("/")[0] for name in made] == ["menardi_tune", "menardi_tune", "menardi_test"]
    names = {name.split("-", 1)[1] for name in made}
    assert len(names) == 3 and names <= {"a.flac", "b.flac", "digits-d.flac", "e.flac"}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_audio_is_converted_whole_or_not_at_all(tmp_path: Path):
    save_audio(tmp_path / "a.wav", 0.3 * np.sin(np.arange(8000) / 9), 8000)
    corpus.convert(tmp_path / "a.wav", tmp_path / "new/a.flac")
    assert soundfile.info(tmp_path / "new/a.flac").frames == 8000
    (tmp_path / "b.wav").write_text("no audio")
    with pytest.raises(subprocess.CalledProcessError):
        corpus.convert(tmp_path / "b.wav", tmp_path / "new/b.flac")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.flac"]
