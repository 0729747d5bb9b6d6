"""`python -m lib.doctor [PARAMETERS.yaml]`: exit code 0 when nothing needed is missing, else 1; 2 for a bad file."""

import sys

from lib.doctor import examine


def main(argv: list[str] | None = None) -> int:
    """Examine what the demo needs, or a run with the parameters of the file."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) > 1:
        print("usage: python -m lib.doctor [PARAMETERS.yaml]", file=sys.stderr)
        return 2
    config = None
    if arguments:
        from lib.config import Experiment  # not above: it needs packages that may be what is missing
        from lib.errors import InputError

        try:
            config = Experiment.from_yaml(arguments[0])
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
    report = examine(config)
    print(report)
    return 1 if report.missing else 0


if __name__ == "__main__":
    sys.exit(main())
