"""What training the embedded language model costs, computed from its settings (train/recipes/plan.py).

python -m codeclm.train.recipes.embedded.cost
"""

from ....data.phonemes import NUM_PHONEME_TOKENS
from ....model.shapes import TextConfig
from ....model.speech_lm_config import SpeechLMConfig
from ..plan import plan
from .language_model import ON_CPU, ON_GPU

FRAME_RATE, CODEBOOKS, CODEBOOK_SIZE = 25.0, 8, 1024  # those of the recipe's codec
NUM_TOKENS = 372 + NUM_PHONEME_TOKENS  # those of a text of characters, with the bytes, and of phonemes
# FLOP/s, and the share of them that steps reach: that of `mfu` in a run's metrics.jsonl; an H200 at shape S
DEVICES = (("two cores, 200 GFLOP/s each in bfloat16", ON_CPU, 400e9, 0.34), ("an H100", ON_GPU, 989e12, 0.09))


def main() -> None:
    """Markdown: a row for each device and number of hours."""
    print("| | hours of speech | GFLOP a frame | minutes for an epoch | epochs in 7 minutes |")
    print("|---|---|---|---|---|")
    for name, config, rate, share in DEVICES:
        backbone, depth = config.model.parts
        text = TextConfig(config.model.text.vocab_size or NUM_TOKENS)
        model = SpeechLMConfig(CODEBOOKS, CODEBOOK_SIZE, backbone, depth, text=text)
        for hours in (20, 100):
            found = plan(hours, model, FRAME_RATE, config)
            epoch = found.hours(rate * share) / found.epochs
            costs = f"{found.flops_per_frame / 1e9:.2f} | {60 * epoch:.3g} | {7 / 60 / epoch:.3g}"
            print(f"| {name}, {share:.0%} of it | {hours} | {costs} |")


if __name__ == "__main__":
    main()
