"""model/convert/csm.py: a CSM of transformers and the SpeechLM it becomes give the same logits and codes, and back.

B batch, K codebooks, T columns of the grid (text first, then audio).
"""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CsmForConditionalGeneration, MimiModel

from codeclm.inference.config import SamplingConfig
from codeclm.inference.convert import export_folder, import_folder
from codeclm.inference.engine import generate
from codeclm.inference.grid import Request
from codeclm.inference.loading import load_speech_lm
from codeclm.train.cli import main

from .checkpoints import CSM, TIED, assert_same_checkpoint, csm, edit

K, V, TEXT_VOCAB = CSM["num_codebooks"], CSM["vocab_size"], CSM["text_vocab_size"]
CLOSE = 3e-5  # of logits that spread over several units, in float32


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, tmp_path_factory):
    """(transformers' model, ours, folder of both)."""
    folder = tmp_path_factory.mktemp("csm")
    theirs = csm(folder / "hf", tie_codebooks_embeddings=request.param)
    import_folder("csm", folder / "hf", folder / "ours")
    return theirs, load_speech_lm(folder / "ours"), folder


def grid(num_text: int, num_frames: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Text columns, then audio columns -> codes [B, K, T], text [B, T], both -1 where there is none."""
    generator = torch.Generator().manual_seed(num_text + num_frames)
    codes = torch.randint(0, V, (batch, K, num_text + num_frames), generator=generator)
    text = torch.randint(0, TEXT_VOCAB, (batch, num_text + num_frames), generator=generator)
    codes[:, :, :num_text], text[:, num_text:] = -1, -1
    return codes, text


def their_logits(model: CsmForConditionalGeneration, codes: Tensor, text: Tensor) -> Tensor:
    """Logits [B, K, T, V] that transformers' parts give for each column; column 0 is given, its logits are 0."""
    audio = model.backbone_model.embed_tokens(codes.clamp_min(0).transpose(1, 2))
    inputs = torch.where((text >= 0)[..., None], model.embed_text_tokens(text.clamp_min(0)), audio)
    hidden = model.backbone_model(inputs_embeds=inputs).last_hidden_state[:, :-1]  # [B, T - 1, D]
    first = model.lm_head(hidden)[:, :, None]
    known = torch.nn.functional.pad(codes[:, :-1, 1:].clamp_min(0).transpose(1, 2), (1, 0))  # [B, T - 1, K]
    rest = model.depth_decoder(
        input_ids=known.flatten(0, 1), backbone_last_hidden_state=hidden.flatten(0, 1)
    ).logits.unflatten(0, known.shape[:2])
    logits = torch.cat([first, rest], dim=2).transpose(1, 2)
    return torch.nn.functional.pad(logits, (0, 0, 1, 0))


@torch.no_grad()
@pytest.mark.parametrize(("num_text", "num_frames"), [(5, 9), (0, 7), (3, 1), (1, 24)])
def test_every_logit_equals_that_of_transformers(pair, num_text, num_frames):
    theirs, ours, _ = pair
    codes, text = grid(num_text, num_frames)
    expected = their_logits(theirs, codes, text)
    output = ours(codes, text=text, return_logits=True)
    audio = slice(max(num_text, 1), None)
    assert expected[:, :, audio].std() > 0.3  # else they could be equal by being nothing
    torch.testing.assert_close(output.logits[:, :, audio], expected[:, :, audio], rtol=0, atol=CLOSE)
    torch.testing.assert_close(output.logits[:, 0, 1:], expected[:, 0, 1:], rtol=0, atol=CLOSE)


@torch.no_grad()
def test_the_reference_is_what_the_whole_class_computes(pair):
    theirs, ours, _ = pair
    codes, text = grid(0, 8)
    logits = theirs(input_ids=codes.transpose(1, 2)).logits
    torch.testing.assert_close(ours(codes, text=text, return_logits=True).logits[:, 0, 1:], logits[:, :-1])


@torch.no_grad()
def test_shorter_rows_of_a_batch_give_the_same_logits(pair):
    theirs, ours, _ = pair
    codes, text = grid(3, 9)
    short = codes.clone()
    short[1, :, 7:] = -1
    expected, output = their_logits(theirs, codes, text), ours(short, text=text, return_logits=True)
    torch.testing.assert_close(output.logits[1, :, 3:7], expected[1, :, 3:7], rtol=0, atol=CLOSE)
    torch.testing.assert_close(output.logits[0, :, 3:], expected[0, :, 3:], rtol=0, atol=CLOSE)


@torch.no_grad()
def test_greedy_generation_gives_the_same_codes(pair):
    theirs, ours, _ = pair
    text = torch.randint(4, TEXT_VOCAB, (2, 5), generator=torch.Generator().manual_seed(3))
    expected = theirs.generate(
        input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=9, do_sample=False,
        depth_decoder_do_sample=False,
    ).transpose(1, 2)  # fmt: skip
    greedy = SamplingConfig(temperature=0.0)
    *_, state = generate(ours, Request(9, text=text), [0, 1], greedy)
    assert len(expected.unique()) > 4
    assert state.codes[:, :, 5:].equal(expected)


def test_the_round_trip_gives_back_every_bit(pair, tmp_path):
    _, _, folder = pair
    export_folder("csm", folder / "ours", tmp_path / "back")
    assert_same_checkpoint(CsmForConditionalGeneration, folder / "hf", tmp_path / "back")
    again = (tmp_path / "back" / "generation_config.json").read_text()
    assert again == (folder / "hf" / "generation_config.json").read_text()


@torch.no_grad()
def test_bfloat16_stays_bfloat16_and_what_comes_back_loads(pair, tmp_path):
    theirs, _, folder = pair
    rounded = deepcopy(theirs).bfloat16()
    rounded.save_pretrained(tmp_path / "hf")
    import_folder("csm", tmp_path / "hf", tmp_path / "ours")
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}
    shutil.rmtree(tmp_path / "ours" / "source")  # as a model that was trained further, which has none
    export_folder("csm", tmp_path / "ours", tmp_path / "back")
    back = CsmForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    codes, text = grid(2, 5)
    assert back.dtype == torch.bfloat16
    weights = back.state_dict()
    weights.pop(TIED[0])  # some of its rows are never read, and left out
    assert all(tensor.equal(rounded.state_dict()[key]) for key, tensor in weights.items())
    found, expected = (their_logits(model, codes, text) for model in (back, rounded))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_the_codec_is_kept_as_a_mimi_that_transformers_loads(pair):
    theirs, ours, folder = pair
    codec = MimiModel.from_pretrained(folder / "ours" / "codec").state_dict()
    for key, tensor in theirs.codec_model.state_dict().items():
        assert codec[key].equal(tensor), key
    reference = ours.config.codec
    assert (reference.name, reference.sample_rate, reference.hop_length) == ("mimi", 800, 8)
    assert len(reference.fingerprint) == 64


