"""Training on several ranks, with real processes: the weights of one, whatever the codec and the pattern."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import SpectralCodec, SpectralConfig
from codeclm.model.shapes import PATTERNS
from codeclm.train.checkpoint import latest_checkpoint, load_tensors
from codeclm.train.loop import Trainer, train
from codeclm.train.new_model import new_model

from .test_cli import SIZES, voice
from .training import SHORT, SIZE, SOURCE, draw, metrics, program, state_of

pytestmark = pytest.mark.usefixtures("one_thread")

BIN = Path(sys.executable).parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(*command: object, timeout: int = 150) -> tuple[int, str]:
    """Two ranks -> exit status, what they printed."""
    launch = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2", *map(str, command)]
    workers = subprocess.Popen(
        launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ONE_THREAD, start_new_session=True
    )
    try:
        output, _ = workers.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(workers.pid, signal.SIGKILL)
        raise AssertionError("the ranks wait for each other for ever") from None
    return workers.returncode, output


DOUBLE = "model = torch.nn.Module.double(model)\n"
CHECK_RANKS = """
init = loop.Trainer.__init__
def counted(self, *arguments):
    init(self, *arguments)
    assert self.accelerator.num_processes == 2, "not two processes"
loop.Trainer.__init__ = counted
"""
SHARES_ONLY = """
from codeclm.data.dataset import TokenBatches
from codeclm.train import trainer
rows, score = TokenBatches.rows, trainer.score_store
def own_rows(self, step, rank=0, world_size=1):
    assert world_size > 1, "a rank made the whole batch"
    return rows(self, step, rank, world_size)
def own_score(model, store, config, indices, *rest):
    assert len(indices) <= 4, "a rank scored more than its half"
    return score(model, store, config, indices, *rest)
TokenBatches.rows, trainer.score_store = own_rows, own_score
"""
DRAWN = replace(
    SHORT,
    depth_fraction=0.5,
    dropout=0.1,
    input_dropout=0.1,
    frame_dropout=0.1,
    steps=20,
    evaluate_every=10,
    save_every=20,
    batch=replace(SHORT.batch, frames_per_batch=80, max_frames=40),
)


def assert_one_equals_two(folder: Path, steps: int) -> None:
    """Runs in `one` and `two`: weights, losses, scores of the held-out speech."""
    one, two = state_of(folder / "one", steps), state_of(folder / "two", steps)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    one_loss, two_loss = (metrics(folder / name, "loss") for name in ("one", "two"))
    assert one_loss == pytest.approx(two_loss, abs=2e-6) and len(one_loss) == 2
    one_bits, two_bits = (metrics(folder / name, "heldout_bits_per_second") for name in ("one", "two"))
    assert one_bits == pytest.approx(two_bits, abs=2e-5) and len(one_bits) == 3


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_ranks_give_the_weights_of_one(store, codec, tmp_path, sharding):
    """In float64: Adam makes of a rounded zero of float32 a step of any size.

    Frames and dropout are drawn, and the two take their rows in microbatches.

    One batch of an epoch has a single row, which leaves a rank without any.
    Each makes its rows only, and scores its half of the held-out speech.
    """
    model = torch.nn.Module.double(new_model(store, DRAWN))
    trainer = Trainer(model, codec, store, tmp_path, DRAWN)
    rows = {len(trainer.batches.rows(step)) for step in range(20)}
    assert rows == {1, 2}
    assert len(trainer.corpora[0].heldout) == 8
    train(model, codec, store, tmp_path / "one", DRAWN)
    before = DOUBLE + CHECK_RANKS + SHARES_ONLY
    parted = replace(DRAWN, sharding=sharding, batch=replace(DRAWN.batch, frames_per_microbatch=40))
    status, output = torchrun(program(store, codec, tmp_path / "two", parted, before), timeout=240)
    assert status == 0, output[-3000:]
    assert_one_equals_two(tmp_path, 20)
    parts = list((tmp_path / "two" / "step-00000020").glob("model-0000?-of-00002.safetensors"))
    assert len(parts) == (2 if sharding == "fsdp" else 0)
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for key in one:  # the best weights, whole
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-9)


def one_codebook(make_store, codec, folder: Path) -> TokenStore:
    codes = [row[:, :1] for row in draw(SOURCE, [20, 33, 7, 50, 12, 28, 41, 5] * 2, 0)]
    return make_store(folder, codes, codec)


# --- a codec with one codebook leaves the depth decoder, and the other patterns' heads, nothing to learn ---

ONE_CODEBOOK = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import load_codec
from codeclm.model.shapes import *
from codeclm.train.config import *
from codeclm.train.new_model import new_model
from codeclm.train.loop import Trainer, train

torch.set_num_threads(1)
store, codec, out = TokenStore({store!r}), load_codec({codec!r}), Path({out!r})
for pattern in {patterns!r}:
    config = {config!r}
    config = replace(config, model=replace(config.model, pattern=pattern))
    model = torch.nn.Module.double(new_model(store, config))
    train(model, codec, store, out / pattern, config)
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:  # alone: nothing of the ranks is left in the model
        model(torch.zeros(1, 1, 3, dtype=torch.int64)).loss.backward()
    torch.distributed.barrier()
"""


