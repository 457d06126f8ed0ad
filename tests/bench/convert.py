"""`python -m tests.bench.convert`: a 528 MiB caffemodel to each format, against copying and hashing the same file."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench import vgg16
from tests.bench.measure import Run, median, run

FORMATS = ("safetensors", "h5", "onnx", "pt")
LIMIT = 'cp "$0" "$1" && sync "$1" && sha256sum "$1"'
PROTOBUF = """
import sys, numpy as np
from caffe_compat.schema import pb
net = pb.NetParameter.FromString(open(sys.argv[1], "rb").read())
[np.array(blob.data, np.float32) for layer in net.layers for blob in layer.blobs]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "vgg16.caffemodel"
        vgg16.write(source)
        print(
            f"source: {source.stat().st_size / 2**20:.0f} MiB, generation V1; {options.repeats} runs each, interleaved"
        )
        report(collect(jobs(source), options.repeats))


def jobs(source: Path) -> Mapping[str, Callable[[], Run]]:
    """Name -> one measured run; each removes what it wrote."""
    vggc = str(Path(sys.executable).with_name("vggc"))
    made: dict[str, Callable[[], Run]] = {
        "limit: cp + sync + sha256sum": lambda: _writing(["sh", "-c", LIMIT, str(source)], source.with_name("copy"))
    }
    for name in FORMATS:
        target = source.with_name(f"out.{name}")
        made[f"vggc convert -> {name}"] = lambda target=target: _writing([vggc, "convert", str(source)], target)  # type: ignore[misc]
    made["peer: protobuf parse + np.array, nothing written"] = lambda: run(
        [sys.executable, "-c", PROTOBUF, str(source)]
    )
    made["vggc --help"] = lambda: run([vggc, "--help"])
    return made


def _writing(command: list[str], target: Path) -> Run:
    target.unlink(missing_ok=True)
    result = run([*command, str(target)])
    target.unlink()
    return result


def collect(work: Mapping[str, Callable[[], Run]], repeats: int) -> Mapping[str, list[Run]]:
    """Run everything `repeats` times, one round after the other, after one round to warm up."""
    runs: dict[str, list[Run]] = {name: [] for name in work}
    for index in range(repeats + 1):
        for name, job in work.items():
            result = job()
            if index:
                runs[name].append(result)
    return runs


def report(runs: Mapping[str, list[Run]]) -> None:
    """One line each: median and fastest wall time, ratio to the limit, peak memory."""
    limit = median(next(iter(runs.values())))
    print(f"{'':50} {'median s':>9} {'min s':>7} {'x limit':>8} {'anon MiB':>9} {'mapped MiB':>11}")
    for name, each in runs.items():
        anonymous, mapped = max(r.anonymous for r in each), max(r.mapped for r in each)
        fastest = min(r.seconds for r in each)
        print(
            f"{name:50} {median(each):9.2f} {fastest:7.2f} {median(each) / limit:8.2f} {anonymous:9.0f} {mapped:11.0f}"
        )


if __name__ == "__main__":
    main()
