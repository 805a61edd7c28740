"""The command line: the table of commands. Each is one file of `uad.commands`.

Imports nothing heavy at start. Runs on Python 3.8, and without torch but for `fit`, `demo` and checkpoints.
"""

import importlib
import io
import os
import sys
from typing import Dict, Optional, Sequence

from engines.errors import UserError, printable, warnings_as_lines

# name -> what it does, in a line. `uad.commands.NAME.main(arguments)` does it, prints what was found, and
# may return an exit code.
COMMANDS: Dict[str, str] = {
    "fit": "train one model on good images of all the parts",
    "distill": "make the small teacher of EfficientAD from a large network and any images",
    "export": "write a trained model as an ONNX file or a TensorRT plan in fp32, fp16, int8 or a mixture",
    "check": "say what a target would refuse in an ONNX file",
    "test": "measure how right a model is on test images",
    "bench": "measure how fast and how big models are, in turns",
    "predict": "judge images and draw where their defects are",
    "threshold": "set how strict a model is, on labelled images",
    "report": "write one page on a run: accuracy, thresholds to move, the worst mistakes, speed",
    "demo": "draw images, then fit, export, test and bench on them",
    "doctor": "say what is installed and what works here",
}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run `uad` with the given or the process's arguments.

    Returns:
        The exit code: 0, 1 where `uad check` found something, 2 for a mistake of the user, 130 after Ctrl-C, 141 where
        nobody reads what is printed.
    """
    # Blocks above 32 MB go back to the system when they are free; of smaller ones each thread keeps a large image's
    # worth. Pillow, 'Block allocator'; read when Pillow is imported.
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    try:
        with warnings_as_lines():
            code = _run(name, given[1:])
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except BrokenPipeError:  # whoever read what is printed has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"uad: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("uad: stopped", file=sys.stderr)
        return 130


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        from importlib.metadata import version

        print(version("uad"))
    elif name in COMMANDS:
        return importlib.import_module(f"uad.commands.{name}").main(arguments) or 0
    else:
        raise UserError(f"unknown command '{name}': choose one of {', '.join(COMMANDS)}")
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: uad COMMAND [--help] ...", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
