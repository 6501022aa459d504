"""Entry point of the command ``ladder``: global options, exit codes and error messages.

Results go to stdout (a path, or JSON with ``--json``), everything else to stderr. The commands are
listed in :mod:`latent_ladder.cli.command_table`; nothing heavy is imported before one of them runs.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from latent_ladder._version import __version__
from latent_ladder.cli.command_table import LazyCommandGroup
from latent_ladder.errors import Cancelled, LadderError, RequestError

GLOBAL_OPTIONS = ("--verbose", "--debug", "--log")
"""Options that are written before the command."""

LOG_VARIABLE = "LADDER_LOG"
"""Environment variable with the path of the log file. typer 0.26 does not read it itself."""

CLOSED_PIPE_EXIT_CODE = 141
"""Exit code when the reader of stdout has gone: that of a program ended by SIGPIPE."""

_EXTRA_WORDS = re.compile(r"unexpected extra argument(?:s|\(s\))? \((.*)\)")
"""Part of typer's message that has the words after the first argument."""

UsageError = cast(type[Exception], typer.BadParameter.__bases__[0])
"""Base class of typer's errors about wrong options, which it does not export."""


def build_app() -> typer.Typer:
    """The application ``ladder`` with all commands and shell completion."""
    app = typer.Typer(
        name="ladder",
        cls=LazyCommandGroup,
        help="Make video clips with sound with LTX-2.3: small first, then upsampled and refined.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(set_global_options)
    return app


def __getattr__(name: str) -> Any:
    """``app``, built on first use: importing this module does nothing."""
    if name == "app":
        return build_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def set_global_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print what happens: files, stages, times, memory.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print every detail, with tracebacks of errors.")
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="Append every detail to this file, to send with a bug report. "
            "Default: LADDER_LOG, else no file.",
        ),
    ] = None,
) -> None:
    """Apply the options that stand before the command."""
    if version:
        from latent_ladder.cli.console import print_lines

        print_lines(f"latent-ladder {__version__}")
        raise typer.Exit
    file = log or os.environ.get(LOG_VARIABLE)
    if verbose or debug or file:
        from latent_ladder.cli.logging_setup import start_log

        start_log(verbose=verbose, debug=debug, file=Path(file) if file else None)


def main() -> None:
    """Run the command line; errors become messages on stderr and exit codes."""
    # pydantic looks through every installed package for plugins, a tenth of the start-up.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from latent_ladder.cli.streams import (
        ClosedStdout,
        discard_stdout,
        flush_stdout,
        prepare_streams,
    )

    prepare_streams()
    try:
        code = _run_command()
        flush_stdout()
    except ClosedStdout:
        discard_stdout()
        code = CLOSED_PIPE_EXIT_CODE
    except LadderError as error:
        code = _report_error(error)
        discard_stdout()
    sys.exit(code)


def _run_command() -> int:
    """Run the command of ``sys.argv``; its exit code. Raises :class:`ClosedStdout`."""
    from latent_ladder.cli.streams import ClosedStdout

    try:
        code = build_app()(prog_name="ladder", standalone_mode=False)
    except LadderError as error:
        return _report_error(error)
    except typer.Abort:
        return _report_error(Cancelled("stopped by the user"))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is already printed
            return 2
        return _report_error(_describe_usage_error(error))
    except ClosedStdout:
        raise
    except BrokenPipeError as error:
        raise ClosedStdout from error
    except OSError as error:
        return _report_error(_describe_system_error(error))
    except UnicodeEncodeError as error:
        return _report_error(_describe_encoding_error(error))
    except Exception:
        from latent_ladder.cli.console import show_traceback

        _log_failure("unexpected error")
        sys.excepthook = show_traceback
        raise
    return code if isinstance(code, int) else 0


def _describe_system_error(error: OSError) -> LadderError:
    """The error for a file or device that the system refused and no module explained."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = os.strerror(error.errno) if error.errno else str(error)
    hints = {
        errno.ENAMETOOLONG: "use a shorter name; most file systems allow 255 bytes",
        errno.ENOSPC: "free some space, or use a folder on another disk",
        errno.EMFILE: "allow more open files: ulimit -n 4096",
    }
    hint = hints.get(error.errno or 0, "check the name and the permissions; --debug shows where")
    return LadderError(": ".join([*names[:1], reason]), hint)


def _describe_encoding_error(error: UnicodeEncodeError) -> LadderError:
    """The error for a name or text that this locale, or UTF-8, cannot represent."""
    return LadderError(
        f"{error.object[:100]!a} cannot be represented in {error.encoding}",
        "use names and prompts in UTF-8, and a UTF-8 locale such as LC_ALL=C.UTF-8",
    )


def _describe_usage_error(error: Any) -> RequestError:
    """The error for a wrong command or option, with a hint."""
    command = "ladder" if error.ctx is None else error.ctx.command_path
    message = error.format_message()
    hint = f"{command} --help lists what there is"
    option = getattr(error, "option_name", None)
    if (quoted := _quoted_prompt(error)) is not None:
        hint = f"put the prompt in quotes: {command} {quoted}"
    if option in GLOBAL_OPTIONS and command != "ladder":
        hint = f"write it before the command: ladder {option} {command.removeprefix('ladder ')}"
    return RequestError(message[:1].lower() + message[1:].rstrip("."), hint)


def _quoted_prompt(error: Any) -> str | None:
    """The whole prompt in quotes, where its words came as several arguments."""
    params = {} if error.ctx is None else error.ctx.params
    first, found = params.get("prompt"), _EXTRA_WORDS.search(error.format_message())
    return None if first is None or found is None else json.dumps(f"{first} {found[1]}")


def _report_error(error: LadderError) -> int:
    """Log and print an error; its exit code."""
    _log_failure(f"{error.code}: {error.message}")
    _print_error(error)
    return error.exit_code


def _log_failure(message: str) -> None:
    """Log the exception being handled, with its traceback."""
    import logging

    logging.getLogger(__name__).debug(message, exc_info=True)


def _print_error(error: LadderError) -> None:
    from latent_ladder.cli.console import print_json, show_error
    from latent_ladder.cli.streams import ClosedStdout

    if "--json" in sys.argv:
        body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, RequestError):
            body["problems"] = [{"message": m, "hint": h} for m, h in error.problems]
        with suppress(LadderError, ClosedStdout):  # the message on stderr remains
            print_json({"error": body}, indent=None)
    show_error(error)


if __name__ == "__main__":
    main()
