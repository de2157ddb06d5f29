"""The contract of a codec, checked: `check_contract(codec)` says property by property whether it holds, `table` prints.

Any codec can be checked, also one with real weights: noise is encoded, a minute or so of it. Batched and padded rows,
streams in any chunks, saved copies and a program that computes in lower precision must give the same codes to the bit,
and the same audio to 1e-4; what a stream holds must not grow. B, K, T, S as in base.py.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...model.checksums import CHECKSUMS
from ...model.codecs.base import Codec, StreamingCoder
from ...model.codecs.blocks import BlockCodec
from ...model.codecs.float32 import CPU_OPERATIONS, OPERATIONS

TOLERANCE = 1e-4  # largest error of streamed audio, relative to its peak
LONG_S = 12.0  # seconds after which what a stream holds must not grow any more: longer than any attention window


class Broken(Exception):
    """A property does not hold, and why, in one line."""


def check_contract(codec: Codec) -> dict[str, str]:
    """Property -> "" where it holds, else what is wrong. A property that raises does not hold."""
    found = {}
    for name, check in PROPERTIES.items():
        try:
            check(codec)
            found[name] = ""
        except (Broken, ValueError, RuntimeError, OSError) as error:
            found[name] = " ".join(str(error).split())
    return found


def table(found: dict[str, dict[str, str]]) -> str:
    """Codec name -> its properties, as lines: "ok" or "NO" in each cell, and below it what is wrong."""
    width = max(5, *map(len, found))
    lines = ["  ".join([f"{'codec':<{width}}", *PROPERTIES])]
    for codec, cells in found.items():
        marks = [f"{'NO' if cells[name] else 'ok':<{len(name)}}" for name in PROPERTIES]
        lines.append("  ".join([f"{codec:<{width}}", *marks]).rstrip())
    lines += [f"{codec}, {name}: {cells[name]}" for codec, cells in found.items() for name in cells if cells[name]]
    return "\n".join(lines)


def blocks_line(codec: Codec) -> str:
    """How the codec's streams are cut, in words: the lag of a stream, and its receptive field where none is carried."""
    if not isinstance(codec, BlockCodec):
        return "state carried from chunk to chunk"
    parts = []
    for name, blocks in (("encode", codec.encoder_blocks), ("decode", codec.decoder_blocks)):
        lag, seen = blocks.least + blocks.right, f"frames seen: {blocks.left} before and {blocks.right} after"
        carried = blocks.left == blocks.right == 0
        parts.append(f"{name}: {lag / codec.frame_rate:.3f} s, {'state carried' if carried else seen}")
    return "; ".join(parts)


