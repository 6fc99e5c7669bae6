"""``modamafs``: the commands, each in a file of its own that is loaded when it is asked for.

Exit status: 0 done, 1 the answer is no, 2 usage, 3 and above failure (one line on stderr).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.metadata import version

import click

import modamafs_cli
from modamafs.errors import ModamaError
from modamafs_cli._text import printable

EXIT_FAILURE = 3


class Commands(click.Group):
    """Every module beside this one (but those with a leading underscore) is a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name them without loading them."""
        modules = {module.name for module in pkgutil.iter_modules(modamafs_cli.__path__)}
        return sorted(name for name in modules - {"main"} if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"modamafs_cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"modamafs {version('modamafs')}")
        ctx.exit()


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version.",
)  # fmt: skip
def cli() -> None:
    """Research data on one file system: mounted at native speed, sealed against accidents.

    Start with 'modamafs doctor', which says what this machine can do.
    """


def main() -> None:
    """Run one command; every refusal and failure is one line on stderr."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    try:
        status = cli.main(arguments, prog_name="modamafs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return error.exit_code
    except click.UsageError as error:
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _complain(f"{error.format_message()}{where}")
        return error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        return EXIT_FAILURE
    except click.Abort:
        _complain("interrupted")
        return EXIT_FAILURE
    except ModamaError as error:
        _complain(error.message)
        return EXIT_FAILURE
    except BrokenPipeError:
        return EXIT_FAILURE
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        _complain(f"{place}{error.strerror or error}")
        return EXIT_FAILURE
    return status if isinstance(status, int) else 0


def _complain(message: str) -> None:
    # File names may hold newlines, bytes that are no text, and what a terminal would obey.
    line = printable(" ".join(message.split("\n"))).encode(errors="backslashreplace").decode()
    click.echo(f"modamafs: {line}", err=True)


if __name__ == "__main__":
    main()
