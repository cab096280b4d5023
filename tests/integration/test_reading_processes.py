"""Processes find the images of a run: each node lists them once, however long it takes, and finds the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from .test_two_processes import ROOT, free_port


def write_images(folder: Path, count: int) -> None:
    """A folder with so many small images; no folder if there are none."""
    for number in range(count):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")


def find_images(
    folders: list[Path], processes: list[tuple[int, int]], *datasets: str, seconds: float = 0
) -> list[dict[str, Any]]:
    """What each process, given by its local rank and its node, finds in data sets below its node's folder."""
    port, running = free_port(), []
    for rank, (local_rank, node) in enumerate(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": len(processes)}
        environment = {name: str(value) for name, value in ranks.items()}
        environment |= {"LOCAL_WORLD_SIZE": str(sum(other == node for _, other in processes)), "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
        script = [sys.executable, str(Path(__file__).with_name("reading_processes.py"))]
        command = [*script, str(seconds), str(folders[node] / f"rank-{rank}.json"), *datasets]
        running.append(subprocess.Popen(command, cwd=folders[node], env={**os.environ, **environment}))
    for process in running:
        process.wait(timeout=120)
    return [json.loads((folders[node] / f"rank-{rank}.json").read_text()) for rank, (_, node) in enumerate(processes)]


def test_images_are_listed_once_and_it_may_take_long(tmp_path: Path) -> None:
    """Listing takes longer than processes wait in a step; the second process gets the list of the first."""
    write_images(tmp_path / "photos", 3)

    found = find_images([tmp_path], [(0, 0), (1, 0)], "photos", seconds=5)

    assert [process["listed"] for process in found] == [1, 0]
    assert [process["found"] for process in found] == [[["0.png", "1.png", "2.png"]]] * 2


def test_nodes_with_their_own_disks_list_their_own(tmp_path: Path) -> None:
    """One process of each node reads its disk. A folder that one lacks, or with other images, is told on all."""
    nodes = [tmp_path / "one", tmp_path / "two"]
    for node in nodes:
        node.mkdir()
        write_images(node / "equal", 3)
    write_images(nodes[0] / "missing", 3)
    write_images(nodes[0] / "fewer", 3)
    write_images(nodes[1] / "fewer", 2)

    first, second = find_images(nodes, [(0, 0), (0, 1)], "missing", "fewer", "equal")

    assert "the node of process 1" in first["found"][0] and "missing" in first["found"][0]
    assert "no such folder" in second["found"][0]
    for process in (first, second):
        assert "process 0" in process["found"][1] and "finds 3 images" in process["found"][1]
        assert "process 1" in process["found"][1] and "finds 2" in process["found"][1]
        assert process["found"][2] == ["0.png", "1.png", "2.png"] and process["listed"] == 3
