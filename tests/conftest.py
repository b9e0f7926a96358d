"""Shape and type checks (jaxtyping, beartype) are on for the whole package while its tests run."""

from jaxtyping import install_import_hook

install_import_hook("forwardsr", "beartype.beartype")
