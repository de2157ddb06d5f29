"""Every codec keeps the contract of model/codecs/base.py, gives what its library gives, and refuses what it cannot use.

Networks have random weights and tiny configs (inference/codec/random_codecs.py): the code is that of the real ones.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from codeclm.data.audio import load_audio
from codeclm.data.config import PrepareConfig
from codeclm.data.preparation import prepare
from codeclm.data.token_store import TokenStore
from codeclm.inference.codec import contract
from codeclm.inference.codec.cli import codec_contract
from codeclm.inference.codec.contract import PROPERTIES, blocks_line, check_contract, probe, table
from codeclm.inference.codec.random_codecs import EVERY_KIND, TINY, save_tiny, tiny_network
from codeclm.model.codec_reference import CodecReference
from codeclm.model.codecs import Codec, StreamingCoder, load_codec
from codeclm.model.codecs.blocks import BlockCodec
from codeclm.model.codecs.dac import snake
from codeclm.model.codecs.mdct import MdctCodec

CAUSAL = ["mimi", "encodec 24 kHz"]
LOCAL = [*CAUSAL, "dac", "dac, odd stride"]  # a code depends on what is near it or before it


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    return {name: save_tiny(name, root / str(number)) for number, name in enumerate(EVERY_KIND)}


@pytest.fixture(scope="module")
def codecs(folders) -> dict[str, Codec]:
    return {name: load_codec(folder) for name, folder in folders.items()}


@pytest.mark.slow
def test_every_codec_keeps_every_property_of_the_contract(codecs):
    found = {name: check_contract(codec) for name, codec in codecs.items()}
    printed = table(found)
    print(f"\n{printed}\n" + "\n".join(f"{name}: {blocks_line(codec)}" for name, codec in codecs.items()))
    assert set(found) == set(EVERY_KIND) and all(set(cells) == set(PROPERTIES) for cells in found.values())
    assert not any(reason for cells in found.values() for reason in cells.values()), printed


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_stream_does_not_mind_a_caller_who_reuses_one_buffer(name, codecs):
    codec = codecs[name]
    audio = probe(codec, 40 * codec.hop_length + 1)
    for coder, whole in ((codec.streaming_encoder(), audio), (codec.streaming_decoder(), codec.encode(audio))):
        expected = codec.encode(audio) if whole is audio else codec.decode(whole)
        outputs = []
        for chunk in whole.split(max(1, whole.shape[-1] // 60), dim=-1):
            buffer = chunk.clone()
            outputs.append(coder.push(buffer))
            buffer.fill_(1)
        torch.testing.assert_close(torch.cat([*outputs, coder.flush()], dim=-1), expected, rtol=0, atol=1e-4)


# --- the check itself can fail ---


class BatchMatters(MdctCodec):
    def encode(self, audio, lengths=None):
        codes = super().encode(audio, lengths)
        codes[1:] ^= 1
        return codes


class LengthsIgnored(MdctCodec):
    def encode(self, audio, lengths=None):
        return super().encode(audio)


class StreamForgets(MdctCodec):
    def streaming_encoder(self):
        coder = super().streaming_encoder()
        coder.blocks = replace(coder.blocks, left=0)
        return coder


class StreamDoesNotWait(MdctCodec):
    def streaming_decoder(self):
        coder = super().streaming_decoder()
        coder.blocks = replace(coder.blocks, right=0)
        return coder


class Hoards(StreamingCoder):
    def __init__(self, coder: StreamingCoder):
        self.coder, self.all = coder, []

    def push(self, chunk):
        self.all.append(chunk.clone())
        return self.coder.push(chunk)

    def flush(self):
        return self.coder.flush()


class StreamHoards(MdctCodec):
    def streaming_decoder(self):
        return Hoards(super().streaming_decoder())


class FingerprintOfNothing(MdctCodec):
    def save(self, folder):
        super().save(folder)
        tensors = {"steps": self.steps + 0.1}
        save_file(tensors, folder / "model.safetensors")


class FollowsAutocast(MdctCodec):
    def encode(self, audio, lengths=None):
        scale = torch.ones(1, 1) @ torch.full((1, 1), 1.003)  # 1 in bfloat16
        return super().encode(audio * scale)


class LeavesAutocastOff(MdctCodec):
    def decode(self, codes):
        torch.set_autocast_enabled("cpu", False)
        return super().decode(codes)


class DecodesRounded(MdctCodec):
    def decode(self, codes):
        return super().decode(codes) @ torch.eye(codes.shape[-1] * self.hop_length)


@pytest.mark.parametrize(
    "broken, name",
    [
        (BatchMatters, "batched"),
        (LengthsIgnored, "padded"),
        (StreamForgets, "streaming encode"),
        (StreamDoesNotWait, "streaming decode"),
        (StreamHoards, "long file"),
        (FingerprintOfNothing, "fingerprint"),
        (FollowsAutocast, "float32"),
        (LeavesAutocastOff, "float32"),
        (DecodesRounded, "float32"),
    ],
)
def test_the_contract_notices_a_codec_that_breaks_it(broken, name, monkeypatch):
    monkeypatch.setattr(contract, "PROPERTIES", {name: PROPERTIES[name]})
    found = check_contract(broken().eval())
    assert found[name] and len(found[name].splitlines()) == 1
    assert "NO" in table({"broken": found}) and f"broken, {name}: {found[name]}" in table({"broken": found})


@pytest.mark.slow
def test_the_command_prints_the_table_and_says_by_its_exit_status_whether_all_holds(capsys, monkeypatch):
    codec_contract(("mulaw", "mdct"), every_codec=True)
    printed = capsys.readouterr().out
    assert "mulaw: 8000 Hz, 8000 frames/s, 1 x 256 codes, 64000 bits/s; " in printed
    assert printed.count(" ok") == (2 + len(TINY)) * len(PROPERTIES) and "\ntiny dac, odd stride: " in printed
    real = load_codec
    monkeypatch.setattr(
        "codeclm.model.codecs.load_codec", lambda name, *k: LengthsIgnored() if name == "mdct" else real(name, *k)
    )
    with pytest.raises(SystemExit, match="1"):
        codec_contract(("mdct",))
    assert "mdct, padded: " in capsys.readouterr().out


# --- what the library gives ---


@torch.no_grad()
def library_codes(model, audio: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' own codes [B, K, T] and audio [B, 1, S] for the whole clip at once."""
    audio = audio.expand(-1, getattr(model.config, "audio_channels", 1), -1)
    if model.config.model_type == "encodec":
        found = model.encode(audio, bandwidth=model.config.target_bandwidths[-1])
        decoded = model.decode(found.audio_codes, found.audio_scales).audio_values.mean(1, keepdim=True)
        return found.audio_codes[0], decoded
    codes = model.encode(audio).audio_codes
    decoded = model.decode(audio_codes=codes).audio_values
    return codes, decoded if decoded.ndim == 3 else decoded[:, None]


