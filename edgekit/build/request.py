"""The typed request of a build, and its construction from names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base import hardware
from edgekit.base.events import Emit, ignore
from edgekit.build.defaults import DEFAULT_CACHE, DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_TARGET
from edgekit.data.dataset import DataOptions, load_dataset
from edgekit.data.out_of_scope import answer_of
from edgekit.data.splits import Dataset
from edgekit.models import given_template
from edgekit.models.source import Source, resolve
from edgekit.targets.target import Target


@dataclass(frozen=True)
class Request:
    """What to build: model, rows, target and output folder."""

    source: Source
    data: Dataset
    target: Target
    out: Path
    cache_dir: Path
    threads: int
    force: bool = False
    arguments: tuple[str, ...] = ()
    """The options of `build` that give this request, for the commands that an error proposes."""
    inputs: tuple[Path, ...] = ()
    """What is read: model, rows and target, where they are paths. The output must not replace them."""

    @cached_property
    def abstaining(self) -> str:
        """The answer to requests out of scope: that of robust tuning, or of the training rows; empty where there is none."""
        tune = self.target.tune
        return answer_of(self.data.train, (tune.robustness.abstain if tune.robust else "") or "auto")


@dataclass(frozen=True)
class Order:
    """The names that a person gives on the command line or in the app; `request` turns them into a `Request`.

    `changes` are `KEY=VALUE` pairs that change one value of the target each. `formats` names the formats to build,
    separated by commas; empty for every format of the target. `threads` is 0 for every core. `reading` is how the rows of
    `data` are read. `chat_template` is a file, or `chatml`.
    """

    target: str = DEFAULT_TARGET
    model: str = DEFAULT_MODEL
    data: str = DEFAULT_DATA
    out: Path | None = None
    changes: list[str] = field(default_factory=list)
    formats: str = ""
    llama_cpp: Path | None = None
    cache_dir: Path = DEFAULT_CACHE
    threads: int = 0
    force: bool = False
    offline: bool = False
    reading: DataOptions = field(default_factory=DataOptions)
    chat_template: str = ""
    revision: str = ""

    @property
    def arguments(self) -> list[str]:
        """The options of `build` and `plan` that give this order; defaults after the first three are left out."""
        words = ["--model", self.model, "--target", self.target, "--data", self.data, *self.reading.arguments]
        for change in self.changes:
            words += ["--set", change]
        given = {
            "--formats": self.formats,
            "--chat-template": self.chat_template,
            "--revision": self.revision,
            "--out": self.out,
            "--llama-cpp": self.llama_cpp,
            "--cache-dir": self.cache_dir if self.cache_dir != DEFAULT_CACHE else None,
            "--threads": self.threads,
        }
        for name, value in given.items():
            words += [name, str(value)] if value else []
        return words + ["--force"] * self.force + ["--offline"] * self.offline

    def request(self, emit: Emit = ignore) -> Request:
        """The typed request; `emit` receives what a person should know of the rows. Raises `ConfigError` for invalid names."""
        chosen: Target = registry.load("profiles", "targets").load(self.target, self.changes)
        if self.llama_cpp is not None:
            exports: list[Any] = [
                export.model_copy(update={"llama_cpp": self.llama_cpp}) if export.format == "gguf" else export
                for export in chosen.export
            ]
            chosen = chosen.model_copy(update={"export": exports})
        chosen = chosen.only(self.formats)
        source = resolve(self.model, self.revision, offline=self.offline)
        if self.chat_template:
            source = replace(source, chat_template=given_template.read_given(self.chat_template))
        dataset = load_dataset(self.data, self.reading, emit)
        out = self.out or Path("bundles") / f"{source.name}-{chosen.name}"
        threads = self.threads or hardware.cores()
        rows = None if self.data == DEFAULT_DATA else self.data
        settings = self.target if self.target.endswith(".toml") else None
        inputs = tuple(Path(each) for each in (source.path, rows, settings) if each)
        return Request(
            source, dataset, chosen, out, self.cache_dir, threads, self.force, tuple(self.arguments), inputs
        )
