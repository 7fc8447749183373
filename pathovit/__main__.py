"""python -m pathovit"""

from pathovit.cli import main

if __name__ == "__main__":
    main()
