"""The rooms of the code and the floors they stand on, read from what it imports.

    python -m tests.floors            # lists every room, its arrows, and what is wrong
    python -m tests.floors --draw     # draws the rooms anew in docs/design.md

A room is a wing of the package, the package's own names (`__init__` and `auto_classes`), or a
folder beside it. Imports count wherever they stand: in functions and under `TYPE_CHECKING` too.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "segment_anything_transformers"
PAGE = ROOT / "docs" / "design.md"
NAMES = "public names"
FLOORS: tuple[dict[str, str], ...] = (
    {"model": "all that travels to the Hub with the weights"},
    {"prediction": "a model, an image, prompts", "export": "ONNX"},
    {"data": "files and annotations as samples"},
    {
        "training": "fine-tuning",
        "evaluation": "how good the masks are",
        "demo": "the page",
        "scale": "folders, data sets, clusters",
    },
    {NAMES: "what the package exports"},
    {
        "cli": "the command",
        "conversion": "other checkpoints, compared",
        "examples": "training sam_vit_t",
    },
    {"hub_cards": "what stands on the Hub", "benchmarks": "figures and plots"},
)
"""The rooms from the ground up, each with what it is for."""
BESIDE = ("conversion", "examples", "hub_cards", "benchmarks")
"""The rooms that are folders beside the package."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, start=1) for room in rooms}
FAMILIES = {
    **dict.fromkeys(("torch", "accelerate", "peft"), "PyTorch"),
    **dict.fromkeys(("tensorflow", "keras", "jax"), "TensorFlow"),
}
TORCH_AT_ONCE = re.compile(
    r"model\.(modeling_segment_anything|loss_segment_anything|full_size_logits|layers|outputs|tiny_vit_encoder"
    r"|image_encoder|prompt_encoder|two_way_transformer|mask_decoder|fast_decoder)"
    r"|prediction\.int8_linear|export\.onnx|training\.(?!\w+_tf$)\w+"
)
"""Modules that may import PyTorch when they are imported; others do in functions."""
KERAS = re.compile(r".*(_tf_|_tf$|keras).*")
"""Modules that may import TensorFlow, Keras or JAX, and then never PyTorch."""


@dataclass(frozen=True)
class Import:
    """One import: the modules by their names without the package's, and when it is carried out."""

    by: str
    line: int
    of: str
    at_once: bool
    """Whether importing the one module imports the other: not in a function, nor for types only."""
    relative: bool

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.of}"


def read_modules(root: Path = ROOT) -> dict[str, Path]:
    """The files of the package and of the folders beside it, by module; `__init__` by its folder.

    Names of the package's modules lack its own: `model.mask_ops`, and `__init__` for itself.
    """
    package = root / "src" / PACKAGE
    folders = [(package, package), *((root / name, root) for name in BESIDE)]
    found = {}
    for folder, start in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(start).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return found


def room_of(module: str) -> str:
    """The room that a module stands in; a room that is not known by its own name."""
    first = module.split(".")[0]
    return NAMES if first in ("__init__", "auto_classes") else first


