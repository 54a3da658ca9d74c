"""`python -m ipadapter_trainer`: the same program as the installed `ipadapter`."""

from .cli import main

if __name__ == "__main__":
    main()
