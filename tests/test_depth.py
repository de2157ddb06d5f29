"""model/depth.py: what each position is given and predicts, against plain loops over the codebooks (float64)."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codeclm.model import SpeechLM
from codeclm.model import depth as depth_module
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.depth import DepthRows, depth_nats
from codeclm.model.linear import GroupedLinear
from codeclm.model.shapes import DepthConfig, TextConfig
from codeclm.model.transformer import KVCache

from .options import DEPTHS, SIZE, WORDS, depth, example

# in sharing schedules: one set for each position, some shared, all shared, in any order
SCHEDULES = {
    "add": [(0, 1, 2), (0, 1, 1), (0, 0, 0), (1, 0, 1)],  # of 4 codebooks, 3 are the depth decoder's
    "prefix": [(0, 1, 2, 3), (0, 1, 2, 2), (0, 0, 0, 0), (2, 0, 1, 0)],
}
SETS = [(conditioning, sets) for conditioning, schedules in SCHEDULES.items() for sets in schedules]


def gradients(model: SpeechLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("conditioning, sets", SETS)
@pytest.mark.parametrize("embeddings", ["own", "shared"])
def test_sets_of_weights_give_what_a_loop_over_the_codebooks_gives(
    make_model, monkeypatch, conditioning, sets, embeddings
):
    model = make_model(
        [0, 0, 1, 1], depth=depth(conditioning=conditioning, weight_sets=sets, embeddings=embeddings), pattern="depth"
    )
    inputs = example(model)
    assert model.depth_decoder.transformer.blocks[0].attention.query.weight.shape == (max(sets) + 1, 8, 8)
    output = model(**inputs)
    grads = gradients(model, output.loss)

    def loop(linear: GroupedLinear, x: Tensor, own: tuple[int, ...]) -> Tensor:
        assert own == sets[: len(own)] and x.shape[1] == len(own)
        return torch.stack([F.linear(x[:, j], linear.weight[one]) for j, one in enumerate(own)], dim=1)

    monkeypatch.setattr(GroupedLinear, "forward", loop)
    looped = model(**inputs)
    torch.testing.assert_close(output.nll, looped.nll, rtol=0, atol=1e-12)
    for name, grad in gradients(model, looped.loss).items():
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["default", "prefix", "first", "wide"])
@torch.no_grad()
def test_one_set_for_all_positions_is_the_model_without_sets(make_model, option):
    plain = make_model(depth=DEPTHS[option])
    positions = DEPTHS[option].num_positions(3)
    fields = {name: getattr(DEPTHS[option], name) for name in ("conditioning", "first_codebook", "embeddings")}
    shared = make_model(depth=depth(weight_sets=(0,) * positions, **fields), seed=1)
    weights = plain.state_dict()
    shared.load_state_dict({name: weights[name].view(old.shape) for name, old in shared.state_dict().items()})
    inputs = example(plain)
    torch.testing.assert_close(shared(**inputs).nll, plain(**inputs).nll, rtol=0, atol=1e-12)


def config_of(conditioning: str, first: str, embeddings: str, sets: bool) -> DepthConfig:
    positions = 2 if (conditioning, first) == ("add", "backbone") else 3
    return depth(
        conditioning=conditioning,
        first_codebook=first,
        embeddings=embeddings,
        sees_text=True,
        weight_sets=tuple(range(positions)) if sets else (),
    )


STYLES = list(itertools.product(("add", "prefix"), ("backbone", "depth"), ("own", "wide", "shared"), (False, True)))


@pytest.mark.parametrize("gaps", ["absent", "bos"])
@torch.no_grad()
def test_each_position_is_given_what_its_style_says(make_model, gaps):
    """Position by position from the tables: context, the code before (or nothing, or BOS), the text at the first."""
    for conditioning, first, embeddings, sets in STYLES:
        config = config_of(conditioning, first, embeddings, sets)
        model = make_model(depth=config, text=TextConfig(WORDS), gaps=gaps)
        cheap = (conditioning, first) == ("add", "backbone")
        context = torch.randn(4, 16, dtype=torch.float64)
        codes = torch.tensor([[3, 5], [ABSENT, 0], [6, ABSENT], [ABSENT, ABSENT]])
        text = torch.tensor([ABSENT, 0, 4, 10])
        fed = codes if cheap else F.pad(codes, (1, 0), value=ABSENT)
        decoder = model.depth_decoder
        assert decoder.codeless == 1 - cheap

        def project(x: Tensor, j: int, decoder=decoder) -> Tensor:
            weight = decoder.project.weight
            return x @ (weight[j] if weight.ndim == 3 else weight).t()

        expected = torch.zeros(4, fed.shape[1], 8, dtype=torch.float64)
        for n, j in itertools.product(range(4), range(fed.shape[1])):
            if conditioning == "add" or j == 0:
                expected[n, j] += project(context[n], j)
            if j == 0 and text[n] != ABSENT:
                expected[n, j] += decoder.text_embedding.weight[text[n]]
            codebook = j if cheap else j - 1
            if codebook < 0:
                continue
            code = int(codes[n, codebook])
            if code == ABSENT and gaps == "bos":
                code = SIZE
            if code != ABSENT:
                table = model.frame_embedding if embeddings == "shared" else decoder.embedding
                row = table.weight[codebook * (SIZE + 1) + code]
                expected[n, j] += row if embeddings == "own" else project(row, j)
        x = decoder.inputs(decoder.condition(context), fed, model.frame_embedding, text)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
        for start in range(1, fed.shape[1]):  # and a part of the positions, as step by step
            part = decoder.inputs(decoder.condition(context), fed[:, start:], model.frame_embedding, text, start)
            torch.testing.assert_close(part, expected[:, start:], rtol=0, atol=1e-12)


class Gives(torch.nn.Module):
    """A transformer whose positions hold `hidden`, whatever goes in."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, x: torch.Tensor, cache: KVCache | None, keys: torch.Tensor | None) -> torch.Tensor:
        first = 0 if cache is None else cache.length
        return self.hidden[:, first : first + x.shape[1]]


