"""A teacher for codebook 0: features of a self-supervised speech model, so that it says what is said before how.

Any HubertModel or WavLMModel of transformers (as in SpeechTokenizer, arXiv:2308.16692, and Mimi). B batch, S samples,
T codec frames, d width of what is quantized.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEACHER_RATE = 16_000  # Hz, of every HuBERT and WavLM


class Teacher(nn.Module):
    """A frozen model and the trained projection that codebook 0 is compared through."""

    def __init__(self, name: str, sample_rate: int, codebook_dim: int):
        """name: hub id or folder. Raises ValueError if it holds no HuBERT or WavLM as safetensors."""
        super().__init__()
        from transformers import AutoModel

        try:
            self.model = AutoModel.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"teacher '{name}' cannot be loaded from safetensors: {reason}") from None
        if self.model.config.model_type not in ("hubert", "wavlm"):
            kind = self.model.config.model_type
            raise ValueError(f"teacher '{name}' is a {kind} model; give a hubert or wavlm model")
        self.model.eval().requires_grad_(False)
        self.sample_rate = sample_rate
        self.project = nn.Linear(codebook_dim, self.model.config.hidden_size)

    def loss(self, audio: Tensor, first: Tensor) -> Tensor:
        """audio [B, S], what codebook 0 says of it [B, T, d] -> 1 - cosine similarity of projection and features."""
        with torch.no_grad():
            speech = resample(audio, self.sample_rate, TEACHER_RATE)
            speech = (speech - speech.mean(dim=1, keepdim=True)) / (speech.std(dim=1, keepdim=True) + 1e-5)
            features = self.model(speech).last_hidden_state.float()  # [B, frames of the teacher, D]
            features = F.interpolate(features.transpose(1, 2), first.shape[1], mode="linear").transpose(1, 2)
        return 1 - F.cosine_similarity(self.project(first).float(), features, dim=-1).mean()


def resample(audio: Tensor, rate: int, new_rate: int) -> Tensor:
    """[B, S] -> [B, S * new_rate / rate], by cutting or extending the spectrum."""
    if rate == new_rate:
        return audio
    size = round(audio.shape[1] * new_rate / rate)
    return torch.fft.irfft(torch.fft.rfft(audio.float())[:, : size // 2 + 1], n=size) * (size / audio.shape[1])