@pytest.mark.slow
def test_two_ranks_learn_from_one_codebook_what_one_rank_learns(make_store, make_codec, tmp_path):
    codec = make_codec(num_codebooks=1, codebook_size=SIZE)
    codec.save(tmp_path / "codec")
    store = one_codebook(make_store, codec, tmp_path / "store")
    config = replace(SHORT, depth_fraction=1.0, steps=6, evaluate_every=6, save_every=6)
    script = tmp_path / "script.py"
    places = {"store": str(store.folder), "codec": str(tmp_path / "codec"), "out": str(tmp_path / "two")}
    script.write_text(ONE_CODEBOOK.format(config=config, patterns=PATTERNS, **places))
    status, output = torchrun(script)
    assert status == 0, output[-3000:]
    for pattern in PATTERNS:
        settings = replace(config, model=replace(config.model, pattern=pattern))
        model = torch.nn.Module.double(new_model(store, settings))
        train(model, codec, store, tmp_path / "one" / pattern, settings)
        one, two = (load_tensors(tmp_path / name / pattern / "step-00000006", "model") for name in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-5, msg=f"{pattern}: {key}")
        start = new_model(store, settings).state_dict()["head_0.weight"]
        assert not torch.allclose(one["head_0.weight"], start.double(), atol=1e-3)  # it did learn


# --- the command ---


@pytest.mark.slow
def test_ranks_share_what_the_main_one_prepares_from_a_folder_of_audio(tmp_path):
    """And one of them says what came of it."""
    for i in range(6):
        path = tmp_path / f"audio/{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, voice(1.0 + i / 10, 110 + 10 * i), 16_000)
    torch.manual_seed(0)
    layers = dict(encoder_layers=1, decoder_layers=1, bottleneck_layers=1)
    books = dict(num_codebooks=3, codebook_size=16, codebook_dim=4)
    SpectralCodec(SpectralConfig(encoder_dim=16, dim=16, **layers, **books)).save(tmp_path / "codec")
    options = ("--codec", tmp_path / "codec", "--out", tmp_path / "run", "--steps", "2", *SIZES)
    status, output = torchrun("--no-python", BIN / "codeclm", "train", tmp_path / "audio", *options)
    assert status == 0, output[-3000:]
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000002"
    assert len(TokenStore(tmp_path / "run/tokens")) == 6
    assert output.count("the best weights on the held-out utterances") == 1


ASK_RANK_1 = """
step = loop.Trainer.train_step
def ask(self):
    if self.step == 6 and self.accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self)
loop.Trainer.train_step = ask
"""


