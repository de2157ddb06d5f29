"""The verbs of `codeclm` that use weights, one function each; train/cli.py adds those that change them.

Heavy imports are inside the functions, so that --help answers at once.
"""

import json
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..data.config import PrepareConfig
from .config import EvaluateConfig, SamplingConfig

Options = arg(name="")  # the fields of a config become flags without a prefix
Model = Annotated[str, arg(help="a model folder or a training run; 'default' is the embedded model")]
CodecName = Annotated[
    str, arg(help="spectral (embedded), mulaw, mdct, encodec, mimi, dac, a folder, or a hub id; NAME:K: K codebooks")
]
Audio = Annotated[Path, arg(metavar="AUDIO", help="an audio file, or a folder of them")]
AudioFile = Annotated[Path, arg(metavar="AUDIO", help="an audio file")]
Data = Annotated[Path, arg(metavar="DATA", help="a token store, an audio file, or a folder of them")]
Seed = Annotated[int, arg(help="same seed, same machine: same bytes")]


def prepare(
    audio: Positional[Audio],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="folder of the token store")]],
    codec: CodecName = "spectral",
    config: Annotated[PrepareConfig, Options] = PrepareConfig(),
) -> None:
    """Turn a folder of AUDIO into a token store in OUT (resumable; what cannot be used is named and skipped)."""
    from ..data.prepare import prepare as run
    from ..model.codecs import load_codec

    print(run(audio, out, load_codec(codec), config))


def generate(
    prompt: Positional[Annotated[Path | None, arg(metavar="PROMPT", help="the audio file to continue")]] = None,
    out: Annotated[Path, arg(help="the WAV file to write")] = Path("continuation.wav"),
    model: Model = "default",
    duration: Annotated[float, arg(help="seconds to generate")] = 8.0,
    text: Annotated[str | None, arg(help="what to say, for a model that was trained with text")] = None,
    seed: Seed = 0,
    with_prompt: Annotated[
        bool, arg(help="write the prompt, as the codec renders it, before the continuation")
    ] = False,
    sampling: Annotated[SamplingConfig, Options] = SamplingConfig(),
) -> None:
    """Continue the speech in PROMPT (WAV, FLAC, OGG, MP3, ...), or start from nothing."""
    from .loading import load

    check_seeds(seed)
    check_writable(out)
    lm = load(model)
    result = lm.generate(prompt, duration, seed, sampling, progress=True, text=text)
    result.save(out, with_prompt)
    bits = result.surprise_bits[result.num_prompt_frames :].mean() * lm.codec.frame_rate
    print(f"{out}: {len(result.audio) / result.sample_rate:.2f} s, {bits:.0f} bits/s, seed {seed}")
    if result.text:
        print(f"text: {result.text}")


def evaluate(
    data: Positional[Data],
    model: Model = "default",
    json_file: Annotated[Path | None, arg(name="json", metavar="FILE", help="also write the numbers here")] = None,
    baseline_data: Annotated[
        Path | None,
        arg(metavar="DATA", help="audio or tokens that the baselines are counted on, normally the training data"),
    ] = None,
    continuations: Annotated[int, arg(help="instead: continue so many of the files and measure the results")] = 0,
    prompt_s: Annotated[float, arg(help="seconds of each file that are continued")] = 3.0,
    duration: Annotated[float, arg(help="seconds of each continuation")] = 8.0,
    asr: Annotated[bool, arg(help="transcribe the continuations with whisper-base (extra 'eval')")] = False,
    out: Annotated[Path | None, arg(metavar="FOLDER", help="where to keep the continuations")] = None,
    config: Annotated[EvaluateConfig, Options] = EvaluateConfig(),
) -> None:
    """Measure speech in DATA (audio or a token store): bits/s, perplexities and baselines, or continuations."""
    from .loading import load

    check_writable(json_file, out and out / "01.wav")
    if continuations < 0 or not 0.1 <= prompt_s < math.inf:
        raise ValueError(f"continuations ({continuations}) must not be negative, prompt_s ({prompt_s}) at least 0.1 s")
    lm = load(model)
    if continuations:
        from ..data.audio import find_audio
        from .evaluate.continuations import continuation_report

        report = continuation_report(
            lm, _spread(find_audio(data), continuations), prompt_s, duration, config.seed, asr, out
        )
        _write_json(json_file, report.to_dict())
    else:
        report = likelihood_report(lm, data, baseline_data, config)
        _write_json(json_file, json.loads(report.to_json()))
    print(report.table())


