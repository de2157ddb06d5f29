"""model/convert/moshi.py: a Moshi of transformers and the SpeechLM it becomes give the same logits and codes, and back.

B batch, K codebooks, T frames, S = T + 1 steps (codebooks 1.. lag by one), V codebook size.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MimiModel, MoshiForConditionalGeneration

from codeclm.inference.config import SamplingConfig
from codeclm.inference.convert import export_folder, import_folder
from codeclm.inference.engine import generate
from codeclm.inference.grid import Request
from codeclm.inference.loading import load_speech_lm
from codeclm.model import SpeechLM, weights
from codeclm.model.convert import Converted, moshi
from codeclm.train.cli import main

from .checkpoints import MOSHI, assert_same_checkpoint, edit
from .checkpoints import moshi as make_moshi

K, V, TEXT_VOCAB = MOSHI["num_codebooks"], MOSHI["audio_vocab_size"], MOSHI["vocab_size"]
CLOSE = 3e-5  # of logits that spread over several units, in float32
GREEDY = SamplingConfig(temperature=0.0, text_temperature=0.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, ours, folder of both)."""
    folder = tmp_path_factory.mktemp("moshi")
    theirs = make_moshi(folder / "hf")
    import_folder("moshi", folder / "hf", folder / "ours")
    return theirs, load_speech_lm(folder / "ours"), folder


def frames(num_frames: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [B, K, T], text [B, T], the user's codes [B, K, T]."""
    generator = torch.Generator().manual_seed(num_frames)
    codes, user = (torch.randint(0, V, (batch, K, num_frames), generator=generator) for _ in range(2))
    return codes, torch.randint(0, TEXT_VOCAB, (batch, num_frames), generator=generator), user


def their_steps(model: MoshiForConditionalGeneration, codes: Tensor) -> Tensor:
    """Frames as transformers delays them, after its BOS -> [B, K, 1 + S]."""
    start = torch.full_like(codes[:, :, :1], V)
    return model.build_delay_pattern_mask(torch.cat([start, codes], dim=2), V, V, codes.shape[2] + 2)[1]


def their_logits(
    model: MoshiForConditionalGeneration, codes: Tensor, text: Tensor, user: Tensor
) -> tuple[Tensor, Tensor]:
    """-> (logits of the codes of each frame [B, K, T, V], of the text [B, T, text vocabulary])."""
    steps, heard = their_steps(model, codes), their_steps(model, user)
    start = torch.full_like(text[:, :1], TEXT_VOCAB)
    output = model(
        input_ids=torch.cat([start, text], dim=1),
        moshi_audio_codes=steps[:, :, :-1],
        user_audio_codes=heard[:, :, :-1],
    )
    decoder, targets = model.depth_decoder, steps[:, :, 1:]
    given = [decoder.text_embed_tokens(text)]  # the step after the last frame has no text
    given[0] = torch.nn.functional.pad(given[0], (0, 0, 0, 1))
    given += [table(targets[:, k]) for k, table in enumerate(decoder.embed_tokens)]
    inputs = torch.stack(given, dim=2).flatten(0, 1)  # [B * S, K, d]
    hidden = output.last_hidden_state.flatten(0, 1)[:, None]
    logits = decoder(input_ids=inputs[..., 0].long(), inputs_embeds=inputs, last_hidden_state=hidden).logits
    logits = logits.unflatten(0, targets[:, 0].shape).transpose(1, 2)  # [B, K, S, V]
    return torch.cat([logits[:, :1, :-1], logits[:, 1:, 1:]], dim=1), output.logits[:, :-1]


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 9, 24])
def test_every_logit_of_codes_and_text_equals_that_of_transformers(pair, num_frames):
    theirs, ours, _ = pair
    codes, text, user = frames(num_frames)
    expected, expected_text = their_logits(theirs, codes, text, user)
    output = ours(codes, text=text, user=user, return_logits=True)
    assert expected.std() > 0.3 and expected_text.std() > 0.3  # else they could be equal by being nothing
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=CLOSE)
    torch.testing.assert_close(output.text_logits, expected_text, rtol=0, atol=CLOSE)


