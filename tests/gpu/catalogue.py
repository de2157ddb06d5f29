"""Every check by name, in the order in which they run: what must hold first, what is measured last."""

from . import attention, codec, generation, launches, likelihood, machine, speed, training
from .harness import Check

CHECKS = (
    Check("verify-tiny-float64", "`verify` on tiny models of all patterns, float64", likelihood.tiny_float64),
    Check("verify-tiny-float32", "`verify` on tiny models of all patterns, float32", likelihood.tiny_float32),
    Check("verify-tiny-bfloat16", "`verify` on tiny models of all patterns, bfloat16", likelihood.tiny_bfloat16),
    Check("verify-float32", "`verify` on the embedded model, float32", likelihood.embedded_float32, True),
    Check("verify-bfloat16", "`verify` on the embedded model, bfloat16", likelihood.embedded_bfloat16, True),
    Check("codec-codes", "the embedded codec's codes on CUDA == on the CPU", codec.codes_as_cpu, True),
    Check("codec-audio", "the embedded codec's audio on CUDA == on the CPU", codec.audio_as_cpu, True),
    Check("codec-contract", "the embedded codec keeps its contract on the device", codec.contract),
    Check("train-float32", "steps of training in float32 on CUDA == on the CPU", training.steps_as_cpu, True),
    Check("train-bfloat16", "steps of training in bfloat16 are near those in float32", training.bfloat16),
    Check("generate-codes", "a continuation of codes costs what the CPU says", generation.from_codes),
    Check("generate-audio", "a continuation of audio, and its audio streamed", generation.from_audio),
    Check("score", "nats of a token store == the CPU's", generation.scored),
    Check("compress", "compressed codes come back, in as many bits as predicted", generation.compressed),
    Check("attention-eager", "attention written out == sdpa", attention.eager),
    Check("operations", "operations of torch in a generated frame", launches.operations),
    Check("launches", "kernel launches and waits of the host in a generated frame", launches.launches),
    Check("memory", "memory that generation takes", launches.memory, True),
    Check("graph-kernels", "time of a kernel in a captured graph, and launched alone", machine.graph_kernels, True),
    Check("clocks", "clocks and power under load", machine.clocks, True),
    Check("copies", "bandwidth of copies", machine.copies, True),
    Check("matrix-products", "rate of bfloat16 matrix products", machine.matrix_products, True),
    Check("speed-generation", "generation throughput", speed.generation),
    Check("train-compiled", "bfloat16 with compiled blocks is near float32", training.bfloat16_compiled, True),
    Check("attention-flex", "flex_attention == sdpa", attention.flex),
    Check("speed-training", "training throughput", speed.training),
    Check("training-profile", "time of a training step by depth_chunk, and its kernels", speed.training_profile),
    Check("speed-compiled", "training throughput with compiled blocks", speed.training_compiled, True),
    Check("codec-kinds", "tiny codecs of every kind keep the contract", codec.contract_of_every_kind, True),
    Check("attention-flash", "flash_attention_2 == sdpa", attention.flash, True),
)