@pytest.mark.parametrize("name", LOCAL)
def test_across_many_blocks_codes_and_audio_are_those_of_the_library_for_the_whole_clip(name, folders):
    codec = load_codec(folders[name])
    assert isinstance(codec, BlockCodec)
    # small blocks, so that there are many seams; first: EnCodec's beginning is padded with its mirror image
    for blocks in (replace(codec.encoder_blocks, least=7, most=7), replace(codec.encoder_blocks, least=2, most=2)):
        codec.encoder_blocks = blocks
        codec.decoder_blocks = replace(codec.decoder_blocks, most=7, least=min(7, codec.decoder_blocks.least))
        audio = probe(codec, 200 * codec.hop_length, seed=5)
        expected, decoded = library_codes(tiny_network(name), audio)
        codes = codec.encode(audio)
        assert codes.shape == expected.shape and len(codes.unique()) > 8
        assert (codes != expected).float().mean() < 0.002  # but for near-ties, of other block lengths
        ours = codec.decode(expected)[..., : decoded.shape[-1]]
        torch.testing.assert_close(ours, decoded, rtol=0, atol=1e-4 * float(decoded.abs().max()))


@pytest.mark.parametrize("name", ["encodec 48 kHz", "encodec 32 kHz"])
def test_within_one_window_codes_and_audio_are_those_of_the_library(name, codecs):
    codec, loudness = codecs[name], name == "encodec 48 kHz"
    audio = probe(codec, codec.encoder_blocks.most * codec.hop_length, seed=5)
    expected, decoded = library_codes(tiny_network(name), audio)
    codes = codec.encode(audio)
    assert torch.equal(codes[:, loudness:], expected)
    if loudness:  # a quarter of a dB of rounding at V = 1024, here V = 32
        assert codec.loudness_db == 128 / 32
        ratio = codec.decode(codes).norm() / decoded.norm()
        assert abs(20 * torch.log10(ratio)) <= 2.001
        decoded = decoded * ratio
    torch.testing.assert_close(codec.decode(codes), decoded, rtol=0, atol=1e-4 * float(decoded.abs().max()))


