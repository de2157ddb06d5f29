"""The verbs of `codeclm codec` that try, measure and compress. Others: contract_cli.py, bench_cli.py, train/cli.py.

Checks first, heavy imports inside the functions: as in cli.py.
"""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ...model.files import write_whole
from ..argument_checks import (
    check_audio,
    check_audio_out,
    check_clm,
    check_codec,
    check_device,
    check_distinct,
    check_model,
    check_number,
    check_package,
    check_recording,
    check_writable,
)
from ..cli import (
    Audio,
    AudioFile,
    CodecName,
    Device,
    Model,
    Numbers,
    Threads,
    open_codec,
    open_model,
    spread,
    write_json,
)
from ..screen import say_loading
from ..threads import check_threads, decoding_threads, set_threads

AudioOut = Annotated[Path, arg(metavar="OUT", help="the file to write: .wav, .flac, .ogg, .opus or .mp3")]


def codec_roundtrip(
    audio: Positional[AudioFile],
    out: Positional[AudioOut],
    codec: CodecName = "spectral",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Encode AUDIO, decode the codes into the audio file OUT, and say what was lost. Audio of any length."""
    check_device(device)
    check_threads(threads)
    check_audio_out(out)
    check_distinct(out, [audio])
    check_recording(audio)
    check_codec(codec)
    say_loading(f"the codec '{codec}'")
    from .roundtrip import roundtrip

    coder = open_codec(codec, device)
    set_threads(threads)
    found = roundtrip(audio, out, coder)
    print(
        f"{out}: {found.num_samples / coder.sample_rate:.2f} s, {coder.num_codebooks} x {found.num_frames} codes, "
        f"{coder.bitrate:.0f} bits/s, log-mel distance {found.distance:.3f}"
    )


def codec_compress(
    audio: Positional[AudioFile],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="the .clm file to write")]],
    model: Model = "default",
    threads: Threads = None,
) -> None:
    """Compress the codes of AUDIO into OUT with the model's own probabilities: the file's size proves its bits/s."""
    check_threads(threads)
    check_writable(out)
    check_distinct(out, [audio])
    check_recording(audio)
    check_model(model)
    lm = open_model(model, "cpu", threads)  # the file must be read on any machine
    import torch

    from ...data.audio import load_audio
    from ..compress.codes import compress_codes, predicted_bits
    from ..compress.container import ClmFile, codes_crc
    from ..loading import checkpoint_hash, model_folder

    samples = load_audio(audio, lm.codec.sample_rate)
    with decoding_threads(threads):
        codes = lm.codec.encode(torch.from_numpy(samples)[None, None])[0]
        payload = compress_codes(lm.model.double(), [codes], progress=True)[0]
        bits = predicted_bits(lm.model, codes)
    file = ClmFile(
        checkpoint_hash(model_folder(model)), lm.codec.fingerprint, lm.codec.num_codebooks, lm.codec.codebook_size,
        codes.shape[1], len(samples), codes_crc(codes.numpy()), payload,
    )  # fmt: skip
    file.write(out)
    print(f"{out}: {file.sizes(lm.codec, bits)}")


def codec_decompress(
    file: Positional[Annotated[Path, arg(metavar="IN", help="a .clm file")]],
    out: Positional[AudioOut],
    model: Model = "default",
    threads: Threads = None,
) -> None:
    """Turn a .clm file into the audio file that `codec roundtrip` makes of the same audio."""
    check_threads(threads)
    check_audio_out(out)
    check_distinct(out, [file])
    check_clm(file)
    check_model(model)
    lm = open_model(model, "cpu", threads)
    import numpy as np

    from ...data.audio_out import save_audio
    from ..compress.codes import decompress_codes
    from ..compress.container import ClmFile
    from ..loading import checkpoint_hash, model_folder
    from .roundtrip import decoded

    content = ClmFile.read(file)
    content.require(file, checkpoint_hash(model_folder(model)), lm.codec, model)
    with decoding_threads(threads):
        try:
            codes = decompress_codes(lm.model.double(), [content.payload], [content.num_frames], progress=True)[0]
        except ValueError:
            codes = None
        content.check_codes(file, None if codes is None else codes.numpy())
        assert codes is not None
        audio = np.concatenate(list(decoded(lm.codec, [codes[None]])))[: content.num_samples]
    save_audio(out, audio, lm.codec.sample_rate)
    print(f"{out}: {content.num_samples / lm.codec.sample_rate:.2f} s; its codes are those that were compressed")


def codec_report(
    audio: Positional[Audio],
    codec: Annotated[
        tuple[str, ...],
        arg(metavar="CODEC ...", help="names of codecs, or folders that hold one; NAME:K: K codebooks; each is a row"),
    ] = ("spectral",),
    limit: Annotated[int, arg(help="measure only this many of the files, spread evenly; 0: all")] = 0,
    asr: Annotated[
        bool, arg(help="compare whisper-base's transcripts, also with NAME.txt beside NAME.wav (extra 'asr')")
    ] = False,
    language: Annotated[
        str | None, arg(help="language of the speech, for --asr, such as fr; default: guessed for each clip")
    ] = None,
    anchors: Annotated[bool, arg(help="also classical codecs at the nearest rates, by the installed ffmpeg")] = True,
    json_file: Numbers = None,
    html_file: Annotated[
        Path | None, arg(name="html", metavar="FILE", help="also write a page with players and spectrograms")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Measure what codecs do to the speech in AUDIO: quality, word errors, codebook use, speed and memory."""
    check_writable(json_file, html_file)
    check_number("--limit", limit, 0)
    check_device(device)
    if language is not None and not asr:
        raise ValueError("--language needs --asr")
    if asr:
        check_package("--asr", "faster_whisper", "asr")
    check_codecs(codec)
    check_audio(audio)
    say_loading(", ".join(f"the codec '{name}'" for name in codec))
    from ...data.audio import find_audio
    from .report import codec_report as run
    from .table import notes, table

    files = find_audio(audio)
    chosen = spread(files, limit) if limit else files
    codecs = {name: open_codec(name, device) for name in codec}
    report = run(chosen, codecs, asr, anchors, num_samples=3 if html_file else 0, language=language)
    write_json(json_file, report.to_dict() | {"notes": notes(report)})
    if html_file is not None:
        from .page import page

        write_whole(html_file, page(report, f"Codecs on {audio}"))
    print(table(report))


def check_codecs(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("a codec is missing; name at least one, such as spectral")
    for name in names:
        check_codec(name)
