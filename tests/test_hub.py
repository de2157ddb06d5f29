"""model/hub.py: models, codecs and checkpoints by hub id, with the real client and a hub on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codeclm.inference.loading import load, model_folder, save_model
from codeclm.model.hub import is_hub_id

from .checkpoints import csm
from .hub import environment, hub

pytestmark = pytest.mark.slow


def run(code: str, *args: object, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=240)


@pytest.fixture
def folder(make_model, make_codec, tmp_path) -> Path:
    codec = make_codec()
    save_model(make_model((0, 1, 1), codec=codec, dtype=torch.float32), codec, tmp_path / "m")
    return tmp_path / "m"


ROUND = """
import sys, torch
from codeclm.inference import load
from codeclm.model import SpeechLM, load_codec
lm = load(sys.argv[1])
print(lm.push_to_hub("me/voice"))
again = load("me/voice")
assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), lm.model.parameters(), strict=True))
assert again.codec.fingerprint == lm.codec.fingerprint == load_codec("me/codec").fingerprint
lm.model.push_to_hub("me/bare")
lm.model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/bare-too")
bare = SpeechLM.from_pretrained("me/bare")
assert torch.equal(bare.head_0.weight, lm.model.head_0.weight)
"""


def test_a_model_goes_to_the_hub_and_comes_back_whole_and_works_offline_afterwards(folder, tmp_path):
    root, asked = tmp_path / "hub", []
    (root / "me" / "codec").mkdir(parents=True)
    for path in (folder / "codec").iterdir():
        (root / "me" / "codec" / path.name).write_bytes(path.read_bytes())
    with hub(root, asked) as address:
        env = environment(address, tmp_path / "home")
        done = run(ROUND, folder, tmp_path / "bare", env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{address}/me/voice"
        files = {str(path.relative_to(root / "me" / "voice")) for path in (root / "me" / "voice").rglob("*.*")}
        both = {"config.json", "model.safetensors", "checksums.json"}
        assert files == both | {f"codec/{name}" for name in both} | {"README.md"}
        assert 'load("me/voice")' in (root / "me" / "voice" / "README.md").read_text()
        for name in ("bare", "bare-too"):
            assert {"config.json", "model.safetensors", "checksums.json"} <= set(
                path.name for path in (root / "me" / name).iterdir()
            )
        # what else lies in a repository is not fetched
        (root / "me" / "voice" / "modeling.py").write_text("raise SystemExit('run')")
        (root / "me" / "voice" / "pytorch_model.bin").write_bytes(b"a pickle")
        asked.clear()
        code = "import sys; from codeclm.inference import load; load('me/voice')"
        assert run(code, env=environment(address, tmp_path / "other"), cwd=tmp_path).returncode == 0
        assert set(asked) == files - {"README.md"}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):  # the hub is gone
        done = run(code, env=environment(address, tmp_path / "other", **more), cwd=tmp_path)
        assert done.returncode == 0, done.stderr


REFUSED = """
import sys
from codeclm.inference import load
from codeclm.model import load_codec
for use, name in ((load, "me/nothing"), (load_codec, "me/nothing"), (load, "private/thing"), (load_codec, "encodec")):
    try:
        use(name)
    except OSError as error:
        print(error)
"""


def test_what_cannot_be_fetched_is_one_line_that_says_why(tmp_path):
    (tmp_path / "hub").mkdir()
    with hub(tmp_path / "hub") as address:
        done = run(REFUSED, env=environment(address, tmp_path / "home"), cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert not done.stderr and len(lines) == 4
    for line in lines:
        assert "cannot be fetched: the hub has no such repository, or it is private" in line
    assert lines[0].startswith("model 'me/nothing'") and lines[1].startswith("codec 'me/nothing'")
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):  # the hub is gone
        done = run(REFUSED, env=environment(address, tmp_path / "home", **more), cwd=tmp_path)
        lines = done.stdout.splitlines()
        assert not done.stderr and len(lines) == 4
        assert lines[3].startswith("codec 'facebook/encodec_24khz'")
        for line in lines:
            assert "is not in the cache and the hub cannot be reached; or give a folder that holds it" in line


CONVERT = """
import sys
from codeclm.inference.loading import checkpoint_hash, load, model_folder
from codeclm.train.cli import main
direct = load("sesame/csm-1b")
assert len(checkpoint_hash(model_folder("sesame/csm-1b"))) == 64
main(["convert", "csm", "sesame/csm-1b", "ours"])
assert direct.fingerprint == load("ours").fingerprint
"""


@pytest.mark.parametrize("elsewhere", [False, True], ids=["usual names", "transformers_weights"])
def test_a_csm_of_the_hub_is_loaded_and_converted_by_its_id(elsewhere, tmp_path):
    repository, asked = tmp_path / "hub" / "sesame" / "csm-1b", []
    csm(repository).save_pretrained(repository, max_shard_size="8KB")
    (repository / "model.safetensors").unlink(missing_ok=True)
    (repository / "ckpt.pt").write_bytes(b"a pickle")
    (repository / "tokenizer.json").write_text("{}")
    if elsewhere:  # as where model.safetensors is in the makers' own format
        for path in list(repository.glob("model*")):
            name = path.name.replace("model", "transformers")
            path.rename(repository / name)
        index = repository / "transformers.safetensors.index.json"
        index.write_text(index.read_text().replace("model-0", "transformers-0"))
        values = json.loads((repository / "config.json").read_text())
        values["transformers_weights"] = "transformers.safetensors.index.json"
        (repository / "config.json").write_text(json.dumps(values))
        (repository / "model.safetensors").write_bytes(b"in another format")
    with hub(tmp_path / "hub", asked) as address:
        done = run(CONVERT, env=environment(address, tmp_path / "home"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "ours").codec.name == "mimi"
    assert not {"ckpt.pt", "model.safetensors"} & set(asked)
    assert (tmp_path / "ours" / "source" / "tokenizer.json").is_file()


def test_a_hub_id_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("kyutai/mimi", "me/my.model-2"):
        assert is_hub_id(name)
    for name in ("mimi", "runs/lm", "./a/b", "/a/b", "../b", "a/b/c", "a/", "/b", "~/b", ""):
        assert not is_hub_id(name)
    for name in ("runs/lm", "nothing", "./some/model"):
        with pytest.raises(FileNotFoundError, match=f"{name.removeprefix('./')}: no such model folder"):
            model_folder(name)
