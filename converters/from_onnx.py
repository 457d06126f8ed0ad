"""From ONNX to Caffe: exact, or refused with the node, the reason and what would help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from converters.importing.options import ImportOptions
    from converters.importing.translation import Imported


def from_onnx(model: str | Path | onnx.ModelProto, options: ImportOptions | None = None) -> Imported:
    """A Caffe net that computes what an ONNX model does.

    Args:
        model: a file, beside which its external data lie, or a model in memory, which has none.
        options: see ImportOptions.

    Raises:
        FormatError: it is no valid ONNX model.
        ConversionError: something has no exact form in Caffe; `Problems` with all of it.
    """
    from converters.importing.onnx_graph import read_program
    from converters.importing.options import ImportOptions
    from converters.importing.translation import translate
    from converters.onnx_reading import read_mapped

    options = options or ImportOptions()
    if isinstance(model, (str, Path)):
        whole, stored = read_mapped(Path(model))
        return translate(read_program(whole, str(model), options, stored), options)
    return translate(read_program(model, model.graph.name or "model", options), options)
