"""`python -m tests.bench.convert`: a 528 MiB caffemodel to each format, against copying and hashing the same file.

Peers do what they can with the same file: protobuf parses it, OpenCV 4 loads it and runs it; with --slow-peers
OpenVINO, MMdnn and caffemodel2pytorch convert it, once. They are installed the first time; without a network they are
left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.bench import vgg16
from tests.bench.measure import Run, median, run
from tests.bench.peers import FROM_CAFFE, SLOW, Peer, commands

FORMATS = ("safetensors", "h5", "onnx", "pt")
LIMIT = 'cp "$0" "$1" && sync "$1" && sha256sum "$1"'
PROTOBUF = """
import sys, numpy as np
from caffe_compat.schema import pb
net = pb.NetParameter.FromString(open(sys.argv[1], "rb").read())
[np.array(blob.data, np.float32) for layer in net.layers for blob in layer.blobs]
"""
ONNX_RUNTIME = """
import sys, numpy as np, onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"data": np.zeros((1, 3, 224, 224), np.float32)})
"""
Job = Callable[[], Run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--slow-peers", action="store_true", help="also run peers that take minutes, once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "vgg16.caffemodel"
        vgg16.write(source)
        size = source.stat().st_size / 2**20
        print(f"source: {size:.0f} MiB, generation V1; {options.repeats} runs each, interleaved")
        protobuf = {"peer: protobuf parse + np.array": lambda: run([sys.executable, "-c", PROTOBUF, str(source)])}
        others = peers(FROM_CAFFE, source, options.slow_peers)
        report(collect({**jobs(source), **protobuf, **others}, options.repeats))


def jobs(source: Path) -> Mapping[str, Job]:
    """Name -> one measured run; each removes what it wrote. The limit comes first."""
    vggc = str(Path(sys.executable).with_name("vggc"))
    made: dict[str, Job] = {
        "limit: cp + sync + sha256sum": lambda: _writing(["sh", "-c", LIMIT, str(source)], source.with_name("copy"))
    }
    for name in FORMATS:
        target = source.with_name(f"out.{name}")
        made[f"vggc convert -> {name}"] = lambda target=target: _writing([vggc, "convert", str(source)], target)  # type: ignore[misc]
    made["vggc --help"] = lambda: run([vggc, "--help"])
    onnx = source.with_name("kept.onnx")
    run([vggc, "convert", str(source), str(onnx)])
    made["the .onnx: ONNX Runtime, load + forward"] = lambda: run([sys.executable, "-c", ONNX_RUNTIME, str(onnx)])
    return made


def peers(known: Mapping[str, Peer], source: Path, slow: bool) -> Mapping[str, Job]:
    """What others do with the file; what they write stays until the end."""
    return {name: partial(run, command) for name, command in commands(known, source, slow).items()}


def _writing(command: list[str], target: Path) -> Run:
    target.unlink(missing_ok=True)
    result = run([*command, str(target)])
    target.unlink()
    return result


def collect(work: Mapping[str, Job], repeats: int) -> Mapping[str, list[Run]]:
    """Run everything `repeats` times, one round after the other, after one round to warm up."""
    runs: dict[str, list[Run]] = {name: [] for name in work}
    for index in range(repeats + 1):
        for name, job in work.items():
            if name in SLOW and index != 1:
                continue
            result = job()
            if index:
                runs[name].append(result)
    return runs


def report(runs: Mapping[str, list[Run]]) -> None:
    """One line each: median and fastest wall time, ratio to the limit, processor time, peak memory."""
    limit = median(next(iter(runs.values())))
    print(f"{'':42}{'median s':>9}{'min s':>8}{'x limit':>9}{'cpu s':>8}{'anon MiB':>10}{'mapped MiB':>12}")
    for name, each in runs.items():
        seconds, cpu = min(r.seconds for r in each), min(r.cpu for r in each)
        memory = f"{max(r.anonymous for r in each):10.0f}{max(r.mapped for r in each):12.0f}"
        print(f"{name:42}{median(each):9.2f}{seconds:8.2f}{median(each) / limit:9.2f}{cpu:8.2f}{memory}")


if __name__ == "__main__":
    main()