@pytest.mark.parametrize("first", ["backbone", "depth"])
@torch.no_grad()
def test_position_j_predicts_its_own_codebook_with_that_codebooks_head(make_model, first):
    for conditioning in ("add", "prefix"):
        model = make_model(depth=depth(conditioning=conditioning, first_codebook=first))
        positions = model.config.depth.num_positions(3)
        out = torch.randn(4, positions, 8, dtype=torch.float64)
        decoder = model.depth_decoder
        decoder.transformer = Gives(out)  # pyright: ignore
        context, codes = torch.zeros(4, model.config.backbone.dim).double(), torch.zeros(4, positions, dtype=torch.long)
        zero, others = decoder(decoder.condition(context), codes, model.frame_embedding)
        if first == "depth":
            torch.testing.assert_close(zero, out[:, 0] @ decoder.head_0.weight.t(), rtol=0, atol=1e-12)
        else:
            assert zero is None and decoder.head_0 is None and model.head_0.weight.shape[1] == 16
        expected = torch.stack([out[:, positions - 2 + k] @ model.depth_decoder.heads[k] for k in range(2)])
        torch.testing.assert_close(others, expected, rtol=0, atol=1e-12)
        cache = KVCache(decoder.config, 4, positions, context)
        cache.length = positions - 1
        zero, others = decoder(
            decoder.condition(context), codes[:, :1], model.frame_embedding, None, cache
        )  # the last position alone
        assert zero is None
        torch.testing.assert_close(others, expected[1:], rtol=0, atol=1e-12)


def test_sets_of_weights_count_only_where_they_are_asked_for(make_model):
    def size(**changes: object) -> int:
        return sum(p.numel() for p in make_model(depth=depth(**changes)).depth_decoder.transformer.parameters())

    norms = 5 * 8
    assert size(weight_sets=(0, 1)) - norms == 2 * (size() - norms)
    assert size(weight_sets=(0, 0)) == size()


def test_a_single_codebook_leaves_the_depth_decoder_nothing_but_codebook_0(make_model):
    codes = torch.randint(0, SIZE, (2, 1, 5))
    assert (make_model([0])(codes).nll > 0).all()
    model = make_model([0], depth=depth(first_codebook="depth"))
    output = model(codes)
    grads = gradients(model, output.loss)
    assert (output.nll > 0).all()
    for name in grads:
        if not name.startswith("depth_decoder."):
            continue
        if ".attention.query." in name or ".attention.key." in name:
            assert grads[name].abs().max() < 1e-12, name  # one position attends to itself, whatever they say
        elif ".embedding." not in name and not name.endswith(".heads"):  # of the codebooks that there are not
            assert grads[name].abs().max() > 1e-6, name


