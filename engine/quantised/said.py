"""What a GGUF file lost, in a sentence, and what has to be known of that."""

from __future__ import annotations

from collections.abc import Sequence

from engine.quantised.lost import PLAIN, Found
from engine.report import Comparison, paired
from engine.words import t


def sentence(found: Found) -> str:
    """Return in one line what a file lost: "Q4_K_M: -1.3 [-2.4, -0.2] points at 0.37 of the size"."""
    lost, told = found.lost, list[str]()
    if lost.failure is not None:
        return t("{name}: what it lost was not measured: {reason}", name=found.name, reason=str(lost.failure))
    if found.points is not None and not paired.too_few(found.points):
        told.append(t("{change} points", change=_change(found.points, 100, 1)))
    if found.nats is not None and not paired.too_few(found.nats):
        told.append(t("{change} nats per token (more is worse)", change=_change(found.nats, 1, 3)))
    if not told and lost.same is not None:
        same = lost.same.n - len(lost.same.differences)
        told.append(t("{same} of {n} greedy answers are the same", same=same, n=lost.same.n))
    if len(told) > 1:
        told = [t("{points}; {nats}", points=told[0], nats=told[1])]
    said = told[0] if told else t("too few questions to say")
    if lost.quantization == PLAIN or not lost.plain_bytes:
        return t("{name}: {lost}", name=found.name, lost=said)
    share = f"{lost.size_bytes / lost.plain_bytes:.2f}"
    return t("{name}: {lost} at {share} of the size", name=found.name, lost=said, share=share)


def _change(row: Comparison, scale: float, digits: int) -> str:
    change, low, high = (f"{scale * value:+.{digits}f}" for value in (row.change, row.low, row.high))
    return f"{change} [{low}, {high}]"


def notes(found: Found, *, quotes: bool = True) -> list[str]:
    """Return what has to be known of the sentence: whether conversion itself changed the model, whether the loss is
    flattered, and what was asked how. Without `quotes` no prompt or answer is in it: they may be rows of the data."""
    lost = found.lost
    if lost.failure is not None:
        return []
    told = [
        *_of_16_bits(found, quotes=quotes),
        *([_flattered(lost.rounded_bits)] if lost.rounded_bits is not None else []),
    ]
    if lost.same is not None and lost.quantization != PLAIN and (found.points or found.nats):
        same = lost.same.n - len(lost.same.differences)
        told.append(t("Of {n} greedy answers {same} are the same as the model's.", n=lost.same.n, same=same))
    if not found.rows:
        told.append(t("This run was never scored, so that nothing but greedy answers is compared."))
    elif lost.asked < lost.questions:
        told.append(
            t("{n} of the {of} questions that the run was asked were asked, as many as fit into {seconds} s.",
              n=lost.asked, of=lost.questions, seconds=f"{lost.budget_s or 0:g}")
        )  # fmt: skip
    if lost.left:
        told.append(
            t("Not asked, since it cannot be put any more as it was: {names}.", names=", ".join(lost.left)[:300])
        )
    counted = [
        t("{n} questions", n=row.n) if scaled else t("{n} rows and texts", n=row.n)
        for row, scaled in ((found.points, True), (found.nats, False))
        if row is not None
    ]
    if len(counted) > 1:
        counted = [t("{questions}, {rows}", questions=counted[0], rows=counted[1])]
    if counted:
        told.append(
            t("Asked: {counted}, the same of both, in pairs; 95 % intervals. The merged model answers through transformers "
              "({form}), the file through llama.cpp on the processor, with keys and values in fp32.",
              counted=counted[0], form=lost.number_format)
        )  # fmt: skip
    return told


def _flattered(bits: int) -> str:
    return t(
        "The base was rounded to {bits} bits before, and is easily rounded once more: a base in 16 bits would lose more "
        "than this. The figure is flattered.",
        bits=bits,
    )


def _of_16_bits(found: Found, *, quotes: bool) -> list[str]:
    """Say whether the file in 16 bits says what the model says: where it does not, rounding is not what is measured."""
    same = found.lost.same if found.lost.quantization == PLAIN else found.lost.same_in_16_bits
    if same is None:
        return [t("Whether the file in 16 bits says what the model says was not compared: make that too.")]
    differ = len(same.differences)
    figures = {"n": same.n, "same": same.n - differ, "differ": differ}
    if not differ:
        return [t("In 16 bits it gives the same greedy answers as the merged model on all {n} prompts.", **figures)]
    first = max(same.differences, key=lambda one: one.nats)
    if same.is_rounding:
        return [
            t("In 16 bits it gives the same greedy answers as the merged model on {same} of {n} prompts; where they differ, "
              "the two likeliest tokens are within {nats} nats, so that rounding decides.",
              **figures, nats=f"{first.nats:.3f}")
        ]  # fmt: skip
    told = t(
        "In 16 bits it says something else than the merged model on {differ} of {n} prompts, and not by rounding alone: "
        "the figure is no measure of quantising.", **figures,
    )  # fmt: skip
    quoted = t("To “{prompt}” the model says “{merged}”, the file “{file}”.",
               prompt=first.prompt[-80:], merged=first.merged[:80], file=first.file[:80])  # fmt: skip
    return [told, *([quoted] if quotes else [])]


def spoken(found: Sequence[Found], *, quotes: bool = True) -> list[str]:
    """Return the sentences of files with their notes; what several say is said once."""
    return [*map(sentence, found), *dict.fromkeys(note for one in found for note in notes(one, quotes=quotes))]
