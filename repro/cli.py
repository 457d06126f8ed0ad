"""The `vggc` command: finds the subcommands, and turns what goes wrong into messages and exit codes.

Nothing is imported for `vggc --help`: the table below holds the commands' one-line descriptions, and a command's
module is loaded when it is called.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; a command may have others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import click


class Entry(NamedTuple):
    """Where a command is (`module:attribute`), and what the list of commands says about it."""

    target: str
    summary: str


COMMANDS = {
    "convert": Entry(
        "converters.commands:convert",
        "Convert a Caffe model to PyTorch, ONNX, HDF5 or safetensors, or ONNX to Caffe.",
    ),
    "data": Entry("caffe_compat.data.commands:data", "Make and look at databases of images (LMDB, LevelDB)."),
    "evaluate": Entry("repro.evaluate_command:evaluate", "Measure top-1 and top-5 errors as the paper does."),
    "extract": Entry("repro.extract_command:extract", "Write features of images, as Caffe's extract_features does."),
    "inspect": Entry(
        "converters.inspect_command:inspect_command", "Show layers, shapes, parameters and problems of a model."
    ),
    "layers": Entry("caffe_compat.commands:layers", "List the layer types that are supported, and where."),
    "plot": Entry("repro.plot_command:plot", "Draw loss, accuracy and learning rate of trainings."),
    "predict": Entry("repro.predict_command:predict", "Show the classes that a net thinks of first."),
    "verify": Entry("converters.verify_command:verify", "Compare two models layer by layer, and their weights."),
    "test": Entry("caffe_compat.solvers.commands:test", "Score a net over some batches, as `caffe test` does."),
    "train": Entry("repro.train_command:train", "Train a net as the paper did, or from a solver as Caffe does."),
    "upgrade": Entry("caffe_compat.commands:upgrade", "Bring a net, its weights or a solver to the newest generation."),
}
REPORT = "this is a fault in vggc; please report it with the traceback that `vggc --debug` shows"


class LazyGroup(click.Group):
    """A group whose commands stand in `COMMANDS` and are imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vggc", prog_name="vggc", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of faults (also: VGGC_DEBUG=1).")
def cli() -> None:
    """Caffe nets of any generation to PyTorch, ONNX, HDF5 and safetensors, exactly, without Caffe."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `args` stands for `sys.argv[1:]`."""
    args = list(sys.argv[1:] if args is None else args)
    sys.exit(run(args))


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code, and writes messages to stderr."""
    try:
        result = cli.main(list(args), prog_name="vggc", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except Exception as error:
        return _failed(error, debug="--debug" in args or os.environ.get("VGGC_DEBUG", "0") not in ("", "0"))


def _silence_stdout() -> None:
    """The reader has gone: let nothing more be written, not even when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: Exception, debug: bool) -> int:
    """Say what went wrong; the library is imported only now."""
    from caffe_compat.errors import Problems, VggcError

    if isinstance(error, VggcError):
        errors = error.errors if isinstance(error, Problems) else (error,)
        _say([f"error: {each}" for each in errors])
        if len(errors) > 1:
            _say([f"{len(errors)} errors"])
    elif isinstance(error, OSError) and error.strerror:
        _say([f"error: {_name(error)}{error.strerror}"])
    elif debug:
        raise error
    else:
        _say([f"internal error: {type(error).__name__}: {error}", REPORT])
    return 1


def _say(lines: Sequence[str]) -> None:
    """Print messages; names in them come from files, which may hold anything."""
    from caffe_compat.errors import one_line

    for line in lines:
        click.echo(f"vggc: {one_line(line)}", err=True)


def _name(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""
