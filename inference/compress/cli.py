"""The verbs `codec compress` and `codec decompress`. Checks first, heavy imports inside the functions."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..argument_checks import (
    check_audio_out,
    check_clm,
    check_distinct,
    check_model,
    check_recording,
    check_writable,
)
from ..options import AudioFile, AudioOut, Model, Threads, open_model
from ..threads import check_threads, decoding_threads


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
    from ..loading import checkpoint_hash, model_folder
    from .codes import compress_codes, predicted_bits
    from .container import ClmFile, codes_crc

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
    from ..codec.roundtrip import decoded
    from ..loading import checkpoint_hash, model_folder
    from .codes import decompress_codes
    from .container import ClmFile

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
