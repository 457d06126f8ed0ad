"""What other tools do with the same model, each installed into an environment of its own below ./bench.

Those of the year 2026 that install: OpenCV 4 (OpenCV 5 cannot read a Caffe net), OpenVINO's model optimizer up to
2024.6, MMdnn, caffemodel2pytorch, and towards Caffe PytorchToCaffe. The last two are repositories, not packages. All
but OpenCV take minutes or gigabytes, so they run once, and only when asked for.
"""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caffe_compat import schema

FOLDER = Path("bench")
OPENCV = """
import sys, numpy as np, cv2
net = cv2.dnn.readNetFromCaffe(sys.argv[2], sys.argv[1])
if len(sys.argv) > 3:
    net.setInput(np.zeros((1, 3, 224, 224), np.float32))
    net.forward()
"""
PROTOC = """#!/bin/sh
exec "${0%/*}/python" -m grpc_tools.protoc "$@"
"""
TO_CAFFE = """
import sys, torch
from torch import nn
sys.path.insert(0, sys.argv[1])
import pytorch_to_caffe
class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        parts, channels = [], 3
        for width, depth in (64, 2), (128, 2), (256, 3), (512, 3), (512, 3):
            for _ in range(depth):
                parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            parts.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*parts)
        dense = [nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
        self.classifier = nn.Sequential(*dense, nn.Softmax(1))
    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))
net = VGG().eval()
given = torch.load(sys.argv[2], mmap=True, weights_only=True)
blobs = iter(v for v in given.values() if isinstance(v, torch.Tensor))
with torch.no_grad():
    for parameter in net.parameters():
        parameter.copy_(next(blobs).view(parameter.shape))
    pytorch_to_caffe.trans_net(net, torch.zeros(1, 3, 224, 224), "VGG")
pytorch_to_caffe.save_prototxt(sys.argv[3] + ".prototxt")
pytorch_to_caffe.save_caffemodel(sys.argv[3])
"""


@dataclass(frozen=True)
class Tools:
    """Where a peer's environment lies.

    Attributes:
        bin: its executables.
        source: its repository, for a peer that is no package.
    """

    bin: Path
    source: Path

    @property
    def python(self) -> str:
        return str(self.bin / "python")


Command = Callable[[Tools, Path, Path], list[str]]
"""(tools, model, folder for results) -> command line; the prototxt lies beside the model."""


@dataclass(frozen=True)
class Peer:
    """A tool.

    Attributes:
        requirements: what pip is to install.
        command: how it is run.
        slow: it takes minutes.
        repository: on GitHub, for what is no package.
    """

    requirements: tuple[str, ...]
    command: Command
    slow: bool = True
    repository: str = ""


def _opencv(*more: str) -> Command:
    return lambda tools, model, _out: [tools.python, "-c", OPENCV, str(model), _net(model), *more]


def _net(model: Path) -> str:
    return str(model.with_suffix(".prototxt"))


def _openvino(tools: Tools, model: Path, out: Path) -> list[str]:
    given = ["--input_model", str(model), "--input_proto", _net(model), "--output_dir", str(out)]
    return [str(tools.bin / "mo"), *given]


def _mmdnn(tools: Tools, model: Path, out: Path) -> list[str]:
    return [str(tools.bin / "mmtoir"), "-f", "caffe", "-n", _net(model), "-w", str(model), "-o", str(out / "mmdnn")]


def _dump(suffix: str) -> Command:
    def command(tools: Tools, model: Path, out: Path) -> list[str]:
        proto = (Path(schema.__file__).parent / "caffe.proto").as_uri()
        given = [str(model), "-o", str(out / f"dumped.{suffix}"), "--caffe.proto", proto]
        path = f"PATH={tools.bin}{os.pathsep}{os.environ['PATH']}"
        return ["env", path, tools.python, str(tools.source / "caffemodel2pytorch.py"), *given]

    return command


def _to_caffe(tools: Tools, model: Path, out: Path) -> list[str]:
    return [tools.python, "-c", TO_CAFFE, str(tools.source), str(model), str(out / "theirs.caffemodel")]


_OPENCV = ("opencv-python-headless<5",)
_DUMP = ("torch==2.13.0", "numpy", "h5py", "protobuf", "grpcio-tools")
_DUMP_SOURCE = "vadimkantorov/caffemodel2pytorch"
FROM_CAFFE: Mapping[str, Peer] = {
    "OpenCV 4, load": Peer(_OPENCV, _opencv(), slow=False),
    "OpenCV 4, load + forward": Peer(_OPENCV, _opencv("forward"), slow=False),
    "OpenVINO 2024.6 mo -> IR": Peer(("openvino-dev[caffe]==2024.6.0",), _openvino),
    "MMdnn 0.3.1 mmtoir -> npy": Peer(("mmdnn==0.3.1", "protobuf<3.21", "six"), _mmdnn),
    "caffemodel2pytorch -> h5": Peer(_DUMP, _dump("h5"), repository=_DUMP_SOURCE),
    "caffemodel2pytorch -> pt": Peer(_DUMP, _dump("pt"), repository=_DUMP_SOURCE),
}
_TO_CAFFE = ("torch==2.13.0", "numpy", "protobuf<3.21")
TO_CAFFE_PEERS: Mapping[str, Peer] = {
    "PytorchToCaffe, .pt -> caffemodel": Peer(_TO_CAFFE, _to_caffe, repository="xxradon/PytorchToCaffe"),
}
SLOW = frozenset(f"peer: {name}" for name, peer in {**FROM_CAFFE, **TO_CAFFE_PEERS}.items() if peer.slow)


def commands(peers: Mapping[str, Peer], model: Path, slow: bool) -> Mapping[str, list[str]]:
    """Name -> command line of each peer that installs here."""
    found = {}
    for name, peer in peers.items():
        tools = _installed(peer) if slow or not peer.slow else None
        if tools:
            found[f"peer: {name}"] = peer.command(tools, model, model.parent)
    return found


def _installed(peer: Peer) -> Tools | None:
    """A peer's environment, made the first time; None where it cannot be installed."""
    first = peer.repository.rpartition("/")[2] or peer.requirements[0]
    folder = FOLDER / "".join(c if c.isalnum() or c in ".-" else "_" for c in first)
    done, source = folder / "installed", FOLDER / "sources" / first
    python = str(folder / "bin" / "python")
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        fetch = ["git", "clone", "-q", "--depth", "1", f"https://github.com/{peer.repository}", str(source)]
        needed = bool(peer.repository) and not source.exists()
        install = [python, "-m", "pip", "install", "-qq", *peer.requirements]
        if not all(_succeeds(first, command) for command in ([install, fetch] if needed else [install])):
            return None
        protoc = folder / "bin" / "protoc"
        protoc.write_text(PROTOC)
        protoc.chmod(0o755)
        done.touch()
    return Tools((folder / "bin").absolute(), source.absolute())


def _succeeds(name: str, command: Sequence[str]) -> bool:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        lines = outcome.stderr.strip().splitlines()
        print(f"{name} is left out, it cannot be installed: {lines[-1] if lines else 'no reason given'}")
    return not outcome.returncode