@pytest.mark.parametrize("option", ["default", "first"])
@pytest.mark.parametrize("chunk", [1, 256])
def test_depth_fraction_is_unbiased_in_the_loss_and_in_every_gradient(make_model, monkeypatch, option, chunk):
    """Exact: with two of 4 frames in one row and two of 3 in the other, the mean over all 18 subsets is the whole."""
    model = make_model([0, 0, 0], depth=DEPTHS[option])
    codes = example(model, batch=2, num_frames=4)["codes"]
    codes[1, :, 3:] = ABSENT
    subsets = itertools.product(itertools.combinations(range(4), 2), itertools.combinations(range(3), 2))

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([grad.flatten() for grad in gradients(model, loss).values()])

    whole = model(codes).loss
    expected, losses, samples = gradient(whole), [], []
    for subset in subsets:
        with monkeypatch.context() as patch:
            order = torch.ones(2, 5, dtype=torch.int64).scatter(1, torch.tensor(subset), 0)
            patch.setattr(depth_module, "random_bits", lambda keys, count, order=order: order)
            loss = model(codes, depth_fraction=0.5, depth_chunk=chunk).loss
        samples.append(gradient(loss))
        losses.append(loss.detach())
    assert torch.stack(losses).std() > 1e-3
    torch.testing.assert_close(torch.stack(losses).mean(), whole.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.stack(samples).mean(dim=0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["default", "first"])
@torch.no_grad()
def test_a_share_of_the_frames_is_drawn_anew_at_each_call_and_reports_no_nll(make_model, option):
    model = make_model(depth=DEPTHS[option])
    codes = example(model, batch=2, num_frames=10)["codes"]
    torch.manual_seed(0)
    outputs = [model(codes, depth_fraction=0.25) for _ in range(300)]
    losses = torch.stack([output.loss for output in outputs])
    assert outputs[0].nll is None and outputs[0].eos_nll is None
    assert len(losses.unique()) > 200
    standard_error = float(losses.std()) / 300**0.5
    assert abs(float(losses.mean() - model(codes).loss)) < 4 * standard_error


# --- groups of codebooks ---


def slow_nats(model: SpeechLM, codes: Tensor, groups: list[list[int]]) -> Tensor:
    """Nats [N, K] of codebooks 1..K-1 of steps [N, K], a group at a time from all the groups before: no two codebooks
    of a group are in one input."""
    decoder, total = model.depth_decoder, torch.zeros(codes.shape, dtype=torch.float64)
    context = torch.linspace(-1, 1, len(codes) * model.config.backbone.dim, dtype=torch.float64).view(len(codes), -1)
    size, table = model.codebook_size + 1, decoder.embedding.weight
    inputs = []
    for before, group in itertools.pairwise(groups):
        x = context @ decoder.project.weight.t()
        for k in before:
            x = x + table[k * size + codes[:, k]]
        inputs.append(x)
        hidden = decoder.transformer(torch.stack(inputs, dim=1))[:, -1]
        for k in group:
            total[:, k] = F.cross_entropy(hidden @ decoder.heads[k - 1], codes[:, k], reduction="none")
    decoder_rows = DepthRows(codes[:, 1:], decoder.codes_in(codes), None)
    nats, _ = depth_nats(decoder, model.frame_embedding, context, decoder_rows, 0.0)
    torch.testing.assert_close(nats, total[:, 1:], rtol=0, atol=1e-12)
    return total


@pytest.mark.parametrize(
    "num_codebooks, size, groups",
    [
        (5, 2, [[0], [1, 2], [3, 4]]),
        (6, 2, [[0], [1, 2], [3, 4], [5]]),
        (6, 4, [[0], [1, 2, 3, 4], [5]]),
        (4, 9, [[0], [1, 2, 3]]),
        (4, 1, [[0], [1], [2], [3]]),
    ],
)
@torch.no_grad()
def test_a_group_is_predicted_from_the_groups_before_and_its_codebooks_do_not_see_each_other(
    make_model, num_codebooks, size, groups
):
    model = make_model([0] * num_codebooks, depth=depth(group_size=size))
    assert model.depth_decoder.num_positions == len(groups) - 1
    codes = torch.randint(0, SIZE, (4, num_codebooks), generator=torch.Generator().manual_seed(3))
    assert (slow_nats(model, codes, groups)[:, 1:] > 0).all()


def test_a_larger_group_takes_fewer_passes():
    shape = {size: DepthConfig(group_size=size).num_positions(32) for size in (1, 2, 4, 8, 31, 40)}
    assert shape == {1: 31, 2: 16, 4: 8, 8: 4, 31: 1, 40: 1}
    assert DepthConfig(group_size=4, conditioning="prefix").num_positions(8) == 3
    assert DepthConfig(group_size=4, first_codebook="depth").num_positions(1) == 1


def test_groups_of_no_codebook_are_refused():
    with pytest.raises(ValueError, match="depth.group_size is 0; it must be at least 1"):
        DepthConfig(group_size=0)
