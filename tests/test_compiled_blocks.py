"""--compile: what is compiled once is used again, and nothing is compiled that is used once."""

from dataclasses import replace

import pytest
import torch

from codeclm.model.transformer import Block
from codeclm.train.new_model import new_model
from codeclm.train.trainer import Trainer

from .training import SHAPE, SHORT, SIZE, SOURCE, draw


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What the blocks are compiled to, by a compiler that changes nothing."""
    found = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.append(graph)
        return graph

    def compile_block(block: Block, dynamic: bool) -> None:
        block._compiled_call_impl = torch.compile(block._call_impl, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(Block, "compile", compile_block)
    torch.compiler.reset()
    return found


@pytest.mark.slow
def test_evaluations_and_later_runs_of_a_model_compile_nothing(make_store, make_codec, tmp_path, graphs, one_thread):
    codec = make_codec(num_codebooks=2, codebook_size=SIZE)
    # longer than a piece: each layer has its own place in the cache that carries the window from piece to piece
    store = make_store(tmp_path / "store", draw(SOURCE, [300] * 10, 0), codec)
    backbone = replace(SHAPE.backbone, num_layers=2, sliding_window=8)
    config = replace(SHORT, compile=True, model=replace(SHAPE, backbone=backbone))
    model, known, bits = new_model(store, config), [], []
    for name in ("one", "other"):
        with Trainer(model, codec, store, tmp_path / name, config) as trainer:
            trainer.train_step()
            known.append(len(graphs))
            bits.append(trainer.evaluate())
    assert known[0] > 0 and known == [len(graphs)] * 2

    plain = replace(config, compile=False)
    with Trainer(new_model(store, config), codec, store, tmp_path / "plain", plain) as trainer:
        trainer.train_step()
        assert abs(trainer.evaluate() / bits[0] - 1) < 1e-4