@pytest.mark.parametrize("name", LOCAL)
def test_the_librarys_own_padded_batches_change_codes_so_rows_are_encoded_alone(name, codecs):
    """The last, partial frame of EnCodec and Mimi, and the frames near the end that DAC sees beyond."""
    codec, model = codecs[name], tiny_network(name)
    changed = []
    for partial in range(1, codec.hop_length):
        short, longer = (probe(codec, frames * codec.hop_length + partial) for frames in (20, 40))
        batch = torch.cat([F.pad(short, (0, longer.shape[-1] - short.shape[-1])), longer])
        num_frames = codec.num_frames(short.shape[-1])
        alone, together = library_codes(model, short)[0], library_codes(model, batch)[0][:1, :, :num_frames]
        changed.append(alone.shape != together.shape or not torch.equal(alone, together))
        ours = codec.encode(batch, [short.shape[-1], batch.shape[-1]])
        assert torch.equal(ours[:1, :, :num_frames], codec.encode(short))
    assert any(changed)


def test_half_precision_files_compute_in_float32(folders, tmp_path):
    weights = {key: tensor.bfloat16() for key, tensor in load_file(folders["mimi"] / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders["mimi"] / "config.json").read_text())
    codec = load_codec(tmp_path)
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in codec.parameters())
    codec.save(tmp_path / "copy")
    assert load_codec(tmp_path / "copy").fingerprint == codec.fingerprint
    assert load_file(tmp_path / "copy" / "model.safetensors").popitem()[1].dtype == torch.bfloat16


# --- the teaching codecs ---


def test_mulaw_is_within_half_a_step_of_every_sample_and_gives_its_own_levels_back():
    codec = load_codec("mulaw")
    assert (codec.num_codebooks, codec.codebook_size, codec.hop_length, codec.bitrate) == (1, 256, 1, 64_000)
    audio = torch.linspace(-1, 1, 4001)[None, None]
    levels = codec.levels
    step = torch.cat([levels[1:] - levels[:-1], levels.new_zeros(1)])[codec.encode(audio)].amax()
    assert float((codec.decode(codec.encode(audio)) - audio).abs().max()) <= step
    codes = torch.arange(256)[None, None]
    assert torch.equal(codec.encode(codec.decode(codes)), codes)


