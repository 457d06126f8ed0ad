"""`python -m tests.bench.to_caffe`: a 528 MiB model from each format to Caffe, against copying and hashing the source.

Values of .safetensors, .h5, .onnx and .caffemodel are copied from file to file inside the kernel. A .pt is read by
torch, which maps it; its values go through memory, so no bound is claimed for it. With --slow-peers PytorchToCaffe
converts the same .pt, once; no other tool of today writes Caffe models.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.bench import vgg16
from tests.bench.convert import LIMIT, Job, collect, peers, report
from tests.bench.measure import Run, run
from tests.bench.peers import TO_CAFFE_PEERS

SOURCES = ("safetensors", "h5", "onnx", "pt")
WITHOUT_NET = ("h5", "pt")
"""Formats whose files need the prototxt beside them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--slow-peers", action="store_true", help="also run a peer that takes minutes, once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "vgg16.caffemodel"
        vgg16.write(source)
        size = source.stat().st_size / 2**20
        print(f"source: {size:.0f} MiB; {options.repeats} runs each, interleaved")
        work = jobs(source)
        others = peers(TO_CAFFE_PEERS, source.with_name("source.pt"), options.slow_peers)
        report(collect({**work, **others}, options.repeats))


def jobs(source: Path) -> Mapping[str, Job]:
    """Name -> one measured run, which removes what it wrote. The limit comes first."""
    vggc = str(Path(sys.executable).with_name("vggc"))
    made = {name: source.with_name(f"source.{name}") for name in SOURCES}
    run([vggc, "convert", str(source), *map(str, made.values())])
    target = source.with_name("out.caffemodel")
    limit = _job(["sh", "-c", LIMIT, str(source)], source.with_name("copy"))
    work: dict[str, Job] = {"limit: cp + sync + sha256sum": limit}
    for name, path in made.items():
        net = ["--net", str(source.with_suffix(".prototxt"))] if name in WITHOUT_NET else []
        work[f"{name} -> caffemodel"] = _job([vggc, "convert", *net, str(path)], target)
    for generation in ("V2", "V1"):
        command = [vggc, "convert", "--generation", generation, str(source)]
        work[f"caffemodel V1 -> {generation}"] = _job(command, target)
    command = [vggc, "convert", str(made["safetensors"])]
    work["safetensors -> caffemodel.h5"] = _job(command, source.with_name("out.caffemodel.h5"))
    return work


def _job(command: list[str], target: Path) -> Job:
    return lambda: _writing(command, target)


def _writing(command: list[str], target: Path) -> Run:
    result = run([*command, str(target)])
    if not target.exists():
        raise RuntimeError(f"{shlex.join(command)} wrote nothing")
    target.unlink()
    target.with_suffix(".prototxt").unlink(missing_ok=True)
    return result


if __name__ == "__main__":
    main()