def probe(codec: Codec, num_samples: int, batch: int = 1, seed: int = 0) -> Tensor:
    """[B, 1, S]: noise under a random envelope of 50 ms steps, so that frames differ and rounding matters."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 1, num_samples, generator=generator)
    envelope = torch.rand(batch, 1, 2 + num_samples * 20 // codec.sample_rate, generator=generator)
    return (0.3 * noise * F.interpolate(envelope, num_samples, mode="linear", align_corners=True)).to(codec.device)


def num_probe_frames(codec: Codec) -> int:
    """Frames that fill more than two blocks, so that every seam is there, and half a second at least."""
    frames = round(0.5 * codec.frame_rate)
    if isinstance(codec, BlockCodec):
        blocks = codec.encoder_blocks
        frames = max(frames, min(2 * blocks.most, 4 * round(codec.frame_rate)) + blocks.left + blocks.right)
    return frames + 3


def batched(codec: Codec) -> None:
    audio = probe(codec, num_probe_frames(codec) * codec.hop_length - 1, batch=3)
    codes = codec.encode(audio)
    if codes.unique().numel() < 2:
        raise Broken("all codes are the same, so nothing can be told")
    for row in range(3):
        same_codes(codes[row : row + 1], codec.encode(audio[row : row + 1]), f"row {row} of a batch")


def padded(codec: Codec) -> None:
    """What lies after the end of a row is noise here, and must not matter."""
    longest = num_probe_frames(codec) * codec.hop_length
    lengths = [longest, longest // 2 + 1, codec.hop_length, 1]
    audio = probe(codec, longest, batch=len(lengths))
    codes = codec.encode(audio, lengths)
    for row, length in enumerate(lengths):
        single = codec.encode(audio[row : row + 1, :, :length])
        same_codes(codes[row : row + 1, :, : single.shape[-1]], single, f"row of {length} samples in {longest}")
        if codes[row, :, single.shape[-1] :].any():
            raise Broken(f"frames after the end of a row of {length} samples are not 0")


def streaming_encode(codec: Codec) -> None:
    audio = probe(codec, num_probe_frames(codec) * codec.hop_length - codec.hop_length // 2, batch=2)
    whole = codec.encode(audio)
    for chunks in chunkings(audio.shape[-1], codec.hop_length):
        same_codes(stream(codec.streaming_encoder(), audio.split(chunks, dim=-1)), whole, f"chunks of {chunks[:4]} ...")


def streaming_decode(codec: Codec) -> None:
    codes = codec.encode(probe(codec, num_probe_frames(codec) * codec.hop_length, batch=2))
    fewest = codec.min_codebooks if isinstance(codec, BlockCodec) else 1
    for k in {fewest, codec.num_codebooks}:
        whole = codec.decode(codes[:, :k])
        if whole.shape[-1] != codes.shape[-1] * codec.hop_length:
            raise Broken(f"{codes.shape[-1]} frames became {whole.shape[-1]} samples")
        for chunks in chunkings(codes.shape[-1], 1):
            streamed = stream(codec.streaming_decoder(), codes[:, :k].split(chunks, dim=-1))
            if streamed.shape != whole.shape:
                raise Broken(f"{k} codebooks in chunks of {chunks[:4]} ...: {list(streamed.shape)} samples")
            error = float((streamed - whole).abs().max() / whole.abs().max().clamp_min(1e-3))
            if not error <= TOLERANCE:
                raise Broken(f"{k} codebooks in chunks of {chunks[:4]} ...: audio is off by {error:.1e} of its peak")


def long_file(codec: Codec) -> None:
    """A stream never holds more in its second half than in its first."""
    frames = max(num_probe_frames(codec), round(LONG_S * codec.frame_rate))
    if isinstance(codec, BlockCodec):
        frames = max(
            frames, *(2 * b.left + 2 * b.right + b.least for b in (codec.encoder_blocks, codec.decoder_blocks))
        )
    audio = probe(codec, frames * codec.hop_length)
    codes = codec.encode(audio[..., : num_probe_frames(codec) * codec.hop_length])
    codes = codes.repeat(1, 1, -(-frames // codes.shape[-1]))[..., :frames]
    for coder, chunk in ((codec.streaming_encoder(), audio), (codec.streaming_decoder(), codes)):
        held = []
        for _ in range(2):
            largest = 0
            for piece in chunk.split(-(-chunk.shape[-1] // 10), dim=-1):
                coder.push(piece)
                largest = max(largest, held_bytes(coder))
            held.append(largest)
        if held[1] > held[0] + chunk.numel() * chunk.element_size() // 5:
            raise Broken(f"{type(coder).__name__} held {held[0]} bytes, and {held[1]} in a second half as long")


def fingerprint(codec: Codec) -> None:
    """A saved copy is the same codec; one with another weight or fewer codebooks is not."""
    from ...model.codecs import load_codec

    audio = probe(codec, min(num_probe_frames(codec), 50) * codec.hop_length)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        codec.save(folder)
        copy = load_codec(folder)
        if copy.fingerprint != codec.fingerprint:
            raise Broken("a saved copy has another fingerprint")
        same_codes(copy.encode(audio.cpu()), codec.encode(audio).cpu(), "a saved copy")
        fewest = codec.min_codebooks if isinstance(codec, BlockCodec) else 1
        if codec.num_codebooks > fewest:
            less = load_codec(folder, codec.num_codebooks - 1)
            if less.fingerprint == codec.fingerprint:
                raise Broken("with one codebook less it has the same fingerprint")
            same_codes(less.encode(audio.cpu()), codec.encode(audio)[:, :-1].cpu(), "one codebook less")
            less.save(folder / "less")
            if load_codec(folder / "less").fingerprint != less.fingerprint:
                raise Broken("a saved copy with one codebook less has another fingerprint")
        weights = load_file(folder / "model.safetensors")
        name = next(name for name, tensor in sorted(weights.items()) if tensor.is_floating_point() and tensor.numel())
        changed = weights[name].flatten().clone()
        changed[0] += 0.01
        del copy  # its tensors are the file
        save_file(weights | {name: changed.view(weights[name].shape)}, folder / "other.safetensors")
        (folder / "other.safetensors").replace(folder / "model.safetensors")
        (folder / CHECKSUMS).unlink()  # the change is on purpose
        if load_codec(folder).fingerprint == codec.fingerprint:
            raise Broken(f"with another '{name}' it has the same fingerprint")


def float32(codec: Codec) -> None:
    """What the program around a codec asks of its own networks does not matter, and is as it was afterwards."""
    audio = probe(codec, num_probe_frames(codec) * codec.hop_length)
    codes = codec.encode(audio)
    decoded = codec.decode(codes)
    with lower_precision(audio.device.type):
        settings = precisions(audio.device.type)
        same_codes(codec.encode(audio), codes, "in lower precision")
        if not torch.equal(codec.decode(codes), decoded):
            raise Broken("in lower precision it makes other audio of the same codes")
        if precisions(audio.device.type) != settings:
            raise Broken("it leaves the program another precision than it had")


def precisions(device: str) -> list[str | bool]:
    return [torch.is_autocast_enabled(device), *(operation.fp32_precision for operation in OPERATIONS)]


@contextmanager
def lower_precision(device: str) -> Iterator[None]:
    """All that lets torch round float32: autocast, and TF32 or bfloat16 in its place."""
    before = [(operation, operation.fp32_precision) for operation in OPERATIONS]
    try:
        for operation in OPERATIONS:
            operation.fp32_precision = "tf32"
        for operation in CPU_OPERATIONS:
            operation.fp32_precision = "bf16"
        with torch.autocast(device, dtype=torch.bfloat16):
            yield
    finally:
        for operation, precision in before:
            operation.fp32_precision = precision


def same_codes(codes: Tensor, expected: Tensor, name: str) -> None:
    if codes.shape != expected.shape:
        raise Broken(f"{name}: codes are {list(codes.shape)}, should be {list(expected.shape)}")
    wrong = int((codes != expected).sum())
    if wrong:
        raise Broken(f"{name}: {wrong} of {codes.numel()} codes differ")


def stream(coder: StreamingCoder, chunks: Any) -> Tensor:
    return torch.cat([*(coder.push(chunk) for chunk in chunks), coder.flush()], dim=-1)


def chunkings(length: int, unit: int) -> Iterator[list[int]]:
    """Lists of chunk lengths that add up to `length`: small and uneven ones first, and large ones."""
    for pattern in ([1, unit, unit // 2 + 1, 3 * unit + 1, length // 7 + 1], [length // 3 + 1]):
        chunks = []
        while sum(chunks) < length:
            chunks.append(min(pattern[len(chunks) % len(pattern)], length - sum(chunks)))
        yield chunks


def held_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of the tensors that an object holds, the networks' own apart."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, nn.Module):
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(held_bytes(item, seen) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(held_bytes(item, seen) for item in value)
    return held_bytes(vars(value), seen) if hasattr(value, "__dict__") else 0


PROPERTIES: dict[str, Callable[[Codec], None]] = {
    "batched": batched,
    "padded": padded,
    "streaming encode": streaming_encode,
    "streaming decode": streaming_decode,
    "long file": long_file,
    "fingerprint": fingerprint,
    "float32": float32,
}