def imports_of(module: str, path: Path, modules: Iterable[str]) -> Iterator[Import]:
    """What a file imports; this project's modules by their names in `modules`."""
    known = set(modules)
    beside = room_of(module) in BESIDE
    folder = path.name == "__init__.py"
    here = [*([] if beside else [PACKAGE]), *([] if module == "__init__" else module.split("."))]

    def named(name: str) -> str:
        inside = name.removeprefix(f"{PACKAGE}.") if name != PACKAGE else "__init__"
        return inside if inside in known or name.startswith(f"{PACKAGE}.") else name

    for node, at_once in _statements(ast.parse(path.read_text(encoding="utf-8")).body, True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            level = node.level - folder
            base = here[: len(here) - level] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import name` may mean a module of that name.
            below = [f"{whole}.{alias.name}" for alias in node.names]
            names = [name if named(name) in known else whole for name in below]
        for name in dict.fromkeys(map(named, names)):
            relative = isinstance(node, ast.ImportFrom) and node.level > 0
            yield Import(module, node.lineno, name, at_once, relative)


def _statements(
    body: Iterable[ast.AST], at_once: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The statements that import something, and `import_module` with a name, as they would be."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_once
        elif isinstance(node, ast.Call) and _last_name(node.func) == "import_module":
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                alias = ast.alias(name.value, lineno=node.lineno)
                yield ast.Import([alias], lineno=node.lineno), at_once
            yield from _statements(ast.iter_child_nodes(node), at_once)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"
            yield from _statements(ast.iter_child_nodes(node), at_once and not (later or types))


def _last_name(node: ast.AST) -> str | None:
    return getattr(node, "id", None) or getattr(node, "attr", None)


def read_imports(root: Path = ROOT) -> list[Import]:
    """Every import of every module."""
    modules = read_modules(root)
    return [found for name, path in modules.items() for found in imports_of(name, path, modules)]


def arrows(imports: Iterable[Import]) -> dict[str, set[str]]:
    """The rooms that each room imports from; rooms without a module are left out."""
    ours = [found for found in imports if _is_ours(found.of)]
    rooms = {room_of(name) for found in ours for name in (found.by, found.of)}
    return {
        room: {room_of(found.of) for found in ours if room_of(found.by) == room} - {room}
        for room in sorted(rooms, key=lambda room: (FLOOR.get(room, 99), room))
    }


def faults(root: Path = ROOT) -> list[str]:
    """What is not as it should be, each with the names of the modules."""
    imports = read_imports(root)
    return [
        *_unknown_rooms(root),
        *_ways_up(imports),
        *_circles(imports),
        *_faults_of_the_model(imports, root),
        *_frameworks(imports),
    ]


def _is_ours(module: str) -> bool:
    return room_of(module) in FLOOR


def _unknown_rooms(root: Path) -> Iterator[str]:
    for module, path in read_modules(root).items():
        if not _is_ours(module):
            yield f"{module} ({path.relative_to(root)}) stands in no room of tests/floors.py"


def _ways_up(imports: Iterable[Import]) -> Iterator[str]:
    """Imports that lead up, or to another room of the same floor; and those of tests."""
    for found in imports:
        by, of = room_of(found.by), room_of(found.of)
        if _is_ours(found.by) and _is_ours(found.of) and by != of and FLOOR[of] >= FLOOR[by]:
            where = "up to" if FLOOR[of] > FLOOR[by] else "across to"
            yield f"{found}, {where} {of}"
        elif by not in BESIDE and of in ("tests", "docs"):
            yield f"{found}, which users do not have"


def _circles(imports: Iterable[Import]) -> Iterator[str]:
    """One circle of modules, and one of rooms, if there are any."""
    ours = [found for found in imports if _is_ours(found.of) and found.by != found.of]
    modules: dict[str, set[str]] = {}
    for found in ours:
        modules.setdefault(found.by, set()).add(found.of)
    for graph, what in ((modules, "modules"), (arrows(ours), "rooms")):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            yield f"a circle of {what}: {' <- '.join(error.args[1])}"


def _faults_of_the_model(imports: Iterable[Import], root: Path) -> Iterator[str]:
    """The wing that is copied to the Hub is flat, and knows the package by no name."""
    for module in read_modules(root):
        if room_of(module) == "model" and module.count(".") > 1:
            yield f"{module} is in a folder, but folders of model/ do not travel to the Hub"
    for found in imports:
        if room_of(found.by) == "model" and _is_ours(found.of) and not found.relative:
            yield f"{found} by the package's name, which the Hub does not know"


def _frameworks(imports: list[Import]) -> Iterator[str]:
    """Frameworks where they must not be, and where two of them meet."""
    package = [found for found in imports if room_of(found.by) not in BESIDE]
    for found in package:
        family = FAMILIES.get(found.of.split(".")[0])
        is_keras = bool(KERAS.fullmatch(found.by))
        if family == "TensorFlow" and not is_keras:
            yield f"{found}, but its name has no tf or keras"
        elif family == "PyTorch" and is_keras:
            yield f"{found} beside TensorFlow"
        elif family == "PyTorch" and found.at_once and not TORCH_AT_ONCE.fullmatch(found.by):
            yield f"{found} at once, not in a function"
    at_once: dict[str, set[str]] = {}
    for found in package:
        if found.at_once:
            at_once.setdefault(found.by, set()).add(found.of)
    for module in at_once:
        seen = _reached(module, at_once)
        met = {FAMILIES[name.split(".")[0]] for name in seen if name.split(".")[0] in FAMILIES}
        if len(met) > 1:
            yield f"importing {module} imports both PyTorch and TensorFlow"
        elif met and not (TORCH_AT_ONCE.fullmatch(module) or KERAS.fullmatch(module)):
            by = sorted(name for name in seen if name.split(".")[0] in FAMILIES)
            yield f"importing {module} imports {', '.join(by)}"


def _reached(module: str, graph: dict[str, set[str]]) -> set[str]:
    """All that one comes to from a module."""
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        for name in graph.get(ahead.pop(), set()) - seen:
            seen.add(name)
            ahead.append(name)
    return seen


def listing(root: Path = ROOT) -> str:
    """The floors from the top, with the rooms, their number of modules, and their arrows."""
    modules = read_modules(root)
    counts = {room: sum(room_of(name) == room for name in modules) for room in FLOOR}
    lines = []
    for room, leads in reversed(arrows(read_imports(root)).items()):
        below = ", ".join(sorted(leads, key=lambda name: (-FLOOR.get(name, 0), name))) or "nothing"
        lines.append(f"{FLOOR.get(room, '?')}  {room:<12}  {counts.get(room, 0):>3}  -> {below}")
    return "\n".join(lines)


def drawing(root: Path = ROOT) -> str:
    """The rooms in Mermaid's language; an arrow is left out where others lead there as well."""
    leads = arrows(read_imports(root))
    lines = ["flowchart TD"]
    for _, rooms in groupby(reversed(leads), key=lambda room: FLOOR[room]):
        for room in sorted(rooms):
            about = FLOORS[FLOOR[room] - 1][room]
            folder = f"{room}/" if room != NAMES else room
            lines.append(f'    {_identifier(room)}["<b>{folder}</b><br>{about}"]')
    for room, below in reversed(leads.items()):
        further = set().union(*(_reached(name, leads) for name in below))
        for name in sorted(below - further, key=lambda name: (-FLOOR[name], name)):
            lines.append(f"    {_identifier(room)} --> {_identifier(name)}")
    return "\n".join(lines)


def _identifier(room: str) -> str:
    return room.replace(" ", "_")


def on_page(text: str, root: Path = ROOT) -> str:
    """A page with the drawing put in place of its Mermaid block."""
    fence = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.DOTALL)
    return fence.sub(lambda _: drawing(root) + "\n", text, count=1)


if __name__ == "__main__":
    print(listing())
    if "--draw" in sys.argv:
        PAGE.write_text(on_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    wrong = faults()
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))