def test_a_tied_table_may_be_saved_under_either_name_or_both(tmp_path):
    csm(tmp_path / "hf")
    backbone, depth = "backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"
    edit(tmp_path / "hf", lambda _, tensors: tensors.update({backbone: tensors[depth].clone()}))
    import_folder("csm", tmp_path / "hf", tmp_path / "both")
    edit(tmp_path / "hf", lambda _, tensors: tensors.pop(depth))
    import_folder("csm", tmp_path / "hf", tmp_path / "one")
    one, both = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "both"))
    assert all(both[key].equal(tensor) for key, tensor in one.items())
    edit(tmp_path / "hf", lambda _, tensors: tensors.update({depth: tensors[backbone] + 1}))
    with pytest.raises(ValueError, match="differ although they are tied"):
        import_folder("csm", tmp_path / "hf", tmp_path / "never")


def test_shards_are_read_through_their_index(pair, tmp_path):
    theirs, _, folder = pair
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="10KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    import_folder("csm", tmp_path / "hf", tmp_path / "ours")
    whole = load_file(folder / "ours" / "model.safetensors")
    assert all(tensor.equal(whole[key]) for key, tensor in load_file(tmp_path / "ours" / "model.safetensors").items())
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of", "../model-00001-of", 1))
    with pytest.raises(ValueError, match="is not a safetensors file of this folder"):
        import_folder("csm", tmp_path / "hf", tmp_path / "never")