@torch.no_grad()
def test_the_reference_is_what_the_depth_decoder_computes_from_its_own_ids(pair):
    theirs, ours, _ = pair
    codes, text, user = frames(6)
    steps, heard = their_steps(theirs, codes), their_steps(theirs, user)
    hidden = theirs(
        input_ids=torch.cat([torch.full_like(text[:, :1], TEXT_VOCAB), text], dim=1),
        moshi_audio_codes=steps[:, :, :-1],
        user_audio_codes=heard[:, :, :-1],
    ).last_hidden_state
    ids = torch.cat([text[:, 3:4], steps[:, :-1, 4]], dim=1)  # step 3: text, then all codes but the last
    logits = theirs.depth_decoder(input_ids=ids, last_hidden_state=hidden[:, 3:4]).logits
    output = ours(codes, text=text, user=user, return_logits=True).logits
    torch.testing.assert_close(output[:, 0, 3], logits[:, 0], rtol=0, atol=CLOSE)
    torch.testing.assert_close(output[:, 1:, 2], logits[:, 1:], rtol=0, atol=CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("num_given", [0, 5])
def test_greedy_generation_gives_the_same_codes_and_text(pair, num_given):
    theirs, ours, _ = pair
    codes, text, user = frames(num_given, batch=2) if num_given else (None, None, None)
    given = dict(input_ids=text, moshi_audio_codes=codes, user_audio_codes=user) if num_given else {}
    expected = theirs.generate(
        **given, max_new_tokens=12, do_sample=False, depth_decoder_do_sample=False, return_audio_codes=True,
        return_audio_waveforms=False,
    )  # fmt: skip
    # transformers hears silence from the user, and its last step completes the frame before
    silence = theirs.audio_encoder.encode(torch.zeros(1, 1, 8), num_quantizers=K).audio_codes[0]
    batch = 2 if num_given else 1
    heard = silence.repeat(batch, 1, 11)
    request = Request(11, codes, text, user=heard if user is None else torch.cat([user, heard], dim=2), draw_text=True)
    *_, state = generate(ours, request, range(batch), GREEDY)
    assert len(expected.audio_codes.unique()) > 4
    assert state.codes.equal(expected.audio_codes)
    assert state.text[:, num_given:].equal(expected.sequences[:, -12:-1])


def test_the_round_trip_gives_back_every_bit(pair, tmp_path):
    _, _, folder = pair
    export_folder("moshi", folder / "ours", tmp_path / "back")
    assert_same_checkpoint(MoshiForConditionalGeneration, folder / "hf", tmp_path / "back")


@torch.no_grad()
def test_bfloat16_stays_bfloat16_and_what_comes_back_loads(pair, tmp_path):
    theirs, _, folder = pair
    type(theirs).from_pretrained(folder / "hf", dtype=torch.bfloat16).save_pretrained(tmp_path / "hf")
    main(["convert", "moshi", str(tmp_path / "hf"), str(tmp_path / "ours")])
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}
    shutil.rmtree(tmp_path / "ours" / "source")  # as a model that was trained further, which has none
    main(["convert", "moshi", str(tmp_path / "ours"), str(tmp_path / "back"), "--back"])
    back = MoshiForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    first = MoshiForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert back.dtype == torch.bfloat16
    for one, other in zip(their_logits(back, *frames(5)), their_logits(first, *frames(5)), strict=True):
        assert one.equal(other)


def test_the_codec_is_kept_as_a_mimi_that_transformers_loads(pair):
    theirs, ours, folder = pair
    codec = MimiModel.from_pretrained(folder / "ours" / "codec").state_dict()
    for key, tensor in theirs.audio_encoder.state_dict().items():
        assert codec[key].equal(tensor), key
    assert ours.config.codec.hop_length == 8


