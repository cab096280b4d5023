"""What the site needs beside the pages of docs/: notebooks as pages, formulas, and files that pages link to.

A link like `../benchmarks/results/x.png` is right on GitHub and in an editor. The site has no folder above docs/, so
such a file is copied along, and the link loses its `../`. A link to a file that does not exist stays as it is, and
the strict build refuses it.
"""

import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
FORMULA = re.compile(r"```math\n(.*?)```", re.DOTALL)
ABOVE = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie beside docs/, and what pages link to outside of it."""
    linked = {name for page in Path(config.docs_dir).glob("*.md") for name in ABOVE.findall(page.read_text())}
    for name in sorted({*PAGES, *linked}):
        if (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for notebook in Path(config.docs_dir).glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        files.append(File.generated(config, f"{notebook.stem}.md", content=page_of_notebook(cells)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Turns links out of docs/, or into it, to links within the site, and formulas to MathML."""
    markdown = FORMULA.sub(lambda block: convert(" ".join(block[1].split()), display="block"), markdown)
    if page.file.src_uri in PAGES:
        return markdown.replace("](docs/", "](")
    if "/" in page.file.src_uri:
        return markdown
    return ABOVE.sub(lambda link: f"]({link[1]}" if files.get_file_from_path(link[1]) else link[0], markdown)


def page_of_notebook(cells: list[dict[str, Any]]) -> str:
    """A notebook as Markdown: text, code, and what the code printed and drew when it was last saved."""
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(
                    f'<img alt="What the cell draws" src="data:image/png;base64,{data["image/png"].strip()}">'
                )
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)
