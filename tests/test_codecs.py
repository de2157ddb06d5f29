"""The contract of every codec (model/codecs/base.py), on tiny codecs with random weights. B, K, T, S as there."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from codeclm.inference.codec.random_codecs import TINY_SPECTRAL as TINY
from codeclm.model.codec_shapes import SpectralConfig
from codeclm.model.codecs import Codec, SpectralCodec, load_codec
from codeclm.model.codecs.source_filter import bent, dispersing_phases

CONFIGS = {
    "tiny": TINY,
    "no stride": replace(TINY, stride=1),
    "long window": replace(TINY, window=160, stride=3, filter_overlap=7),
    "no lookahead": replace(TINY, lookahead=0),
    "long lookahead": replace(TINY, stride=1, lookahead=3),
    "dispersed and bent": replace(TINY, dispersion=TINY.synthesis_hop, knee=50),
}
few_examples = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_audio(num_samples: int, batch: int = 1, seed: int = 0) -> Tensor:
    """[B, 1, S]: noise under a slow random envelope, so that frames differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 1, num_samples, generator=generator)
    envelope = torch.rand(batch, 1, 2 + num_samples // 100, generator=generator)
    return 0.3 * noise * torch.nn.functional.interpolate(envelope, num_samples, mode="linear", align_corners=True)


def make_codec(config: SpectralConfig = TINY, seed: int = 0) -> SpectralCodec:
    """Random weights, with codebooks filled from what the encoder says about noise: otherwise few codes are used."""
    torch.manual_seed(seed)
    codec = SpectralCodec(config).eval().requires_grad_(False)
    for block in [module for module in codec.modules() if hasattr(module, "scale")]:
        block.scale.fill_(1.0)  # untrained, a block adds little: a wrong left context would hardly show
    latent = codec.encoder(random_audio(codec.hop_length * 200, seed=1)[:, 0])
    codec.quantizer.fit(latent[0], 200)
    codec.decoder.head.weight.normal_(std=0.3)  # an untrained head has every frame sound alike
    codec.decoder.pitch.out.weight.normal_(std=0.3)
    return codec


@pytest.fixture(scope="module", params=list(CONFIGS))
def codec(request) -> SpectralCodec:
    return make_codec(CONFIGS[request.param])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    make_codec().save(folder)
    return folder


def cut(x: Tensor, lengths: list[int]) -> list[Tensor]:
    """Chunks of the given lengths (repeated as needed) along the last axis."""
    chunks, start = [], 0
    while start < x.shape[-1]:
        length = lengths[len(chunks) % len(lengths)]
        chunks.append(x[..., start : start + length])
        start += length
    return chunks


def stream(coder, chunks: list[Tensor]) -> Tensor:
    return torch.cat([*(coder.push(chunk) for chunk in chunks), coder.flush()], dim=-1)


def test_codes_have_the_promised_shape_and_vary(codec: Codec):
    audio = random_audio(codec.hop_length * 100 + 7, batch=2)
    codes = codec.encode(audio)
    assert codes.shape == (2, codec.num_codebooks, codec.num_frames(audio.shape[-1]))
    assert codec.num_frames(audio.shape[-1]) == 101
    assert not codes.is_floating_point()
    assert all(len(row.unique()) > codec.codebook_size // 4 for row in codes.transpose(0, 1).flatten(1))
    assert codec.decode(codes).shape == (2, 1, 101 * codec.hop_length)


def test_frame_rate_and_bitrate_follow_from_the_config():
    codec = make_codec()
    assert codec.frame_rate == 8_000 / 80
    assert codec.bitrate == 100 * 4 * 5


@few_examples
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_batched_and_padded_codes_equal_single_codes(codec: Codec, lengths: list[int], seed: int):
    rows = [random_audio(length, seed=seed + row) for row, length in enumerate(lengths)]
    padded = random_audio(max(lengths), batch=len(rows), seed=seed + 50)  # what lies after a row's end must not matter
    for row, audio in enumerate(rows):
        padded[row, :, : audio.shape[-1]] = audio[0]
    codes = codec.encode(padded, lengths)
    for row, audio in enumerate(rows):
        single = codec.encode(audio)
        assert torch.equal(codes[row, :, : single.shape[-1]], single[0])
        assert not codes[row, :, single.shape[-1] :].any()


@few_examples
@given(length=st.integers(1, 1500), chunks=st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_streamed_codes_equal_offline_codes(codec: Codec, length: int, chunks: list[int]):
    audio = random_audio(length, batch=2, seed=length)
    assert torch.equal(stream(codec.streaming_encoder(), cut(audio, chunks)), codec.encode(audio))


def test_where_two_entries_are_nearly_as_near_the_chunks_still_do_not_matter(monkeypatch):
    # float32 moves the latents of these random weights further than those that the constant was measured on
    monkeypatch.setattr("codeclm.model.codecs.rvq.DOUBT", 2e-5)
    codec = make_codec(replace(TINY, encoder_dim=48, dim=48))
    for book in codec.quantizer.books():  # entries in pairs, so near to each other that float32 often cannot choose
        book.entries[1::2] = book.entries[::2] + 1e-6 * torch.randn_like(book.entries[::2])
    audio = random_audio(codec.hop_length * 200, batch=2)
    whole = codec.encode(audio)
    latent = codec.encoder(audio[:, 0])
    in_float32 = codec.quantizer.encode(latent)[0]
    exact = codec.quantizer.encode(codec.encoder.exactly(audio[:, 0]))[0]
    assert (in_float32 != exact).any(), "nothing was near a tie"
    assert torch.equal(whole, exact)
    for chunks in ([codec.hop_length], [codec.hop_length * 7 + 3]):
        assert torch.equal(stream(codec.streaming_encoder(), cut(audio, chunks)), whole)


def test_threads_that_encode_near_ties_at_once_get_the_codes_that_each_gets_alone(monkeypatch):
    monkeypatch.setattr("codeclm.model.codecs.rvq.DOUBT", 1.0)  # every frame is near a tie
    codec = make_codec()
    clips = [random_audio(codec.hop_length * (10 + number), seed=number) for number in range(3)]
    alone = [codec.encode(clip) for clip in clips]
    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(codec.encode, 20 * clips))
    assert all(torch.equal(codes, alone[i % len(clips)]) for i, codes in enumerate(together))


def test_a_frame_depends_on_what_lies_within_its_reach_and_on_nothing_before(codec: SpectralCodec):
    reach, hop = codec.encoder.reach, codec.hop_length
    audio = random_audio((reach + 9) * hop)[:, 0]
    latent = codec.encoder.exactly(audio)
    torch.testing.assert_close(codec.encoder.exactly(audio[:, 8 * hop :])[:, -1], latent[:, -1], atol=1e-12, rtol=0)
    late = codec.encoder.exactly(audio[:, 9 * hop + hop - codec.config.trunk_hop :][:, -(reach - 1) * hop :])[:, -1]
    assert not torch.allclose(late, latent[:, -1], atol=1e-9, rtol=0), "the reach is larger than it need be"


def test_after_training_the_exact_encoder_has_the_new_weights():
    codec = make_codec().requires_grad_(True)
    audio = random_audio(codec.hop_length * 4)[:, 0]
    before = codec.encoder.exactly(audio)
    with torch.no_grad():
        codec.encoder.outlet.bias.add_(1.0)
    torch.testing.assert_close(codec.encoder.exactly(audio), before + 1.0)


def test_long_audio_is_computed_in_pieces_with_the_same_result(codec: SpectralCodec, monkeypatch):
    audio = random_audio(codec.hop_length * 50 - 3, batch=2)
    codes = codec.encode(audio, [audio.shape[-1], 5])
    decoded = codec.decode(codes)
    monkeypatch.setattr("codeclm.model.codecs.spectral.PIECE_FRAMES", 7)
    assert torch.equal(codec.encode(audio, [audio.shape[-1], 5]), codes)
    torch.testing.assert_close(codec.decode(codes), decoded, atol=1e-5, rtol=1e-5)


def test_pulses_stay_in_step_however_a_long_stream_is_cut():
    codec = make_codec()
    codes = torch.randint(codec.codebook_size, (1, 4, 3000), generator=torch.Generator().manual_seed(0))
    streamed = stream(codec.streaming_decoder(), cut(codes, [7, 1, 190]))
    torch.testing.assert_close(streamed, codec.decode(codes), atol=1e-4, rtol=1e-4)


@few_examples
@given(length=st.integers(1, 30), chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6), k=st.integers(1, 4))
def test_streamed_audio_equals_offline_audio(codec: Codec, length: int, chunks: list[int], k: int):
    codes = torch.randint(codec.codebook_size, (2, k, length), generator=torch.Generator().manual_seed(length))
    streamed = stream(codec.streaming_decoder(), cut(codes, chunks))
    torch.testing.assert_close(streamed, codec.decode(codes), atol=1e-5, rtol=1e-5)


def test_codes_of_a_prefix_are_a_prefix_of_the_codes(codec: Codec):
    audio = random_audio(codec.hop_length * 12)
    codes = codec.encode(audio)
    for frames in (1, 2, 7):
        assert torch.equal(codec.encode(audio[..., : frames * codec.hop_length]), codes[..., :frames])


def test_a_later_code_moves_no_audio_before_its_window(codec: SpectralCodec):
    codes = codec.encode(random_audio(codec.hop_length * 12))
    changed = codes.clone()
    changed[..., 8:] = (changed[..., 8:] + 1) % codec.codebook_size
    before = 8 * codec.hop_length - codec.latency_samples
    audio, other = codec.decode(codes), codec.decode(changed)
    assert torch.equal(audio[..., :before], other[..., :before])
    assert not torch.equal(audio[..., before:], other[..., before:])


def test_fewer_codebooks_decode_and_each_one_matters(codec: Codec):
    codes = codec.encode(random_audio(codec.hop_length * 10))
    audios = [codec.decode(codes[:, :k]) for k in range(1, codec.num_codebooks + 1)]
    assert all(audio.shape == audios[0].shape for audio in audios)
    assert all(not torch.equal(a, b) for a, b in zip(audios[:-1], audios[1:], strict=True))


def test_a_coder_without_input_flushes_nothing(codec: Codec):
    assert codec.streaming_encoder().flush().shape == (1, codec.num_codebooks, 0)
    assert codec.streaming_decoder().flush().shape == (1, 1, 0)


@pytest.mark.parametrize(
    "audio, words",
    [
        (torch.full((1, 1, 100), float("nan")), "NaN or infinite"),
        (torch.full((1, 1, 100), float("inf")), "NaN or infinite"),
        (torch.zeros(1, 1, 0), "empty"),
        (torch.zeros(0, 1, 100), "empty"),
        (torch.zeros(100), r"\[B, 1, S\].*not \[100\]"),
        (torch.zeros(1, 2, 100), "mono"),
    ],
)
def test_unusable_audio_is_refused_with_a_reason(audio: Tensor, words: str):
    codec = make_codec()
    for encode in (codec.encode, codec.streaming_encoder().push):
        with pytest.raises(ValueError, match=words):
            encode(audio)


@pytest.mark.parametrize("lengths", [[100], [100, 0], [100, -1], [100, 101]])
def test_lengths_that_do_not_fit_the_batch_are_refused(lengths: list[int]):
    with pytest.raises(ValueError, match="lengths must be 2 numbers from 1 to 100"):
        make_codec().encode(random_audio(100, batch=2), lengths)


@pytest.mark.parametrize(
    "codes, words",
    [
        (torch.zeros(1, 4, 3), r"must be integers.*float32"),
        (torch.zeros(4, 3, dtype=torch.long), r"\[B, K, T\].*\[4, 3\]"),
        (torch.zeros(1, 5, 3, dtype=torch.long), "5 codebooks; codec 'spectral' has 4"),
        (torch.zeros(1, 0, 3, dtype=torch.long), "0 codebooks"),
        (torch.zeros(1, 4, 0, dtype=torch.long), "no frame"),
        (torch.full((1, 4, 3), 32), r"32\.\.32.*0\.\.31"),
        (torch.full((1, 4, 3), -1), r"-1\.\.-1.*0\.\.31"),
    ],
)
def test_unusable_codes_are_refused_with_a_reason(codes: Tensor, words: str):
    codec = make_codec()
    for decode in (codec.decode, codec.streaming_decoder().push):
        with pytest.raises(ValueError, match=words):
            decode(codes)


def test_a_saved_codec_loads_frozen_with_the_same_codes_and_fingerprint(tmp_path: Path):
    codec = make_codec()
    codec.save(tmp_path)
    loaded = load_codec(tmp_path)
    audio = random_audio(1000)
    assert loaded.fingerprint == codec.fingerprint
    assert torch.equal(loaded.encode(audio), codec.encode(audio))
    assert torch.equal(loaded.decode(loaded.encode(audio)), codec.decode(codec.encode(audio)))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_fingerprint_changes_with_any_weight_and_with_the_rates():
    prints = [make_codec().fingerprint, make_codec(seed=1).fingerprint]
    for name in ("encoder.norm.bias", "quantizer.codebooks.3.entries", "decoder.head.bias"):
        codec = make_codec()
        codec.state_dict()[name].flatten()[0] += 1e-3
        prints.append(codec.fingerprint)
    prints.append(make_codec(replace(TINY, sample_rate=9_000)).fingerprint)
    assert len(set(prints)) == len(prints)


def test_a_packed_codec_is_close_to_the_original_and_keeps_its_fingerprint(tmp_path: Path):
    codec = make_codec(SpectralConfig(encoder_dim=64, dim=64, pitch_dim=16, num_codebooks=2, codebook_size=16))
    codec.save(tmp_path / "packed", packed=True)
    packed = load_codec(tmp_path / "packed")
    assert torch.int8 in {tensor.dtype for tensor in load_file(tmp_path / "packed" / "model.safetensors").values()}
    assert {tensor.dtype for tensor in packed.state_dict().values()} == {torch.float32}
    for name, tensor in packed.state_dict().items():
        original = codec.state_dict()[name]
        assert (tensor - original).abs().max() <= original.abs().max() / 254 * 1.01
    packed.save(tmp_path / "whole")
    assert load_codec(tmp_path / "whole").fingerprint == packed.fingerprint != codec.fingerprint


def copy_of(saved: Path, folder: Path) -> Path:
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def edit_config(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize(
    "damage, error, words",
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "holds no codec.*config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, "holds a list, not an object"),
        (lambda f: edit_config(f, codec={"codec": "mimi"}), ValueError, "is not a codec's config"),
        (lambda f: edit_config(f, codec=["mimi"]), ValueError, "is not a codec's config"),
        (lambda f: edit_config(f, dim=10**12), ValueError, "dim is 1000000000000; it must be a whole number from 1"),
        (lambda f: edit_config(f, encoder_layers=10**6), ValueError, "encoder_layers is 1000000"),
        (lambda f: edit_config(f, dim=1 << 20), ValueError, r"should be \[1048576"),
        (lambda f: edit_config(f, dim=8.0), ValueError, "dim is 8.0; it must be a whole number"),
        (lambda f: edit_config(f, leading_codebooks=True), ValueError, "num_codebooks must be 1..4, not True"),
        (lambda f: edit_config(f, leading_codebooks={}), ValueError, "num_codebooks must be 1..4, not {}"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "no weights to load"),
        (only_a_pickle, FileNotFoundError, "pytorch_model.bin is a pickle, which is never read"),
        (truncate, ValueError, "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), ValueError, "not a whole safetensors file"),
        (lambda f: edit_config(f, codec="mp3"), ValueError, "'mp3' is unknown"),
        (
            lambda f: edit_config(f, num_codebook=4),
            ValueError,
            "unknown setting 'num_codebook'; did you mean 'num_codebooks'",
        ),
        (lambda f: edit_config(f, filters_per_hop=3), ValueError, "must be a multiple of filters_per_hop 3"),
        (lambda f: edit_config(f, filter_overlap=1), ValueError, "filter_overlap is 1; it must be at least 2"),
        (lambda f: edit_config(f, window=39), ValueError, "must not be shorter than trunk_hop 40"),
        (lambda f: edit_config(f, lookahead=-1), ValueError, "lookahead is -1; it must be a whole number from 0"),
        (lambda f: edit_config(f, dim="wide"), ValueError, "dim is 'wide'; it must be a whole number"),
        (lambda f: edit_config(f, num_codebooks=0), ValueError, "num_codebooks is 0; it must be a whole number"),
        (lambda f: edit_config(f, num_codebooks=5), ValueError, "'quantizer.codebooks.4.*is missing"),
        (lambda f: edit_config(f, codebook_size=64), ValueError, r"is \[32, 4\], should be \[64, 4\]"),
        (lambda f: edit_weights(f, lambda w: w.pop("decoder.head.bias")), ValueError, "'decoder.head.bias' is missing"),
        (lambda f: edit_weights(f, lambda w: w["decoder.head.bias"].fill_(torch.nan)), ValueError, "holds NaN"),
        (lambda f: edit_weights(f, lambda w: w.update(extra=torch.ones(1))), ValueError, "'extra' does not belong"),
    ],
)
def test_a_damaged_codec_folder_is_refused_in_one_line(saved: Path, tmp_path: Path, damage, error, words: str):
    damage(copy_of(saved, tmp_path))
    with pytest.raises(error, match=words) as caught:
        load_codec(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_codec_name_says_what_may_be_given():
    with pytest.raises(ValueError, match="codec 'spectrall' is unknown; give 'spectral' or a folder"):
        load_codec("spectrall")


def test_every_config_field_is_saved(saved: Path):
    assert json.loads((saved / "config.json").read_text()) == {"codec": "spectral", **asdict(TINY)}


def test_a_codec_may_be_named_by_its_run_or_by_a_model(saved: Path, tmp_path: Path):
    expected = load_codec(saved).fingerprint
    for name in ("run/codec", "run2/model/codec"):
        (tmp_path / name).mkdir(parents=True)
        copy_of(saved, tmp_path / name)
    (tmp_path / "run/config.json").write_text(json.dumps({"codec": {"dim": 8}, "steps": 10}))  # of the training
    (tmp_path / "run2/model/config.json").write_text(json.dumps({"model_type": "codeclm"}))
    for name in ("run", "run2", "run2/model", "run/codec"):
        assert load_codec(tmp_path / name).fingerprint == expected
    assert load_codec(f"{tmp_path / 'run'}:2").num_codebooks == 2


@pytest.mark.parametrize(
    "content", ['{"codec": {"dim": 8}}', '{"codec": ["mimi"]}', '{"model_type": {}}', '{"dim": 8}']
)
def test_a_run_without_its_codec_is_refused_in_one_line(content: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json: is not a codec's config"):
        load_codec(tmp_path)


def test_decoders_that_are_pushed_together_say_what_each_says_alone(make_codec):
    codec = make_codec()
    codes = torch.randint(codec.codebook_size, (3, codec.num_codebooks, 30), generator=torch.Generator().manual_seed(0))
    decoders, parts = [codec.streaming_decoder() for _ in codes], [[], [], []]
    ages = (0, 2, 9)  # frames that each has said before: in the first ones, states are not alike
    for row, age in enumerate(ages):
        if age:
            parts[row].append(decoders[row].push(codes[row : row + 1, :, :age]))
    for step in range(20):
        chunk = torch.stack([codes[row, :, age + step : age + step + 1] for row, age in enumerate(ages)])
        for row, audio in enumerate(decoders[0].push_with(decoders[1:], chunk)):
            parts[row].append(audio)
        if step == 5:
            decoders = [decoder.copy() for decoder in decoders]
            codec.streaming_decoder().push(codes)
    for row, (decoder, age) in enumerate(zip(decoders, ages, strict=True)):
        found = torch.cat([*parts[row], decoder.flush()], dim=2)
        expected = codec.decode(codes[row : row + 1, :, : age + 20])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_copy_of_a_decoder_goes_on_by_itself(make_codec):
    codec = make_codec()
    codes = torch.randint(codec.codebook_size, (1, codec.num_codebooks, 20), generator=torch.Generator().manual_seed(0))
    first = codec.streaming_decoder()
    begun = first.push(codes[:, :, :12])
    second = first.copy()
    first.push(codes[:, :, :8])
    found = torch.cat([begun, second.push(codes[:, :, 12:]), second.flush()], dim=2)
    torch.testing.assert_close(found, codec.decode(codes), rtol=0, atol=1e-4)


def test_dispersed_pulses_are_delayed_by_frequency_and_noise_is_not():
    pulses, noise = dispersing_phases(161, 40)
    angles = torch.from_numpy(np.unwrap(pulses.angle().double().numpy()))
    delay = -angles.diff() * 160 / torch.pi  # in samples, at each of 160 frequencies
    torch.testing.assert_close(delay, torch.linspace(-20, 20, 161)[:-1].double() + 0.125, atol=1e-3, rtol=0)
    assert torch.equal(noise, torch.ones_like(noise))


def test_bent_audio_stays_below_full_scale_in_its_order_and_quiet_audio_as_it_is():
    audio = torch.linspace(-3, 3, 1001)
    output = bent(audio, 0.8)
    quiet = audio.abs() <= 0.8
    assert torch.equal(output[quiet], audio[quiet]) and torch.equal(bent(audio, 0.0), audio)
    assert output.abs().max() <= 1 and (output.diff() >= 0).all()
    assert float(output.diff().max()) < 0.0061  # no step at the knee: inputs are 0.006 apart


@pytest.mark.parametrize("wrong", [{"knee": 100}, {"dispersion": 81}, {"knee": -1}])
def test_a_knee_or_dispersion_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpectralCodec(replace(SpectralConfig(), **wrong))
