"""The rules for the notebooks in notebooks/: small, executed, and with something for nbval to compare."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
ABSOLUTE = re.compile(r"(?<![\w.:/<)\]}-])(/[A-Za-z][\w.-]*/[\w.-]|[A-Z]:\\)")
ADDRESS = re.compile(r"<[^>\n]* at 0x[0-9a-f]+")
UNCOMPARED = {"nbval-ignore-output", "nbval-skip"}


def text_of(output) -> str:
    """What an output says, images aside."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return "\n".join(map(str, [output.get("text", ""), *data.values()]))


def problems(notebook) -> list[str]:
    """Every rule for committed notebooks that this one breaks."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    compared = [cell for cell in code if not UNCOMPARED & set(cell.metadata.get("tags", []))]
    outputs = [output for cell in code for output in cell.outputs]
    found = [] if 5 <= len(code) <= 12 else [f"{len(code)} code cells, expected 5 to 12"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells tagged 'parameters', expected one")
    for statement in ast.parse(tagged[0].source).body if tagged else []:
        try:
            ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            found.append(f"not a literal in the parameters cell: {ast.unparse(statement)}")
    if tagged and "tier: str = 'smoke'" not in [ast.unparse(statement) for statement in ast.parse(tagged[0].source).body]:
        found.append('the parameters cell does not declare tier: str = "smoke", by which the tiers are run')
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not executed from top to bottom (vmrepro notebooks bless)")
    if not any(text_of(output).strip() for cell in compared for output in cell.outputs):
        found.append("no output that nbval compares")
    if any(output.get("name") == "stderr" for cell in compared for output in cell.outputs):
        found.append("stderr in a compared cell")
    if any(output.output_type == "error" for output in outputs):
        found.append("an error among the outputs")
    trees = [ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))) for cell in code]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    if not any(isinstance(node, ast.Assert) for node in nodes):
        found.append("no assert")
    if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in nodes):
        found.append("a def or class; put it into the package")
    found += [f"a code cell of {size} lines, at most 12" for cell in code if (size := len(cell.source.splitlines())) > 12]
    texts = [cell.source for cell in notebook.cells] + [text_of(output) for output in outputs]
    for what, pattern in {"an absolute path": ABSOLUTE, "an address": ADDRESS}.items():
        found += [f"{what}: {match.group()}" for text in texts if (match := pattern.search(text))]
    return found


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_committed_notebook_keeps_the_rules(path):
    assert problems(nbformat.read(path, as_version=4)) == []


def good_notebook():
    """A notebook that keeps every rule, for one change at a time to break."""
    sources = ['tier: str = "smoke"\nseed: int = 0', "x = 1", "print(x)", "assert x == 1", "y = x / 2"]
    cells = [new_code_cell(source, execution_count=number) for number, source in enumerate(sources, 1)]
    cells[0].metadata.tags = ["parameters"]
    cells[2].outputs = [new_output("stream", text="1 img/s, see https://arxiv.org/abs/2403.06977 and figures/fig6/a.csv\n")]
    return new_notebook(cells=cells)


def test_the_rules_accept_a_good_notebook():
    assert problems(good_notebook()) == []


@pytest.mark.parametrize(
    ("cell", "change", "complaint"),
    [
        (0, {"metadata": {}}, "0 cells tagged 'parameters'"),
        (1, {"metadata": {"tags": ["parameters"]}}, "2 cells tagged 'parameters'"),
        (0, {"source": 'tier: str = "smoke"\nseed: int = 2 * 3 + len("a")'}, "not a literal"),
        (0, {"source": 'tier: str = "smoke"\nimport os'}, "not a literal"),
        (0, {"source": "seed: int = 0"}, "does not declare tier"),
        (1, {"execution_count": None}, "not executed"),
        (1, {"execution_count": 7}, "not executed"),
        (2, {"metadata": {"tags": ["nbval-ignore-output"]}}, "no output that nbval compares"),
        (2, {"outputs": [new_output("display_data", {"image/png": "iVBOR/w0/K"})]}, "no output that nbval compares"),
        (4, {"outputs": [new_output("stream", name="stderr", text="warning")]}, "stderr in a compared cell"),
        (4, {"outputs": [new_output("error", ename="E", evalue="", traceback=[])]}, "an error among the outputs"),
        (3, {"source": "x == 1"}, "no assert"),
        (1, {"source": "def f():\n    return 1"}, "a def or class"),
        (1, {"source": "class F:\n    pass"}, "a def or class"),
        (1, {"source": "\n".join(["x = 1"] * 13)}, "a code cell of 13 lines"),
        (1, {"source": "open('/home/me/x.csv')"}, "an absolute path: /home/m"),
        (2, {"outputs": [new_output("stream", text="saved C:\\data\n")]}, "an absolute path"),
        (2, {"outputs": [new_output("execute_result", {"text/plain": "<Line2D at 0x7f00aa>"})]}, "an address"),
    ],
)
def test_the_rules_see_each_fault(cell, change, complaint):
    notebook = good_notebook()
    notebook.cells[cell].update(change)
    assert any(complaint in found for found in problems(notebook))


@pytest.mark.parametrize(("number", "complaint"), [(4, "4 code cells"), (13, "13 code cells")])
def test_the_rules_count_the_cells(number, complaint):
    notebook = good_notebook()
    notebook.cells = (notebook.cells * 3)[:number]
    assert any(complaint in found for found in problems(notebook))
