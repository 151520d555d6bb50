"""Notebooks as pages of the site: executed when it is built, so that no output is an old one."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

SECONDS = 300
"""That a cell may take on a busy machine."""


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Run a notebook; its cells and outputs as Markdown, and its figures by their file names.

    Args:
        path: of the notebook, which is not changed.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", coalesce_streams=True)
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries say of the machine is of no reader's concern
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, names)
    return text, resources["outputs"]