def likelihood_report(lm: Any, data: Path, baseline_data: Path | None, config: EvaluateConfig) -> Any:
    """Score audio or tokens; audio is tokenized in a temporary folder."""
    from ..data.prepare import open_or_prepare
    from .loading import model_folder
    from .score import checkpoint_hash
    from .score import evaluate as run

    with tempfile.TemporaryDirectory() as scratch:
        store = open_or_prepare(data, Path(scratch) / "tokens", lm.codec)
        baseline_store = None
        if baseline_data is not None:
            baseline_store = open_or_prepare(baseline_data, Path(scratch) / "baseline", lm.codec)
        elif len(store) < 2:
            raise ValueError(
                f"{data}: one utterance is not enough for the baselines; add files or give --baseline-data"
            )
        report = run(lm.model, store, checkpoint_hash(model_folder(lm.name)), baseline_store, config, lm.tokenizer)
        return report if baseline_data is None else replace(report, baselines_from=str(baseline_data))


def codec_roundtrip(
    audio: Positional[AudioFile],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="the WAV file to write")]],
    codec: CodecName = "spectral",
) -> None:
    """Encode AUDIO, decode the codes into the WAV file OUT, and say what was lost. Audio of any length."""
    from ..model.codecs import load_codec
    from .roundtrip import roundtrip

    check_writable(out)
    coder = load_codec(codec)
    found = roundtrip(audio, out, coder)
    print(
        f"{out}: {found.num_samples / coder.sample_rate:.2f} s, {coder.num_codebooks} x {found.num_frames} codes, "
        f"{coder.bitrate:.0f} bits/s, log-mel distance {found.distance:.3f}"
    )


def codec_compress(
    audio: Positional[AudioFile],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="the .clm file to write")]],
    model: Model = "default",
) -> None:
    """Compress the codes of AUDIO into OUT with the model's own probabilities: the file's size proves its bits/s."""
    import torch

    from ..data.audio import load_audio
    from .compress import compress_codes, predicted_bits
    from .container import ClmFile, codes_crc
    from .loading import load, model_folder
    from .score import checkpoint_hash

    check_writable(out)
    lm = load(model)
    samples = load_audio(audio, lm.codec.sample_rate)
    codes = lm.codec.encode(torch.from_numpy(samples)[None, None])[0]
    payload = compress_codes(lm.model.double(), [codes], progress=True)[0]
    file = ClmFile(
        checkpoint_hash(model_folder(model)), lm.codec.fingerprint, lm.codec.num_codebooks, lm.codec.codebook_size,
        codes.shape[1], len(samples), codes_crc(codes.numpy()), payload,
    )  # fmt: skip
    file.write(out)
    print(f"{out}: {file.sizes(lm.codec, predicted_bits(lm.model, codes))}")


def codec_decompress(
    file: Positional[Annotated[Path, arg(metavar="IN", help="a .clm file")]],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="the WAV file to write")]],
    model: Model = "default",
) -> None:
    """Turn a .clm file into the WAV file that `codec roundtrip` makes of the same audio."""
    import numpy as np

    from ..data.audio import save_wav
    from .compress import decompress_codes
    from .container import ClmFile
    from .loading import load, model_folder
    from .roundtrip import decoded
    from .score import checkpoint_hash

    check_writable(out)
    content = ClmFile.read(file)
    lm = load(model)
    content.require(file, checkpoint_hash(model_folder(model)), lm.codec, model)
    try:
        codes = decompress_codes(lm.model.double(), [content.payload], [content.num_frames], progress=True)[0]
    except ValueError:
        codes = None
    content.check_codes(file, None if codes is None else codes.numpy())
    assert codes is not None
    audio = np.concatenate(list(decoded(lm.codec, [codes[None]])))[: content.num_samples]
    save_wav(out, audio, lm.codec.sample_rate)
    print(f"{out}: {content.num_samples / lm.codec.sample_rate:.2f} s; its codes are those that were compressed")


