"""A model for others: a folder with everything that `load` needs and a model card, and the same on the hub."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ..data.text_tokenizer import TextTokenizer
from .generator import SpeechGenerator
from .loading import save_model

CARD = """---
library_name: codeclm
tags:
- codeclm
- speech
- audio
---

# {name}

A speech language model made with codeclm: {size:.1f} M parameters, pattern {pattern}, {num_codebooks} codebooks of
{codebook_size} codes, {frame_rate:g} frames a second, on the codec "{codec}" in `codec/`.{text}

```python
from codeclm.inference import load

lm = load("{name}")
lm.generate("prompt.wav", duration_s=10, seed=0).save("continuation.wav")
```

Say here what it was trained on, what it is good for, what it is not, and under which licence it may be used.
"""


def save_shared(lm: SpeechGenerator, folder: Path, name: str | None = None, packed: bool = False) -> None:
    """See `SpeechGenerator.save_pretrained`. name: what the card calls the model (default: the folder)."""
    tokenizer = lm.tokenizer
    assert tokenizer is None or isinstance(tokenizer, TextTokenizer)
    save_model(lm.model, lm.codec, folder, tokenizer=tokenizer, with_codec=True, replace=False, packed=packed)
    (folder / "README.md").write_text(card(lm, name or str(folder)))


def push(lm: SpeechGenerator, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """See `SpeechGenerator.push_to_hub`."""
    from huggingface_hub import HfApi

    with TemporaryDirectory() as scratch:
        save_shared(lm, Path(scratch) / "model", repo_id)
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                folder_path=Path(scratch) / "model", repo_id=repo_id, commit_message="Model of codeclm"
            )
        except Exception as error:  # the HTTP library's, the hub's client and its checks
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise OSError(f"model '{repo_id}' cannot be uploaded: {reason}; log in with 'hf auth login'") from None
    return str(done.repo_url)


def card(lm: SpeechGenerator, name: str) -> str:
    """README.md beside the weights: what is known of a model without being told."""
    config, codec = lm.model.config, lm.codec
    text = ""
    if lm.model.text_size:
        text = f' Its text, layout "{config.text.layout}", has {lm.model.text_size} tokens.'
    return CARD.format(
        name=name,
        size=sum(parameter.numel() for parameter in lm.model.parameters()) / 1e6,
        pattern=config.pattern,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        frame_rate=codec.frame_rate,
        codec=codec.name,
        text=text,
    )
