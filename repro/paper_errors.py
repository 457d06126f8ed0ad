"""The errors that arXiv:1409.1556v6 reports, and those published for the released weights on single crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

JITTERED = "[256;512]"
"""Trained with scales jittered in that range, as the released nets D and E."""


@dataclass(frozen=True)
class PaperRow:
    """One reported result on the validation set of ILSVRC-2012.

    Attributes:
        nets: letters; several are fused.
        trained: the training scale S.
        protocol: "dense", "multicrop", "both" or "center".
        scales: test scales Q.
        top1, top5: errors in per cent.
        source: the table, or whose numbers these are.
    """

    nets: tuple[str, ...]
    trained: str
    protocol: str
    scales: tuple[int, ...]
    top1: float
    top5: float
    source: str


def _single() -> list[PaperRow]:
    """Table 3: one test scale, dense."""
    rows = {
        "A": [("256", 256, 29.6, 10.4)],
        "A-LRN": [("256", 256, 29.7, 10.5)],
        "B": [("256", 256, 28.7, 9.9)],
        "C": [("256", 256, 28.1, 9.4), ("384", 384, 28.1, 9.3), (JITTERED, 384, 27.3, 8.8)],
        "D": [("256", 256, 27.0, 8.8), ("384", 384, 26.8, 8.7), (JITTERED, 384, 25.6, 8.1)],
        "E": [("256", 256, 27.3, 9.0), ("384", 384, 26.9, 8.7), (JITTERED, 384, 25.5, 8.0)],
    }
    return [
        PaperRow((net,), trained, "dense", (q,), top1, top5, "Table 3")
        for net, found in rows.items()
        for trained, q, top1, top5 in found
    ]


def _several() -> list[PaperRow]:
    """Table 4: several test scales, dense."""
    fixed, higher, wide = (224, 256, 288), (352, 384, 416), (256, 384, 512)
    rows = [
        ("B", "256", fixed, 28.2, 9.6),
        ("C", "256", fixed, 27.7, 9.2),
        ("C", "384", higher, 27.8, 9.2),
        ("C", JITTERED, wide, 26.3, 8.2),
        ("D", "256", fixed, 26.6, 8.6),
        ("D", "384", higher, 26.5, 8.6),
        ("D", JITTERED, wide, 24.8, 7.5),
        ("E", "256", fixed, 26.9, 8.7),
        ("E", "384", higher, 26.7, 8.6),
        ("E", JITTERED, wide, 24.8, 7.5),
    ]
    return [PaperRow((net,), trained, "dense", q, top1, top5, "Table 4") for net, trained, q, top1, top5 in rows]


def _techniques() -> list[PaperRow]:
    """Tables 5 and 6: crops, both, and two nets; Q = {256, 384, 512}."""
    rows = [
        (("D",), "multicrop", 24.6, 7.5, "Table 5"),
        (("D",), "both", 24.4, 7.2, "Table 5"),
        (("E",), "multicrop", 24.6, 7.4, "Table 5"),
        (("E",), "both", 24.4, 7.1, "Table 5"),
        (("D", "E"), "dense", 24.0, 7.1, "Table 6"),
        (("D", "E"), "multicrop", 23.9, 7.2, "Table 6"),
        (("D", "E"), "both", 23.7, 6.8, "Table 6"),
    ]
    wide = (256, 384, 512)
    return [PaperRow(nets, JITTERED, kind, wide, top1, top5, table) for nets, kind, top1, top5, table in rows]


def _centres() -> list[PaperRow]:
    """Not in the paper: one centre crop with the released weights."""
    rows = [
        ("D", 28.5, 9.9, "MatConvNet"),
        ("D", 29.03, 10.12, "Open Model Zoo"),
        ("E", 28.7, 9.9, "MatConvNet"),
        ("E", 28.94, 10.17, "Open Model Zoo"),
    ]
    return [PaperRow((net,), JITTERED, "center", (256,), top1, top5, whose) for net, top1, top5, whose in rows]


ROWS = (*_single(), *_several(), *_techniques(), *_centres())
NETS = ("A", "A-LRN", "B", "C", "D", "E")


def paper_rows(nets: Sequence[str], protocol: str, scales: Sequence[int]) -> list[PaperRow]:
    """The rows for these nets, fused when there are several, under a protocol at test scales."""
    wanted = (tuple(sorted(nets)), protocol, tuple(sorted(scales)))
    return [row for row in ROWS if (row.nets, row.protocol, row.scales) == wanted]
