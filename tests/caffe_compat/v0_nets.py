"""Texts of generation V0 for tests."""

from __future__ import annotations

from caffe_compat.graph import Graph
from caffe_compat.module import Net
from caffe_compat.schema import pb
from caffe_compat.source import Document
from caffe_compat.textformat import parse


def layer(kind: str, name: str, bottoms: str, tops: str, fields: str = "") -> str:
    """One layer on one line; bottoms and tops are divided by blanks."""
    blobs = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return f'layers {{ layer {{ name: "{name}" type: "{kind}" {fields} }} {" ".join(blobs)} }}'


def net(*layers: str, head: str = "", **inputs: tuple[int, ...]) -> str:
    """A net: `head` on the first line, each input on one, each layer on one."""
    lines = [head]
    for name, dims in inputs.items():
        lines.append(f'input: "{name}" ' + " ".join(f"input_dim: {dim}" for dim in dims))
    return "\n".join([*lines, *layers])


def document(text: str) -> Document:
    return parse(text, pb.NetParameter, "net.prototxt")


def graph(text: str, phase: str = "TEST", profile: str = "dec2013", folder: str = ".") -> Graph:
    read = document(text)
    return Graph.from_net(read.message, phase=phase, profile=profile, source=read.map, folder=folder)


def module(text: str, phase: str = "TEST", profile: str = "dec2013", seed: int = 0) -> Net:
    return Net(graph(text, phase, profile), seed=seed)
