"""How to load an adapter, as code to copy. Every name goes through `repr` or `shlex.quote`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

__all__ = ["Snippet", "snippets", "stacked", "together"]


class Snippet(NamedTuple):
    """Code of one tab.

    Attributes:
        id: for the address, such as `peft`.
        label: of the tab.
        language: for highlighting: `python` or `bash`.
        code: what is copied.
    """

    id: str
    label: str
    language: str
    code: str


def snippets(info: Mapping[str, Any], *, endpoint: str, revision: str | None = None) -> list[Snippet]:
    """The tabs of an adapter's page.

    Args:
        info: columns of `adapter` with `full_name` and, for curl, `weights`: the path of a file with weights. Without
            weights there is nothing to load, but maybe an address from which to fetch them.
        endpoint: the hub's public address.
        revision: a branch, tag or commit to pin; None for the newest commit of the default branch.
    """
    if not info.get("bytes", True):
        return [_fetch(info, endpoint)] if _old_address(info) else []
    ways = {"adapters": (_here, _upstream), "peft": (_peft, _transformers)}.get(info["library"], ())
    return [way(info, endpoint, revision) for way in (*ways, _command_line, _curl)]


def stacked(base_model: str | None, below: str, above: str, *, endpoint: str) -> str:
    """Code that loads a language adapter and a task adapter, and stacks the second on the first."""
    code = f"""\
        import adapters
        from adapters import AutoAdapterModel, Stack

        adapters.hub.use({endpoint!r})
        model = AutoAdapterModel.from_pretrained({_base({"base_model": base_model})})
        language = model.load_adapter({below!r}, load_as="language")
        task = model.load_adapter({above!r}, load_as="task")
        model.active_adapters = Stack(language, task)"""
    return _dedent(code)


def together(rows: Sequence[Mapping[str, Any]], setup: str, *, endpoint: str) -> str:
    """Code that loads several adapters into one model, and uses them as a set-up.

    Args:
        rows: `full_name` and `base_model` of each; the first base model is taken.
        setup: the class of a block, such as `Stack`; "" to activate none.
    """
    base = next((row["base_model"] for row in rows if row["base_model"]), None)
    names: dict[str, str] = {}
    for row in rows:
        name = row["name"].replace(".", "-")
        names[row["full_name"]] = f"{row['namespace'].replace('.', '-')}-{name}" if name in names.values() else name
    loads = [f"    model.load_adapter({full_name!r}, load_as={name!r})," for full_name, name in names.items()]
    lines = [
        "import adapters",
        f"from adapters import AutoAdapterModel{f', {setup}' if setup else ''}",
        "",
        f"adapters.hub.use({endpoint!r})",
        f"model = AutoAdapterModel.from_pretrained({_base({'base_model': base})})",
        "names = [",
        *loads,
        "]",
        *([f"model.active_adapters = {setup}(*names)"] if setup else []),
    ]
    return "\n".join(lines)


def _here(info: Mapping[str, Any], endpoint: str, revision: str | None) -> Snippet:
    code = f"""\
        import adapters
        from adapters import AutoAdapterModel

        adapters.hub.use({endpoint!r})
        model = AutoAdapterModel.from_pretrained({_base(info)})
        model.load_adapter({info["full_name"]!r}{_pinned("version", revision)}, set_active=True)"""
    return Snippet("adapters", "AdapterHub", "python", _dedent(code))


def _old_address(info: Mapping[str, Any]) -> str | None:
    """Where the old hub had the weights of the default version."""
    card = info.get("card") or {}
    versions = card.get("versions")
    known = [item for item in versions if isinstance(item, dict)] if isinstance(versions, list) else []
    wanted = [item for item in known if str(item.get("version")) == str(card.get("default_version"))] or known
    url = next((item.get("url") for item in wanted), None)
    return url if isinstance(url, str) and url.startswith(("http://", "https://")) else None


def _fetch(info: Mapping[str, Any], endpoint: str) -> Snippet:
    code = f"""\
        import adapters
        from adapters import AutoAdapterModel

        model = AutoAdapterModel.from_pretrained({_base(info)})
        name = model.load_adapter({_old_address(info)!r})
        adapters.hub.use({endpoint!r})
        model.push_adapter_to_hub({info["full_name"]!r}, name)"""
    return Snippet("fetch", "Fetch the weights", "python", _dedent(code))


def _peft(info: Mapping[str, Any], endpoint: str, revision: str | None) -> Snippet:
    code = f"""\
        from huggingface_hub import snapshot_download
        from peft import PeftModel
        from transformers import {_auto_class(info)}

        model = {_auto_class(info)}.from_pretrained({_base(info)})
        model = PeftModel.from_pretrained(model, {_download(info, endpoint, revision)})"""
    return Snippet("peft", "PEFT", "python", _dedent(code))


def _transformers(info: Mapping[str, Any], endpoint: str, revision: str | None) -> Snippet:
    code = f"""\
        from huggingface_hub import snapshot_download
        from transformers import {_auto_class(info)}

        model = {_auto_class(info)}.from_pretrained({_base(info)})
        model.load_adapter({_download(info, endpoint, revision)})"""
    return Snippet("transformers", "Transformers", "python", _dedent(code))


def _upstream(info: Mapping[str, Any], endpoint: str, revision: str | None) -> Snippet:
    code = f"""\
        from adapters import AutoAdapterModel
        from huggingface_hub import snapshot_download

        model = AutoAdapterModel.from_pretrained({_base(info)})
        folder = {_download(info, endpoint, revision)}
        model.load_adapter(folder, use_safetensors=True, set_active=True)"""
    return Snippet("upstream", "adapters 1.x", "python", _dedent(code))


def _download(info: Mapping[str, Any], endpoint: str, revision: str | None) -> str:
    """The adapter comes from this hub; the base model from wherever `HF_ENDPOINT` says."""
    return f"snapshot_download({info['full_name']!r}{_pinned('revision', revision)}, endpoint={endpoint!r})"


def _command_line(info: Mapping[str, Any], endpoint: str, revision: str | None) -> Snippet:
    pinned = f" --revision {shlex.quote(revision)}" if revision else ""
    code = f"export HF_ENDPOINT={shlex.quote(endpoint)}\nhf download {shlex.quote(info['full_name'])}{pinned}"
    return Snippet("hf", "hf", "bash", code)


def _curl(info: Mapping[str, Any], endpoint: str, revision: str | None) -> Snippet:
    path = info.get("weights") or "adapter_config.json"
    url = f"{endpoint}/{info['full_name']}/resolve/{quote(revision or 'main', safe='')}/{quote(path)}"
    return Snippet("curl", "curl", "bash", f"curl -L -O {shlex.quote(url)}")


def _base(info: Mapping[str, Any]) -> str:
    return repr(info["base_model"]) if info.get("base_model") else '"<base model>"'


def _pinned(option: str, revision: str | None) -> str:
    return f", {option}={revision!r}" if revision else ""


_AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
}
_TASK_TYPES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def _auto_class(info: Mapping[str, Any]) -> str:
    """The class of the base model: by PEFT's task type, else by the card's pipeline."""
    task_type = (info.get("config") or {}).get("task_type")
    return _TASK_TYPES.get(str(task_type)) or _AUTO_CLASSES.get(str(info.get("pipeline_tag"))) or "AutoModel"


def _dedent(code: str) -> str:
    return "\n".join(line.removeprefix("        ") for line in code.splitlines())
