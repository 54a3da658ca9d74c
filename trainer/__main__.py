"""`python -m trainer` from the checkout: the same program as the installed `ipadapter`."""

from .cli import main

if __name__ == "__main__":
    main()