@torch.no_grad()
@pytest.mark.parametrize("weight_sets", [(0, 1, 1), ()])
def test_weight_sets_that_codebooks_share_become_one_for_each(pair, weight_sets):
    config = type(pair[1].config).from_dict(pair[1].config.to_dict())
    config.depth = replace(config.depth, weight_sets=weight_sets)
    torch.manual_seed(0)
    shared = SpeechLM(config).eval()
    for parameter in shared.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    values, weights = moshi.from_speech_lm(Converted(config, shared.state_dict()))
    again = moshi.to_speech_lm(values | {"audio_encoder_config": MOSHI["audio_encoder_config"]}, weights)
    single = SpeechLM(again.config).eval()
    single.load_state_dict(again.weights)
    assert again.config.depth.weight_sets == (0, 1, 2)
    codes, text, user = frames(5)
    outputs = [model(codes, text=text, user=user, return_logits=True).logits for model in (shared, single)]
    torch.testing.assert_close(*outputs)


REFUSED = {
    "hidden_act": lambda values, _: values.update(hidden_act="gelu"),
    "depth_decoder_config: hidden_act": lambda values, _: values["depth_decoder_config"].update(hidden_act="relu"),
    "attention_dropout": lambda values, _: values.update(attention_dropout=0.1),
    "rope_type 'dynamic'": lambda values, _: values["rope_parameters"].update(rope_type="dynamic", factor=2.0),
    "depth_decoder_config: sliding_window": lambda values, _: values["depth_decoder_config"].update(sliding_window=2),
    "quantization_config": lambda values, _: values.update(quantization_config={"quant_method": "gptq"}),
    "model_type": lambda values, _: values.update(model_type="csm"),
    "tensor 'embed_tokens.5.weight' is missing": lambda _, tensors: tensors.pop("embed_tokens.5.weight"),
    "tensor 'embed_tokens.6.weight' does not belong": lambda _, tensors: tensors.update(
        {"embed_tokens.6.weight": tensors["embed_tokens.5.weight"].clone()}
    ),
    "tensor 'depth_decoder.lm_heads.weight' is .2, 16, 8., should be .3, 16, 8.": lambda _, tensors: tensors.update(
        {"depth_decoder.lm_heads.weight": tensors["depth_decoder.lm_heads.weight"][1:].clone()}
    ),
    "codec's tensors are missing": lambda _, tensors: [
        tensors.pop(key) for key in list(tensors) if key.startswith("audio_encoder.")
    ],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name_and_nothing_is_left(pair, tmp_path, message):
    shutil.copytree(pair[2] / "hf", tmp_path / "hf")
    edit(tmp_path / "hf", REFUSED[message])
    with pytest.raises(ValueError, match=message):
        import_folder("moshi", tmp_path / "hf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


OURS_REFUSED = {
    "user_codebooks": lambda values, _: values.update(user_codebooks=0),
    "gaps": lambda values, _: values.update(gaps="absent"),
    "delays": lambda values, _: values.update(delays=[0, 1, 2]),
    "depth.rope": lambda values, _: values["depth"].update(rope=True),
    "text.tied": lambda values, _: values["text"].update(tied=True),
    "tensor 'depth_decoder.project.weight' is .2, 8, 16., should be .3, 8, 16.": lambda _, tensors: tensors.update(
        {"depth_decoder.project.weight": tensors["depth_decoder.project.weight"][1:].clone()}
    ),
}


@pytest.mark.parametrize("message", OURS_REFUSED)
def test_a_model_that_is_no_moshi_is_refused_by_name_on_the_way_back(pair, tmp_path, message):
    shutil.copytree(pair[2] / "ours", tmp_path / "ours")
    edit(tmp_path / "ours", OURS_REFUSED[message])
    with pytest.raises(ValueError, match=message):
        export_folder("moshi", tmp_path / "ours", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_disk_that_fills_up_leaves_nothing_half_written(pair, tmp_path, monkeypatch):
    calls = []

    def fail(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            raise SafetensorError("no space left")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="ours: cannot be written .no space left"):
        import_folder("moshi", pair[2] / "hf", tmp_path / "ours")
    assert len(calls) == 2 and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        import_folder("moshi", pair[2] / "hf", tmp_path / "file" / "ours")
