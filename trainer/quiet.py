"""What the model libraries say while loading, turned down to what a user can act on."""

import diffusers
import transformers


def quiet_libraries() -> None:
    """No bar per file and no table of weights that were rightly left out; errors still come through."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