def codec_report(
    audio: Positional[Audio],
    codec: Annotated[
        tuple[str, ...],
        arg(metavar="CODEC ...", help="names of codecs, or folders that hold one; NAME:K: K codebooks; each is a row"),
    ] = ("spectral",),
    limit: Annotated[int, arg(help="measure only so many of the files, spread evenly; 0: all")] = 0,
    asr: Annotated[
        bool, arg(help="compare whisper-base's transcripts, also with NAME.txt beside NAME.wav (extra 'eval')")
    ] = False,
    language: Annotated[
        str | None, arg(help="of the speech, for --asr, such as fr; not given: whisper guesses that of each clip")
    ] = None,
    anchors: Annotated[bool, arg(help="also classical codecs at the nearest rates, by the installed ffmpeg")] = True,
    json_file: Annotated[Path | None, arg(name="json", metavar="FILE", help="also write the numbers here")] = None,
    html_file: Annotated[
        Path | None, arg(name="html", metavar="FILE", help="also write a page with players and spectrograms")
    ] = None,
) -> None:
    """Measure what codecs do to the speech in AUDIO: quality, word errors, codebook use, speed and memory."""
    from ..data.audio import find_audio
    from ..model.codecs import load_codec
    from .evaluate.codec_report import codec_report as run
    from .evaluate.codec_table import notes, table

    check_writable(json_file, html_file)
    files = find_audio(audio)
    chosen = _spread(files, limit) if limit else files
    codecs = {name: load_codec(name) for name in codec}
    report = run(chosen, codecs, asr, anchors, num_samples=3 if html_file else 0, language=language)
    _write_json(json_file, report.to_dict() | {"notes": notes(report)})
    if html_file is not None:
        from .evaluate.codec_page import page

        _write(html_file, page(report, f"Codecs on {audio}").encode())
    print(table(report))


def demo(out: Path = Path("runs/demo"), duration: float = 8.0, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Continue the bundled recording of a human voice: WAV files, a picture and metrics in OUT."""
    from .demo import run

    check_seeds(*seeds)
    check_writable(out / "metrics.json")
    print(run(out, duration, seeds))


def check_writable(*files: Path | None) -> None:
    """Raise OSError before long work whose result could not be written to one of `files`. Creates nothing."""
    for path in filter(None, files):
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        if path.is_dir():
            raise OSError(f"{path}: is a folder; give the name of a file to write")
        if not nearest.is_dir():
            raise OSError(f"{path}: cannot be written, because {nearest} is a file, not a folder")
        if not os.access(nearest, os.W_OK):
            raise OSError(f"{path}: cannot be written (no permission in {nearest})")


def check_seeds(*seeds: int) -> None:
    if not seeds or not all(0 <= seed < 2**63 for seed in seeds):
        raise ValueError(
            f"seed {', '.join(map(str, seeds)) or 'is missing'}: seeds are whole numbers from 0 to 2**63 - 1"
        )


def _spread(files: list[Path], count: int) -> list[Path]:
    """`count` of the files, evenly spread over their order. Raises ValueError for a negative count."""
    if count < 0:
        raise ValueError(f"limit is {count}; it must be at least 1, or 0 for all files")
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def _write_json(path: Path | None, values: dict) -> None:
    if path is not None:
        _write(path, json.dumps(values, indent=2).encode() + b"\n")


def _write(path: Path, content: bytes) -> None:
    from ..data.shards import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content)
