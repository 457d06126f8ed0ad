"""What other tools do with the same caffemodel, each installed into an environment of its own below ./bench.

Those of the year 2026 that install and read a Caffe net: OpenCV 4 (OpenCV 5 cannot), OpenVINO's model optimizer up to
2024.6 and MMdnn. The latter two take minutes and gigabytes, so they run once, and only when asked for.
"""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("bench")
OPENCV = """
import sys, numpy as np, cv2
net = cv2.dnn.readNetFromCaffe(sys.argv[2], sys.argv[1])
if len(sys.argv) > 3:
    net.setInput(np.zeros((1, 3, 224, 224), np.float32))
    net.forward()
"""


@dataclass(frozen=True)
class Peer:
    """A tool.

    Attributes:
        requirements: what pip is to install.
        command: (folder of executables, caffemodel, prototxt, folder for results) -> command line.
        slow: it takes minutes.
    """

    requirements: tuple[str, ...]
    command: Callable[[Path, Path, Path, Path], list[str]]
    slow: bool = False


def _opencv(*more: str) -> Callable[[Path, Path, Path, Path], list[str]]:
    return lambda tools, model, net, _out: [str(tools / "python"), "-c", OPENCV, str(model), str(net), *more]


def _openvino(tools: Path, model: Path, net: Path, out: Path) -> list[str]:
    given = ["--input_model", str(model), "--input_proto", str(net), "--output_dir", str(out)]
    return [str(tools / "mo"), *given]


def _mmdnn(tools: Path, model: Path, net: Path, out: Path) -> list[str]:
    return [str(tools / "mmtoir"), "-f", "caffe", "-n", str(net), "-w", str(model), "-o", str(out / "mmdnn")]


PEERS: Mapping[str, Peer] = {
    "OpenCV 4, load": Peer(("opencv-python-headless<5",), _opencv()),
    "OpenCV 4, load + forward": Peer(("opencv-python-headless<5",), _opencv("forward")),
    "OpenVINO 2024.6 mo -> IR": Peer(("openvino-dev[caffe]==2024.6.0",), _openvino, slow=True),
    "MMdnn 0.3.1 mmtoir -> npy": Peer(("mmdnn==0.3.1", "protobuf<3.21", "six"), _mmdnn, slow=True),
}


def commands(model: Path, slow: bool) -> Mapping[str, list[str]]:
    """Name -> command line of each peer that installs here; the prototxt lies beside the model."""
    found = {}
    for name, peer in PEERS.items():
        tools = _installed(peer) if slow or not peer.slow else None
        if tools:
            found[f"peer: {name}"] = peer.command(tools, model, model.with_suffix(".prototxt"), model.parent)
    return found


def _installed(peer: Peer) -> Path | None:
    """The executables of a peer's environment, made the first time; None where it cannot be installed."""
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in peer.requirements[0])
    folder = FOLDER / name
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", *peer.requirements]
        outcome = subprocess.run(install, capture_output=True, text=True, check=False)
        if outcome.returncode:
            print(f"{peer.requirements[0]} is left out, it cannot be installed: {_last_line(outcome.stderr)}")
            return None
        done.touch()
    return (folder / "bin").absolute()


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no reason given"
