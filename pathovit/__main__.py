"""The command, from its first moment: signals are seen to before anything is imported that takes its time."""

from pathovit.signals import end_by_signals


def main() -> None:
    end_by_signals()
    from pathovit.cli import main as command

    command()


if __name__ == "__main__":
    main()
