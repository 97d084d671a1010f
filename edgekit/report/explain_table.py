"""The tables of `edgekit eval explain`; they fit 80 columns for up to six files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.evaluation.explain import carrying
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import percent


def explain_table(result: Mapping[str, Any], words: int) -> Group:
    """The answers of a document of schema `edgekit.explanation/1` in each file, and the `words` that carry the right one most."""
    files = result["files"]
    lines: list[RenderableType] = [
        Text(f" {result['id']}: {result['question']}"),
        Text(f" Right answer: {result['expected']}"),
        "",
    ]
    for number, file in enumerate(files, start=1):
        right = "right" if file["correct"] else "wrong"
        lines.append(
            Text(
                f" {number}  {_short(file['artifact'])} ({file['runtime']}), {right}: {_cut(file['answer'], 140)}"
            )
        )
    lines += ["", _answers(result)]
    if words and files[0]["words"]:
        lines += ["", _words(result, words)]
    return Group(*lines)


def _answers(result: Mapping[str, Any]) -> Table:
    """How likely each file holds each answer."""
    table = _numbered("probability of the answer", result)
    for place, answer in enumerate(result["files"][0]["answers"]):
        shares = (percent(file["answers"][place]["probability"]) for file in result["files"])
        table.add_row(Text(_cut(answer["text"])), *shares)
    return table


def _words(result: Mapping[str, Any], most: int) -> Table:
    """The fall of the right answer's log-likelihood without each word."""
    table = _numbered("fall of the right answer without a word, nats", result)
    files = result["files"]
    for at in carrying(files, most):
        falls = (f"{file['words'][at]['fall_nats']:+.2f}" for file in files)
        table.add_row(Text(f"  {_cut(files[0]['words'][at]['word'])}"), *falls)
    return table


def _numbered(title: str, result: Mapping[str, Any]) -> Table:
    return figures_table(title, *(str(number) for number in range(1, len(result["files"]) + 1)))


def _short(path: str) -> str:
    """The last two parts of a path, which tell a stage or a bundle and its file."""
    return "/".join(PurePath(path).parts[-2:])


def _cut(text: str, most: int = 44) -> str:
    """The text on one line, with an ellipsis in place of what does not fit."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
