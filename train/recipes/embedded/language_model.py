"""Settings of the embedded language model's training, on a CPU in the background and on a GPU that is lent for minutes.

About 31 M parameters (V 1024, K 8, a text of characters): in 8 bits, with the codec, less than 48 MB. Its sliding
window lets it generate without end exactly as it is scored. It learns to say a text (also after a voice prompt), to
write down what it hears, and audio alone, each token of a text beside its sound. Batches and rates go together as
model/dial.py has them.
"""

from dataclasses import replace

from ....data.config import FormShares
from ....model.shapes import DepthConfig, TransformerConfig
from ...config import BatchConfig, LossConfig, ModelConfig, OptimizerConfig, TextOptions, TrainConfig

SHAPE = ModelConfig(
    backbone=TransformerConfig(dim=512, num_layers=8, num_heads=8, num_kv_heads=2, ff_dim=1152, sliding_window=384),
    # small: a frame costs seven positions of it
    depth=DepthConfig(dim=256, num_layers=3, num_heads=4, num_kv_heads=2, ff_dim=640),
    # phonemes of what is said, characters of what is written: how a piece of a word sounds needs far more hours; most
    # texts are English
    text=TextOptions(layout="timed", vocab_size=0, numbers="en", phonemes="en-us"),
    unit_start=True,
)
ON_CPU = TrainConfig(
    steps=14_000,  # two epochs of 100 hours
    depth_fraction=0.5,
    depth_chunk=512,
    frame_dropout=0.15,  # else the text is heeded late
    ema_decay=0.999,
    evaluate_every=500,
    save_every=10**9,  # by the clock
    model=SHAPE,
    batch=BatchConfig(
        frames_per_batch=2048,
        max_frames=512,
        codebook_dropout=0.15,
        heldout_by="folder",
        heldout_frames=50_000,
        text=FormShares(say=0.3, say_voice=0.2, write=0.35, voice_s=6.0, own_voice="heart"),
    ),
    optimizer=OptimizerConfig(learning_rate=1.2e-3, warmup_steps=300),
    # words are in the first four codebooks: with those of a recording and the others drawn they are understood, with
    # the first alone none; a text that is written down would be 3 % of its utterance's loss with the weight 1 (log.md)
    loss=LossConfig(codebooks=(4.0, 3.0, 2.0, 1.5, 0.5, 0.5, 0.5, 0.5), text=15.0, time_only=True),
)
ON_GPU = replace(
    ON_CPU,
    steps=10**6,  # it ends by the clock
    depth_chunk=0,
    frame_dropout=0.3,
    ema_decay=0.998,
    evaluate_every=400,
    save_minutes=10**6,
    skip_bad=True,
    canary=0,
    track="none",
    batch=replace(
        ON_CPU.batch,
        frames_per_batch=16_384,
        heldout_frames=16_000,
        # a quarter of the speech has no times
        text=FormShares(say=0.42, say_voice=0.23, write=0.25, voice_s=4.0, own_voice="heart"),
    ),
    optimizer=replace(ON_CPU.optimizer, learning_rate=2e-3, warmup_steps=200, decay_share=0.3),
)
