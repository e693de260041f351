"""The command line, `python -m tql COMMAND` or `tql COMMAND`; `tql/commands/` has the commands."""

import sys

from tql.commands import is_message, run_command


def main() -> None:
    """Runs the command in `sys.argv`. An error that a user can mend is one line on stderr and exit
    status 1; any other shows where it was raised."""
    try:
        run_command(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("tql: interrupted.")
    except Exception as error:
        if is_message(error):
            sys.exit(f"tql: {error}")
        raise


if __name__ == "__main__":
    main()
