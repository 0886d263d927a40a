"""Help pages and README agree with the node classes: every input, its type, its default, every output, every command."""

from __future__ import annotations

import re

import pytest

from testbed.pack import ROOT, load_pack

PAGES = ROOT / "web" / "docs"
PACK = load_pack()
COMMANDS = ("make demo", "make test", "make bench", "make lint")
ROOMS = ("nodes", "kbdm_core", "train", "workflows", "demo", "tests", "benchmarks", "web/docs")

each_node = pytest.mark.parametrize("node", sorted(PACK.NODE_CLASS_MAPPINGS))


def page(node: str) -> str:
    return (PAGES / f"{node}.md").read_text(encoding="utf-8")


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def table(node: str, section: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page(node), flags=re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def inputs_of(node: str) -> list[tuple[str, tuple, bool]]:
    """Name, declaration and whether it is required, in the order of the declaration."""
    declared = PACK.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    return [(name, value, kind == "required") for kind in ("required", "optional") for name, value in declared.get(kind, {}).items()]


def type_cell(name: str, declaration: tuple) -> str:
    kind, limits = declaration[0], (declaration[1] if len(declaration) > 1 else {})
    if name.endswith("_name"):
        return "a file"
    if isinstance(kind, list):
        return ", ".join(f"`{option}`" for option in kind)
    return f"`{kind}`, {limits['min']:g} to {limits['max']:g}" if kind in ("INT", "FLOAT") else f"`{kind}`"


def default_cell(name: str, declaration: tuple, required: bool) -> str:
    kind, options = declaration
    if name.endswith("_name"):
        return "the first"
    if isinstance(kind, list):
        return f"`{options.get('default', kind[0])}`"
    if kind in ("INT", "FLOAT"):
        return f"{options['default']:g}"
    if kind == "STRING":
        return "an example" if options.get("default") else "empty"
    return "required" if required else "optional"


def test_there_is_a_page_for_each_node_and_no_other():
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted(PACK.NODE_CLASS_MAPPINGS)


@each_node
def test_a_page_is_headed_by_the_display_name(node):
    assert page(node).splitlines()[0] == f"# {PACK.NODE_DISPLAY_NAME_MAPPINGS[node]}"


@each_node
def test_a_page_lists_every_input_with_its_type_and_default(node):
    expected = [[f"`{name}`", type_cell(name, value), default_cell(name, value, required)] for name, value, required in inputs_of(node)]
    rows = table(node, "Inputs")
    assert [row[:3] for row in rows] == expected
    assert all(len(row) == 4 and row[3] for row in rows)


@each_node
def test_a_page_lists_every_output(node):
    cls = PACK.NODE_CLASS_MAPPINGS[node]
    rows = table(node, "Outputs")
    assert [row[:2] for row in rows] == [[f"`{name}`", f"`{kind}`"] for name, kind in zip(cls.RETURN_NAMES, cls.RETURN_TYPES)]
    assert all(len(row) == 3 and row[2] for row in rows)


@each_node
def test_a_page_shows_connections_and_tips(node):
    assert "## Example\n\n```\n" in page(node) and "## Tips\n" in page(node)


def test_the_dynamic_mask_page_says_that_a_logit_of_0_is_not_exclusion():
    text = page("KBDMDynamicMaskAttention")
    assert "A logit of 0 is not exclusion: e^0 = 1" in text and "## Neutral or zero?" in text


def test_readme_names_every_node_by_its_display_name_and_links_its_page():
    for node, name in PACK.NODE_DISPLAY_NAME_MAPPINGS.items():
        assert f"[{name}](web/docs/{node}.md)" in readme(), node


def test_readme_names_every_command_and_the_makefile_knows_it():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for command in COMMANDS:
        assert f"`{command}`" in readme() and command.split()[1] in targets, command


def test_readme_names_every_workflow_room_and_model_folder():
    names = [path.stem for path in (ROOT / "workflows").glob("*.json")]
    for name in (*names, *(f"{room}/" for room in ROOMS), "models/kbdm_knowledge_bases/", "models/kbdm_adapters/"):
        assert name in readme(), name


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\(([^)#]+)\)", readme()) + re.findall(r'src="([^"]+)"', readme())
    missing = [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]
    assert links and not missing
