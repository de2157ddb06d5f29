"""One sentence on the number that `codeclm evaluate` prints, from the numbers beside it, and the next step."""

from .report import OTHER_HALF, LikelihoodReport

MUCH_S = 300.0  # less speech than this is little to count on
FINE_TUNED = "five minutes of a voice that was new to the embedded model took 42 % off its bits, of another one 12 %"
FIGURES = "train/README.md"  # has them, with their commands


def meaning(report: LikelihoodReport, model: str | None) -> str:
    """model: its name, for the command that is the next step; None: of another kind, which is not fine-tuned here."""
    ours, bigram, unigram = (row.bits_per_second for row in (report.model, report.bigram, report.unigram))
    on_itself = report.baselines_from == OTHER_HALF
    counting = f"counting which code follows which {_where(report)}"
    low, high = report.saved_interval
    if ours >= report.raw_bits_per_second:
        sentence = (
            f"The model knows nothing of this speech: it needs no fewer bits than codes that are all equally likely "
            f"({ours:.1f} and {report.raw_bits_per_second:.1f} bits/s)."
        )
    elif low > 0:
        return f"The model knows more of this speech than {counting}: it needs {1 - ours / bigram:.1%} fewer bits."
    elif high >= 0:
        return (
            f"The model is as good as {counting}: the difference of {abs(1 - ours / bigram):.1%} may be chance "
            f"(95 % interval over {report.num_utterances} utterances: {low:.1%} to {high:.1%} fewer bits)."
        )
    else:
        more = f"{ours / bigram - 1:.1%} more bits than {counting}"
        alone = ", and more than counting how often each code occurs" if ours > unigram else ""
        if not on_itself:
            return (
                f"The model knows less of this speech than {counting}: it needs {more.partition(' than ')[0]}{alone}; "
                "it was trained too little, or on other speech."
            )
        sentence = f"This speech is new to the model: it needs {more}{alone}."
    if model is None:
        return sentence
    return (
        f"{sentence} Fine-tuning has helped: {FINE_TUNED} ({FIGURES}). On other recordings of the same voice: "
        f"codeclm finetune FOLDER --from {model} --out RUN"
    )


def _where(report: LikelihoodReport) -> str:
    if report.baselines_from != OTHER_HALF:
        return f"on {report.baselines_from}"
    little = f", {report.duration_s / 2:.0f} s, which is little" if report.duration_s / 2 < MUCH_S else ""
    return f"on {OTHER_HALF}{little}"
