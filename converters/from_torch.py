"""From torch to Caffe: exact, or refused with the module, the reason and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from converters.importing.options import ImportOptions
    from converters.importing.translation import Imported


def from_torch(
    module: nn.Module, example: Tensor | Sequence[Tensor], options: ImportOptions | None = None, *, name: str = ""
) -> Imported:
    """A Caffe net that computes what a torch module does in evaluation mode.

    Args:
        module: left as it is; layers are called as its submodules.
        example: an input, or several, of the shapes that the net is to have.
        options: see ImportOptions.
        name: of the net, by default the module's class.

    Raises:
        ConversionError: torch cannot export it, or something has no exact form in Caffe; `Problems` with all of it.
    """
    from torch import Tensor

    from converters.importing.aten import read_module
    from converters.importing.translation import translate

    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    return translate(read_module(module, examples, name or type(module).__name__), options)