@pytest.mark.slow
def test_all_ranks_save_and_stop_at_the_step_at_which_one_is_asked_to(make_store, make_codec, tmp_path):
    """With a single row in a step, of which they are told."""
    codec = make_codec(num_codebooks=2, codebook_size=SIZE)
    store = make_store(tmp_path / "store", draw(SOURCE, [20, 33, 7, 50] * 4, 0), codec)
    config = replace(SHORT, batch=replace(SHORT.batch, frames_per_batch=32))
    script = program(store, codec, tmp_path / "run", config, ASK_RANK_1)
    status, output = torchrun(script)
    assert output.count("1 of 2 processes have nothing to do: a step of 32 frames has 1 rows") == 1, output[-3000:]
    assert status != 0 and latest_checkpoint(tmp_path / "run") == tmp_path / "run/step-00000007"
    assert len(re.findall(r"Interrupted: .*run: stopped and saved at step 7 of 12", output)) == 2, output[-3000:]


# --- going on with another number of ranks ---

ASK_AT = """
step = loop.Trainer.train_step
def ask(self):
    if self.step == {step} and self.is_main:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self)
loop.Trainer.train_step = ask
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_run_goes_on_with_one_rank_and_then_with_two_again(store, codec, tmp_path, sharding):
    """An average of the weights goes with it. One process is never sharded, and reads the parts of two."""
    config = replace(DRAWN, steps=12, evaluate_every=12, save_every=12, ema_decay=0.9, sharding=sharding)
    train(torch.nn.Module.double(new_model(store, config)), codec, store, tmp_path / "one", config)
    for stop, ranks in ((4, 2), (8, 1), (99, 2)):
        script = program(store, codec, tmp_path / "two", config, DOUBLE + ASK_AT.format(step=stop - 1))
        if ranks == 2:
            status, output = torchrun(script)
        else:
            result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=ONE_THREAD)
            status, output = result.returncode, result.stderr
        assert (status == 0) == (stop == 99), output[-3000:]
        newest = latest_checkpoint(tmp_path / "two")
        assert newest is not None and newest.name == f"step-{min(stop, 12):08d}"
        assert (newest / "ema.safetensors").exists() == (sharding == "ddp" or ranks == 1)
    one, two = state_of(tmp_path / "one", 12), state_of(tmp_path / "two", 12)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


# --- accelerate's environment ---


def test_a_process_that_is_alone_although_there_should_be_two_is_told(store, codec, tmp_path, monkeypatch):
    with Trainer(new_model(store, SHORT), codec, store, tmp_path / "run", SHORT):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but this process is alone; start all of them with torchrun"):
        Trainer(new_model(store, SHORT), codec, store, tmp_path / "run", SHORT)


def test_accelerates_environment_does_not_divide_gradients(make_store, make_codec, tmp_path, monkeypatch):
    codec = make_codec(num_codebooks=2, codebook_size=SIZE)
    store = make_store(tmp_path / "store", draw(SOURCE, [20, 33, 7, 50] * 4, 0), codec)

    def norm() -> float:
        AcceleratorState._reset_state(reset_partial_state=True)
        with Trainer(new_model(store, SHORT), codec, store, tmp_path / "run", SHORT) as trainer:
            return trainer.train_step()["gradient_norm"]

    expected = norm()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert norm() == expected


@pytest.mark.slow
@pytest.mark.parametrize("count", ["--num_processes=2", "--num_processes 2", "--config_file {folder}/two.yaml"])
def test_a_launch_that_silently_runs_one_process_of_two_is_an_error(tmp_path, count):
    (tmp_path / "script.py").write_text("from codeclm.train.processes import start\nstart('cpu')\nprint('started')\n")
    fields = dict(compute_environment="LOCAL_MACHINE", distributed_type="'NO'", use_cpu="true", num_processes=2)
    (tmp_path / "two.yaml").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    command = [BIN / "accelerate", "launch", "--cpu", *count.format(folder=tmp_path).split(), tmp_path / "script.py"]
    result = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, timeout=120)
    assert result.returncode != 0 and "started" not in result.stdout
    assert "asked for 2 processes and started this one alone; start them with torchrun" in result.stderr