REFUSED = {
    "hidden_act": lambda values, _: values.update(hidden_act="gelu"),
    "attention_bias": lambda values, _: values.update(attention_bias=True),
    "mlp_bias": lambda values, _: values["depth_decoder_config"].update(mlp_bias=True),
    "attention_dropout": lambda values, _: values.update(attention_dropout=0.1),
    "rope_type 'yarn'": lambda values, _: values["rope_parameters"].update(rope_type="yarn"),
    "partial_rotary_factor": lambda values, _: values["rope_parameters"].update(partial_rotary_factor=0.5),
    "codebook_eos_token_id": lambda values, _: values.update(codebook_eos_token_id=1),
    "quantization_config": lambda values, _: values.update(quantization_config={"quant_method": "gptq"}),
    "model_type": lambda values, _: values.update(model_type="moshi"),
    "codec 'encodec'": lambda values, _: values["codec_config"].update(model_type="encodec"),
    "num_quantizers": lambda values, _: values["codec_config"].update(num_quantizers=3),
    "backbone_hidden_size": lambda values, _: values["depth_decoder_config"].update(backbone_hidden_size=32),
    "tensor 'lm_head.weight' is missing": lambda _, tensors: tensors.pop("lm_head.weight"),
    "tensor 'lm_head.bias' does not belong": lambda _, tensors: tensors.update({"lm_head.bias": torch.zeros(V)}),
    "tensor 'lm_head.weight' is .19, 15., should be .19, 16.": lambda _, tensors: tensors.update(
        {"lm_head.weight": tensors["lm_head.weight"][:, 1:].contiguous()}
    ),
    "tensor 'lm_head.weight' is torch.int8; quantised": lambda _, tensors: tensors.update(
        {"lm_head.weight": tensors["lm_head.weight"].to(torch.int8)}
    ),
    "give one type": lambda _, tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].half()}),
    "holds NaN": lambda _, tensors: tensors["lm_head.weight"].fill_(float("nan")),
    "transformers does not accept": lambda values, _: values.update(hidden_size="wide"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("csm") / "hf"
    csm(folder)
    return folder


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name_and_nothing_is_left(checkpoint, tmp_path, message):
    shutil.copytree(checkpoint, tmp_path / "hf")
    edit(tmp_path / "hf", REFUSED[message])
    with pytest.raises(ValueError, match=message):
        import_folder("csm", tmp_path / "hf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


OURS_REFUSED = {
    "end": lambda values, _: values.update(end="never"),
    "depth.conditioning": lambda values, _: values["depth"].update(conditioning="add"),
    "backbone.qk_norm": lambda values, _: values["backbone"].update(qk_norm=True),
    "delays": lambda values, _: values.update(delays=[0, 1, 1, 1]),
    "is not the codec": lambda values, _: values["codec"].update(fingerprint="0" * 64),
    "tensor 'head_0.weight' is missing": lambda _, tensors: tensors.pop("head_0.weight"),
}


@pytest.mark.parametrize("message", OURS_REFUSED)
def test_a_model_that_is_no_csm_is_refused_by_name_on_the_way_back(pair, tmp_path, message):
    shutil.copytree(pair[2] / "ours", tmp_path / "ours")
    edit(tmp_path / "ours", OURS_REFUSED[message])
    with pytest.raises(ValueError, match=message):
        export_folder("csm", tmp_path / "ours", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_the_command_converts_there_and_back_and_never_overwrites(checkpoint, tmp_path, capsys):
    main(["convert", "csm", str(checkpoint), str(tmp_path / "ours")])
    main(["convert", "csm", str(tmp_path / "ours"), str(tmp_path / "back"), "--back"])
    assert_same_checkpoint(CsmForConditionalGeneration, checkpoint, tmp_path / "back")
    capsys.readouterr()
    for src, dst, message in ((checkpoint, "ours", "exists already"), (tmp_path / "nowhere", "new", "no such folder")):
        with pytest.raises(SystemExit, match="2"):
            main(["convert", "csm", str(src), str(tmp_path / dst)])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_pickles_are_never_read(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle, which is never read"):
        import_folder("csm", tmp_path / "hf", tmp_path / "ours")


def test_what_cannot_go_back_says_what_it_lacks(tmp_path, capsys):
    for source, message in (
        ("default", "default: has no Mimi in codec/"),
        ("nowhere", "nowhere: no such folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["convert", "csm", source, str(tmp_path / "back"), "--back"])
        line = capsys.readouterr().err
        assert line.startswith(f"codeclm: {message}") and line.count("\n") == 1 and "--model" not in line
    assert not (tmp_path / "back").exists()