def test_mdct_follows_a_tone_at_the_stated_rate_and_better_with_more_codebooks():
    codec = load_codec("mdct")
    assert (codec.num_codebooks, codec.frame_rate, codec.bitrate) == (64, 50, 32_000)
    t = torch.arange(16_000) / 16_000
    audio = sum(0.2 * torch.sin(2 * torch.pi * f * t) for f in range(180, 1_200, 180))
    assert isinstance(audio, Tensor)
    codes = codec.encode(audio[None, None])
    inner = slice(640, -640)
    errors = [
        float((codec.decode(codes[:, :k])[0, 0] - audio)[inner].norm() / audio[inner].norm()) for k in (10, 26, 44, 64)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2
    assert not codec.decode(codec.encode(torch.zeros(1, 1, 960))).any()  # silence stays silence


# --- bad input ---

BAD_AUDIO = {
    "NaN or infinite": torch.full((1, 1, 100), float("nan")),
    "NaN or infinite samples": torch.full((1, 1, 100), float("inf")),
    "empty": torch.zeros(1, 1, 0),
    r"\[B, 1, S\] .*not \[100\]": torch.zeros(100),
    "mono": torch.zeros(1, 2, 100),
    "floating point": torch.zeros(1, 1, 100, dtype=torch.int16),
}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_unusable_audio_and_codes_are_refused_in_one_line(name, codecs):
    codec = codecs[name]
    for words, audio in BAD_AUDIO.items():
        for encode in (codec.encode, codec.streaming_encoder().push):
            with pytest.raises(ValueError, match=words):
                encode(audio)
    k, size = codec.num_codebooks, codec.codebook_size
    bad_codes = {
        f"{k + 1} codebooks": torch.zeros(1, k + 1, 3, dtype=torch.long),
        f"{size}..{size}": torch.full((1, k, 3), size),
        "-1..-1": torch.full((1, k, 3), -1),
        "no frame": torch.zeros(1, k, 0, dtype=torch.long),
        "integers": torch.zeros(1, k, 3),
        "K, T": torch.zeros(k, 3, dtype=torch.long),
    }
    for words, codes in bad_codes.items():
        for decode in (codec.decode, codec.streaming_decoder().push):
            with pytest.raises(ValueError, match=words.replace(".", r"\.")):
                decode(codes)
    assert codec.encode(torch.zeros(1, 1, 1)).shape == (1, k, 1)  # less than a frame is a frame


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_number_of_codebooks_that_a_codec_does_not_have_is_refused(name, folders, codecs):
    for wrong in (0, codecs[name].num_codebooks + 1):
        with pytest.raises(ValueError, match=f"num_codebooks must be .*not {wrong}"):
            load_codec(folders[name], wrong)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_name_with_a_number_takes_so_many_leading_codebooks(name, folders, codecs):
    wanted = codecs[name].num_codebooks
    assert load_codec(f"{folders[name]}:{wanted}").fingerprint == codecs[name].fingerprint
    with pytest.raises(ValueError, match=f"num_codebooks must be .*not {wanted + 1}"):
        load_codec(f"{folders[name]}:{wanted + 1}")
    with pytest.raises(ValueError, match="give one of them"):
        load_codec(f"{folders[name]}:{wanted}", wanted + 1)
    if getattr(codecs[name], "min_codebooks", 1) < wanted:
        less = load_codec(f"{folders[name]}:{wanted - 1}")
        assert less.num_codebooks == wanted - 1
        assert less.fingerprint == load_codec(folders[name], wanted - 1).fingerprint


def test_a_folder_that_is_called_like_a_name_with_a_number_is_that_folder(folders, tmp_path):
    folder = tmp_path / "run:2"
    load_codec(folders["spectral"]).save(folder)
    assert load_codec(folder).num_codebooks == load_codec(folders["spectral"]).num_codebooks


def edit(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change(folder: Path, **tensors) -> None:
    path = folder / "model.safetensors"
    whole = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_file({key: value for key, value in (whole | tensors).items() if value is not None}, path)


def first(folder: Path) -> str:
    return sorted(key for key, value in load_file(folder / "model.safetensors").items() if value.is_floating_point())[0]


DAMAGE = {
    "holds no codec": lambda f: (f / "config.json").unlink(),
    "holds a list, not an object": lambda f: (f / "config.json").write_text("[]"),
    "no weights to load": lambda f: (f / "model.safetensors").unlink(),
    "is a pickle, which is never read": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "not a whole safetensors file": lambda f: (f / "model.safetensors").write_bytes(b"\x08"),
    "'wav2vec2' is unknown": lambda f: edit(f, model_type="wav2vec2", codec="wav2vec2"),
    "holds NaN": lambda f: change(
        f, **{first(f): torch.full_like(load_file(f / "model.safetensors")[first(f)], torch.nan)}
    ),
    "missing": lambda f: change(f, **{first(f): None}),
    "leading|num_codebooks must be": lambda f: edit(f, leading_codebooks=99),
}


@pytest.mark.parametrize("message", DAMAGE)
@pytest.mark.parametrize("name", ["mulaw", *TINY])
def test_a_damaged_folder_is_refused_in_one_line(name, message, folders, tmp_path):
    for path in folders[name].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    DAMAGE[message](tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_codec(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_network_of_another_shape_is_refused_in_one_line(folders, tmp_path):
    for path in folders["dac"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, codebook_size=64)
    with pytest.raises(ValueError, match="model.safetensors: does not fit") as caught:
        load_codec(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_codec_is_refused_without_a_traceback_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="codec 'opus' is unknown; give 'spectral' or a folder"):
        load_codec("opus")
    with pytest.raises(ValueError, match="is unknown"):
        load_codec(tmp_path / "nowhere")
    with pytest.raises(OSError, match="codec 'nobody/nothing' cannot be fetched") as caught:
        load_codec("nobody/nothing")
    assert len(str(caught.value).splitlines()) == 1


# --- the rest of the house takes them as they are ---


@pytest.mark.parametrize("name", ["mulaw", "mdct", "mimi"])
def test_prepare_stores_the_codes_of_any_codec(name, codecs, tmp_path):
    import soundfile

    codec = codecs[name]
    for number in range(2):
        audio = probe(load_codec("mulaw"), 4_000, seed=number)[0, 0].numpy()
        soundfile.write(tmp_path / f"{number}.wav", audio, 8_000)
    prepare(tmp_path, tmp_path / "tokens", codec, PrepareConfig())
    store = TokenStore(tmp_path / "tokens")
    store.verify()
    assert store.codec == CodecReference.of(codec) and len(store) == 2
    audio = torch.from_numpy(load_audio(tmp_path / "1.wav", codec.sample_rate))
    assert torch.equal(torch.from_numpy(store.codes(1).astype("int64")).T, codec.encode(audio[None, None])[0])


def test_dacs_activation_is_the_librarys_to_the_bit():
    module = tiny_network("dac").decoder.snake1
    x = torch.randn(2, module.alpha.shape[1], 50)
    assert torch.equal(snake(module, x), module(x)) and not torch.equal(snake(module, x), x)


@pytest.mark.parametrize("name", [name for name in TINY if name != "mimi"])  # Mimi's have other names in the file
def test_the_weights_of_a_folder_are_in_memory_once(name, folders):
    codec = load_codec(folders[name])
    used = {tensor.data_ptr() for tensor in codec.model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in codec.fingerprinted().values()} <= used
